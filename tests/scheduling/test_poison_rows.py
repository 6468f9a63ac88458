"""The search for poison rows: they are found among any other rows, after few crashes."""

import math
from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.scheduling.poison_rows import PoisonSearch

UNIT = 7
NUM_ROWS = st.integers(1, 200)


def run_to_its_end(num_rows: int, poison: Collection[int]) -> tuple[int, frozenset[int], int]:
    """Run a unit whose `poison` rows crash any engine they are in.

    Returns the number of crashes, the rows found to be poison, and the number of answered rows. The
    first attempt runs with other units. An attempt that crashes loses its answers.
    """
    search, num_crashes = PoisonSearch(), 0
    while True:
        advice = search.begin(UNIT)
        answered = set(advice.poison)
        has_crashed = not advice.is_alone and bool(poison)
        if not advice.is_alone:
            answered = set(range(num_rows)) if not has_crashed else answered
        while not has_crashed and len(answered) < num_rows:
            unanswered = [row for row in range(num_rows) if row not in answered]
            group = search.next_group(UNIT, unanswered)
            assert set(group) <= set(unanswered)
            assert group
            if has_crashed := not poison.isdisjoint(group):
                break
            search.survived(UNIT)
            answered.update(group)
        if not has_crashed:
            search.end(UNIT)
            assert search.num_poison == len(advice.poison)
            return num_crashes, advice.poison, len(answered) - len(advice.poison)
        num_crashes += 1


@settings(max_examples=200, deadline=None)
@given(num_rows=NUM_ROWS, data=st.data())
def test_one_poison_row_is_found_within_the_documented_crashes(
    num_rows: int, data: st.DataObject
) -> None:
    """One poison row among n is found, and no other, after at most 3 + ceil(log2 n) crashes."""
    row = data.draw(st.integers(0, num_rows - 1))
    num_crashes, poison, num_answered = run_to_its_end(num_rows, frozenset({row}))
    assert poison == {row}
    assert num_answered == num_rows - 1
    assert num_crashes <= 3 + math.ceil(math.log2(num_rows))


@settings(max_examples=100, deadline=None)
@given(num_rows=NUM_ROWS, data=st.data())
def test_all_poison_rows_are_found_and_all_others_answered(
    num_rows: int, data: st.DataObject
) -> None:
    """Several poison rows in one unit are each found; all other rows are answered."""
    expected = frozenset(data.draw(st.sets(st.integers(0, num_rows - 1), max_size=5)))
    num_crashes, poison, num_answered = run_to_its_end(num_rows, expected)
    assert poison == expected
    assert num_answered == num_rows - len(expected)
    assert num_crashes <= (3 + math.ceil(math.log2(num_rows))) * len(expected)


def test_a_unit_without_a_crash_never_runs_alone() -> None:
    """Units run alone only after a crash."""
    search = PoisonSearch()
    assert not search.begin(1).is_alone
    search.end(1)
    assert not search.begin(2).is_alone


def test_an_innocent_unit_runs_alone_once_in_a_probe_and_a_group() -> None:
    """A unit that was in the engine with a poison row is cleared by one run of its own."""
    search = PoisonSearch()
    search.begin(1)
    assert search.begin(1).is_alone
    assert search.next_group(1, range(9)) == (0,)
    assert search.row_alone(1) == 0
    search.survived(1)
    assert search.next_group(1, range(1, 9)) == tuple(range(1, 9))
    assert search.row_alone(1) is None
    search.survived(1)
    assert search.end(1)
    assert search.num_poison == 0


def test_only_the_first_unit_after_a_crash_has_a_probe() -> None:
    """Once an engine has answered a row it works, and the other units run in one group."""
    search = PoisonSearch()
    for unit in (1, 2, 1, 2):
        search.begin(unit)
    assert search.next_group(1, range(4)) == (0,)
    search.survived(1)
    assert search.next_group(2, range(4)) == (0, 1, 2, 3)


def test_a_probe_is_none_of_the_suspects() -> None:
    """So its crash shows that the suspects are not the cause."""
    search = PoisonSearch()
    for _ in range(2):
        search.begin(1)
    assert search.next_group(1, range(4)) == (0,)
    search.begin(1)
    assert search.next_group(1, range(4)) == (2,)
    search.survived(1)
    assert search.next_group(1, (0, 1, 3)) == (0,)


def test_a_unit_of_which_no_row_was_answered_is_no_progress() -> None:
    """Its only row was found to be poison."""
    search = PoisonSearch()
    for _ in range(4):
        advice = search.begin(1)
        if not advice.poison:
            search.next_group(1, [0])
    assert advice.poison == {0}
    assert not search.end(1)


def test_a_row_that_was_killed_from_outside_and_answered_since_is_not_accused() -> None:
    """Its next crash is the first again."""
    search = PoisonSearch()
    for _ in range(2):
        search.begin(1)
    search.next_group(1, [0, 1])
    search.begin(1)
    for row in (1, 0):
        assert search.next_group(1, [0, 1][: row + 1]) == (row,)
        search.survived(1)
    search.next_group(1, [0])
    assert not search.begin(1).poison


def test_a_unit_whose_answers_were_lost_after_its_end_is_not_suspected() -> None:
    """A node that fails with finished answers in its memory proves nothing about the rows."""
    search = PoisonSearch()
    search.begin(1)
    search.end(1)
    assert not search.begin(1).is_alone


def test_a_row_that_crashes_the_engine_only_sometimes_is_answered() -> None:
    """Suspected rows that do not crash the engine when they run alone are answered."""
    search = PoisonSearch()
    search.begin(1)
    search.begin(1)
    search.next_group(1, range(4))
    assert search.begin(1).is_alone
    unanswered = list(range(4))
    while unanswered:
        group = search.next_group(1, unanswered)
        search.survived(1)
        unanswered = [row for row in unanswered if row not in group]
    search.end(1)
    assert search.num_poison == 0
