"""Counts add up field by field, and survive the round trip through `_SUCCESS`."""

import pytest
from helpers.stores import record, unit
from tokenmill.output.counts import NO_COUNTS, Counts, sum_counts

ONE = Counts(1, rows=3, filtered=2, rejects={"timeout": 1}, input_tokens=30, generated_tokens=12)
OTHER = Counts(
    2,
    rows=5,
    filtered=0,
    rejects={"empty_input": 2, "timeout": 3},
    input_tokens=1,
    generated_tokens=0,
)


def test_every_field_is_added() -> None:
    """Rejects are added by class and sorted by name."""
    assert (
        Counts(
            3,
            rows=8,
            filtered=2,
            rejects={"empty_input": 2, "timeout": 4},
            input_tokens=31,
            generated_tokens=12,
        )
        == ONE + OTHER
    )
    assert list((ONE + OTHER).rejects) == ["empty_input", "timeout"]
    assert ONE.rejects == {"timeout": 1}


def test_the_sum_of_nothing_is_zero() -> None:
    """Nothing was read, so nothing was rejected."""
    assert sum_counts([]) == NO_COUNTS
    assert NO_COUNTS.reject_rate == 0


def test_derived_numbers_follow_from_the_fields() -> None:
    """Filtered rows count as input rows, but not for the reject rate."""
    counts = sum_counts([ONE, OTHER])
    assert (counts.input_rows, counts.tokens, counts.rejected) == (10, 43, 6)
    assert counts.reject_rate == pytest.approx(6 / 8)


def test_a_record_counts_as_one_unit() -> None:
    """The counts of a record are those of its object."""
    written = record(unit(), num_rows=2, num_filtered=1, rejects={"timeout": 1})
    assert written.counts == Counts(1, 2, 1, {"timeout": 1}, 30, 12)
