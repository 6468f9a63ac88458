"""Crashes for one reason on different rows are counted until engines work again."""

import pytest
from tokenmill.scheduling.crashes import KILLED, CrashHistory, crash_reason


def test_different_rows_are_counted() -> None:
    """The same row twice is one, and a crash with several rows in the engine is none."""
    history = CrashHistory()
    for row in [None, (1, 0), (1, 0), (1, 1), (2, 0)]:
        history.crashed("RuntimeError: broken", row)
    assert history.num_rows == 3


def test_each_reason_has_its_own_count() -> None:
    """The last reason's is returned."""
    history = CrashHistory()
    history.crashed("RuntimeError: a", (1, 0))
    history.crashed("RuntimeError: b", (1, 1))
    history.crashed("RuntimeError: b", (1, 2))
    assert history.num_rows == 2
    history.crashed("RuntimeError: a", (1, 3))
    assert history.num_rows == 2


def test_answered_rows_start_the_count_again() -> None:
    """A reason that occurs while rows are answered in between never adds up."""
    history = CrashHistory()
    for row in range(10):
        history.crashed("RuntimeError: broken", (1, row))
        history.progressed()
    history.crashed("RuntimeError: broken", (1, 11))
    assert history.num_rows == 1


def test_numbers_do_not_make_another_reason() -> None:
    """Sizes, times and addresses differ from crash to crash."""
    history = CrashHistory()
    for row, detail in enumerate(["2.50 GiB at 0x7f3a", "3.75 GiB at 0xBEEF", "4 GiB at 0x0"]):
        history.crashed(f"OutOfMemoryError: tried to allocate {detail}", (1, row))
    assert history.num_rows == 3


def test_a_killed_process_proves_nothing_about_rows() -> None:
    """It may have been killed from outside."""
    history = CrashHistory()
    for row in range(5):
        history.crashed(KILLED, (1, row))
    assert history.num_rows == 0


@pytest.mark.parametrize("text", ["two\nlines", "two  lines", "two\x1b\x07 lines"])
def test_a_reason_is_one_printable_line(text: str) -> None:
    """It is printed on terminals."""
    assert crash_reason(RuntimeError(text)) == "RuntimeError: two lines"


def test_a_reason_is_short() -> None:
    """Some errors of compilers have thousands of characters."""
    assert len(crash_reason(RuntimeError("x" * 10_000))) <= 500
