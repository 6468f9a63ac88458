"""How good answers are beside a truth: pure functions of lists, each with its formula.

Of a denominator of zero the quotient is 0, as scikit-learn has it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one label's decisions: rightly said, wrongly said, missed."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def precision(self) -> float:
        """The share of what was said that is true."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """The share of what is true that was said."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall: 2 hits / (2 hits + wrong + missed)."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)


def accuracy(truths: Sequence[str], labels: Sequence[str | None]) -> float:
    """The share of rows whose label is the true one; a row without a label counts as wrong."""
    pairs = zip(truths, labels, strict=True)
    return _ratio(sum(truth == label for truth, label in pairs), len(truths))


def counts(
    truths: Sequence[Collection[str]], said: Sequence[Collection[str]], label: str
) -> Counts:
    """One label's decisions; a row has any number of labels."""
    pairs = [(label in truth, label in tags) for truth, tags in zip(truths, said, strict=True)]
    return Counts(pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)))


def micro(
    truths: Sequence[Collection[str]], said: Sequence[Collection[str]], labels: Collection[str]
) -> Counts:
    """All labels' decisions added up."""
    each = [counts(truths, said, label) for label in labels]
    return Counts(
        sum(one.hits for one in each),
        sum(one.false_alarms for one in each),
        sum(one.misses for one in each),
    )


def macro_f1(truths: Sequence[Collection[str]], said: Sequence[Collection[str]]) -> float:
    """The mean of the labels' F1, over the labels that are true or said in some row."""
    labels = {label for row in (*truths, *said) for label in row}
    return _mean([counts(truths, said, label).f1 for label in sorted(labels)])


def brier(truths: Sequence[str], scores: Sequence[Scores]) -> float:
    """Mean over the rows of sum_k (p_k - [k is true])^2: 0 at best, 2 at worst (Brier 1950)."""
    return _mean(
        [
            math.fsum((p - (label == truth)) ** 2 for label, p in row.items())
            for truth, row in zip(truths, scores, strict=True)
        ]
    )


def binary_brier(outcomes: Sequence[bool], probabilities: Sequence[float]) -> float:
    """Mean of (p - [it is true])^2: 0 at best, 1 at worst."""
    pairs = zip(outcomes, probabilities, strict=True)
    return _mean([(p - outcome) ** 2 for outcome, p in pairs])


def log_loss(truths: Sequence[str], scores: Sequence[Scores]) -> float:
    """Mean of -ln p(the true label): log n for an even guess among n labels."""
    least = 1e-15
    pairs = zip(truths, scores, strict=True)
    return _mean([-math.log(max(row[truth], least)) for truth, row in pairs])


def calibration_error(
    outcomes: Sequence[bool], probabilities: Sequence[float], num_bins: int = 10
) -> float:
    """Expected calibration error: sum_b n_b/n |share true in b - mean p in b| (Naeini et al. 2015).

    The bins are equally wide: bin b holds the p in [b/B, (b+1)/B), the last one 1 too.
    """
    bins: dict[int, list[tuple[bool, float]]] = {}
    for outcome, p in zip(outcomes, probabilities, strict=True):
        bins.setdefault(min(int(p * num_bins), num_bins - 1), []).append((outcome, p))
    gaps = [
        abs(math.fsum(p for _, p in pairs) - sum(outcome for outcome, _ in pairs))
        for pairs in bins.values()
    ]
    return _ratio(math.fsum(gaps), len(outcomes))


def auc(outcomes: Sequence[bool], probabilities: Sequence[float]) -> float | None:
    """How often a true one has a higher p than a false one, a tie counting half.

    None where all are true or none is. It hangs on no threshold: 0.5 is chance.
    """
    true = [p for outcome, p in zip(outcomes, probabilities, strict=True) if outcome]
    false = [p for outcome, p in zip(outcomes, probabilities, strict=True) if not outcome]
    if not true or not false:
        return None
    wins = sum((one > other) + (one == other) / 2 for one in true for other in false)
    return wins / (len(true) * len(false))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return _ratio(math.fsum(values), len(values))
