"""The search for rows that kill engines: found among any neighbours, after few deaths."""

import math
from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.scheduling.poison_rows import PoisonSearch

UNIT = 7
ROWS = st.integers(1, 200)


def run_to_its_end(num_rows: int, killers: Collection[int]) -> tuple[int, frozenset[int], int]:
    """Deaths, condemned rows and rows answered of a unit, whose killers kill whatever they are in.

    The first attempt is in company; an attempt that dies loses its answers.
    """
    suspects, deaths = PoisonSearch(), 0
    while True:
        advice = suspects.begin(UNIT)
        answered = set(advice.condemned)
        died = not advice.is_alone and bool(killers)
        if not advice.is_alone:
            answered = set(range(num_rows)) if not died else answered
        while not died and len(answered) < num_rows:
            left = [row for row in range(num_rows) if row not in answered]
            group = suspects.next_group(UNIT, left)
            assert set(group) <= set(left)
            assert group
            if died := not killers.isdisjoint(group):
                break
            suspects.survived(UNIT)
            answered.update(group)
        if not died:
            suspects.end(UNIT)
            assert suspects.num_condemned == len(advice.condemned)
            return deaths, advice.condemned, len(answered) - len(advice.condemned)
        deaths += 1


@settings(max_examples=200, deadline=None)
@given(num_rows=ROWS, data=st.data())
def test_one_killer_is_found_within_the_promised_deaths(num_rows: int, data: st.DataObject) -> None:
    """A killer among n rows is condemned, and no other, after at most 3 + ceil(log2 n) deaths."""
    killer = data.draw(st.integers(0, num_rows - 1))
    deaths, condemned, answered = run_to_its_end(num_rows, frozenset({killer}))
    assert condemned == {killer}
    assert answered == num_rows - 1
    assert deaths <= 3 + math.ceil(math.log2(num_rows))


@settings(max_examples=100, deadline=None)
@given(num_rows=ROWS, data=st.data())
def test_all_killers_are_found_and_all_others_answered(num_rows: int, data: st.DataObject) -> None:
    """Several killers in one unit are each condemned; their neighbours all have answers."""
    killers = frozenset(data.draw(st.sets(st.integers(0, num_rows - 1), max_size=5)))
    deaths, condemned, answered = run_to_its_end(num_rows, killers)
    assert condemned == killers
    assert answered == num_rows - len(killers)
    assert deaths <= (3 + math.ceil(math.log2(num_rows))) * len(killers)


def test_a_unit_without_a_death_is_never_alone() -> None:
    """Nobody waits for a unit that has given no reason."""
    suspects = PoisonSearch()
    assert not suspects.begin(1).is_alone
    suspects.end(1)
    assert not suspects.begin(2).is_alone


def test_the_innocent_in_a_dying_engine_run_alone_once_and_whole() -> None:
    """A unit that was beside a killer is cleared by one run by itself, in one group."""
    suspects = PoisonSearch()
    suspects.begin(1)
    assert suspects.begin(1).is_alone
    assert suspects.next_group(1, range(9)) == tuple(range(9))
    suspects.survived(1)
    suspects.end(1)
    assert suspects.num_condemned == 0


def test_a_unit_whose_answers_were_lost_after_its_end_is_no_suspect() -> None:
    """A node that dies with answers in its memory says nothing of the rows."""
    suspects = PoisonSearch()
    suspects.begin(1)
    suspects.end(1)
    assert not suspects.begin(1).is_alone


def test_a_row_that_kills_only_sometimes_is_let_off() -> None:
    """Rows that survive by themselves what they were suspected of are answered."""
    suspects = PoisonSearch()
    suspects.begin(1)
    suspects.begin(1)
    suspects.next_group(1, range(4))
    assert suspects.begin(1).is_alone
    unanswered = list(range(4))
    while unanswered:
        group = suspects.next_group(1, unanswered)
        suspects.survived(1)
        unanswered = [row for row in unanswered if row not in group]
    suspects.end(1)
    assert suspects.num_condemned == 0
