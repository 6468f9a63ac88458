"""How alike two texts are: chrF, the F-score of their character n-grams.

Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation": n-grams of 1 to 6
characters without white space, precision and recall each averaged over n. Here beta is 1, so that
neither text is the reference.
"""

from collections import Counter

_LONGEST = 6


def chrf(one: str, other: str) -> float:
    """0 (nothing in common) to 1; the same for both orders, 1 for two empty texts."""
    first, second = "".join(one.split()), "".join(other.split())
    if first == second:
        return 1.0
    precisions, recalls = [], []
    for length in range(1, _LONGEST + 1):
        mine, theirs = _ngrams(first, length), _ngrams(second, length)
        if not mine or not theirs:
            # A text is shorter than the n-gram: those of this length say nothing.
            continue
        common = (mine & theirs).total()
        precisions.append(common / mine.total())
        recalls.append(common / theirs.total())
    if not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall)


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))
