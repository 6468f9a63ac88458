"""Quality metrics against correct answers: pure functions of lists, each with its formula.

A quotient with a denominator of zero is 0, as in scikit-learn.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of decisions: correctly predicted, wrongly predicted, missed."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def precision(self) -> float:
        """The share of predictions that are correct."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """The share of correct labels that were predicted."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall: 2 hits / (2 hits + wrong + missed)."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)


def accuracy(truths: Sequence[str], labels: Sequence[str | None]) -> float:
    """Return the share of rows with the correct label; a row without a label counts as wrong."""
    pairs = zip(truths, labels, strict=True)
    return _ratio(sum(truth == label for truth, label in pairs), len(truths))


def counts(
    truths: Sequence[Collection[str]], said: Sequence[Collection[str]], label: str
) -> Counts:
    """Count the decisions about one label; rows can have any number of labels."""
    pairs = [(label in truth, label in tags) for truth, tags in zip(truths, said, strict=True)]
    return Counts(pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)))


def micro(
    truths: Sequence[Collection[str]], said: Sequence[Collection[str]], labels: Collection[str]
) -> Counts:
    """Add up the counts of all labels."""
    each = [counts(truths, said, label) for label in labels]
    return Counts(
        sum(one.hits for one in each),
        sum(one.false_alarms for one in each),
        sum(one.misses for one in each),
    )


def macro_f1(truths: Sequence[Collection[str]], said: Sequence[Collection[str]]) -> float:
    """Return the mean F1 of all labels that are correct or predicted in some row."""
    labels = {label for row in (*truths, *said) for label in row}
    return _mean([counts(truths, said, label).f1 for label in sorted(labels)])


def brier(truths: Sequence[str], scores: Sequence[Scores]) -> float:
    """Return the mean of sum_k (p_k - [k is correct])^2: 0 is best, 2 is worst (Brier 1950)."""
    return _mean(
        [
            math.fsum((p - (label == truth)) ** 2 for label, p in row.items())
            for truth, row in zip(truths, scores, strict=True)
        ]
    )


def binary_brier(outcomes: Sequence[bool], probabilities: Sequence[float]) -> float:
    """Return the mean of (p - [outcome])^2: 0 is best, 1 is worst."""
    pairs = zip(outcomes, probabilities, strict=True)
    return _mean([(p - outcome) ** 2 for outcome, p in pairs])


def log_loss(truths: Sequence[str], scores: Sequence[Scores]) -> float:
    """Return the mean of -ln p(correct label): ln n for a uniform guess among n labels."""
    least = 1e-15
    pairs = zip(truths, scores, strict=True)
    return _mean([-math.log(max(row[truth], least)) for truth, row in pairs])


def calibration_error(
    outcomes: Sequence[bool], probabilities: Sequence[float], num_bins: int = 10
) -> float:
    """Expected calibration error: sum_b n_b/n |share true in b - mean p in b| (Naeini et al. 2015).

    The bins have equal width: bin b covers p in [b/B, (b+1)/B), and the last one includes 1.
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
    """Return how often a true outcome has a higher p than a false one, a tie counting as half.

    None if all outcomes are equal. The value does not depend on a threshold; 0.5 is chance.
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
