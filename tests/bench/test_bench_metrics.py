"""The metrics of answers against a truth: their formulas, by hand and by their properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.metrics import (
    Counts,
    accuracy,
    auc,
    binary_brier,
    brier,
    calibration_error,
    counts,
    log_loss,
    macro_f1,
    micro,
)

DECISIONS = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=30)


def test_accuracy_counts_a_row_without_a_label_as_wrong() -> None:
    """Two of four are right, one is wrong and one has no label."""
    assert accuracy(["a", "b", "a", "b"], ["a", "b", "b", None]) == 0.5


def test_precision_recall_and_f1_by_hand() -> None:
    """Three hits, one false alarm and two misses."""
    found = Counts(3, 1, 2)
    assert (found.precision, found.recall) == (0.75, 0.6)
    assert found.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert (Counts(0, 0, 0).precision, Counts(0, 0, 0).f1) == (0, 0)


def test_counts_of_labels_add_up() -> None:
    """A row has any number of labels; `micro` adds the decisions of all of them."""
    truths, said = [{"a", "b"}, {"b"}, set[str]()], [["a"], ["a", "b"], ["b"]]
    assert counts(truths, said, "a") == Counts(1, 1, 0)
    assert counts(truths, said, "b") == Counts(1, 1, 1)
    assert micro(truths, said, ["a", "b"]) == Counts(2, 2, 1)


def test_macro_f1_is_the_mean_over_the_labels_that_occur() -> None:
    """A label that is said and never true counts with 0; one that never occurs not at all."""
    assert macro_f1([{"a"}, {"a"}], [["a"], ["b"]]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([{"a"}], [["a"]]) == 1


def test_brier_scores_by_hand() -> None:
    """Of a sure right answer 0, of a sure wrong one 2; of two outcomes 0 and 1."""
    assert brier(["a", "a"], [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]) == 1
    assert brier(["a"], [{"a": 0.5, "b": 0.25, "c": 0.25}]) == pytest.approx(0.375)
    assert binary_brier([True, False], [0.8, 0.4]) == pytest.approx((0.04 + 0.16) / 2)


def test_log_loss_of_an_even_guess_is_the_logarithm_of_the_labels() -> None:
    """Four equally likely labels cost log 4 nats; an impossible truth a large number."""
    assert log_loss(["a"], [dict.fromkeys("abcd", 0.25)]) == pytest.approx(math.log(4))
    assert 30 < log_loss(["a"], [{"a": 0.0, "b": 1.0}]) < 40


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 is right one time of two, 0.1 never; the gaps are weighed by their rows."""
    found = calibration_error([True, False, False, False], [0.9, 0.9, 0.1, 0.1])
    assert found == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


@settings(deadline=None)
@given(DECISIONS)
def test_calibration_error_is_at_most_the_gap_of_each_row(rows: list[tuple[bool, float]]) -> None:
    """It is between the gap of the whole sample and the mean of the rows' own."""
    outcomes, probabilities = zip(*rows, strict=True)
    error = calibration_error(outcomes, probabilities)
    whole = abs(sum(probabilities) - sum(outcomes)) / len(rows)
    own = sum(abs(p - outcome) for outcome, p in rows) / len(rows)
    assert whole - 1e-9 <= error <= own + 1e-9


def test_auc_by_hand() -> None:
    """Of four pairs three are in order and one is a tie; without both kinds there is none."""
    assert auc([True, True, False, False], [0.9, 0.5, 0.5, 0.1]) == 3.5 / 4
    assert auc([True], [0.5]) is None


@settings(deadline=None)
@given(DECISIONS)
def test_auc_turns_over_with_the_probabilities(rows: list[tuple[bool, float]]) -> None:
    """Ranking the other way round gives the rest to 1."""
    outcomes, probabilities = zip(*rows, strict=True)
    found, other = auc(outcomes, probabilities), auc(outcomes, [-p for p in probabilities])
    assert (found is None and other is None) or found + other == pytest.approx(1)
