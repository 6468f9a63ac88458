"""The reject budget: a run stops early if, and only if, it is certain to exceed it."""

from pathlib import Path
from typing import Any

import pytest
from helpers.factories import job
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import record, refusal, unit
from tokenmill.errors import ExitCode, OverBudget
from tokenmill.job.job import Job
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.output.success import read_success
from tokenmill.run.limits import RejectBudget
from tokenmill.storage.local import LocalStore


def progress_of(rows_total: int, *rejects: dict[str, int], filtered: int = 0) -> Progress:
    """A run in which units of ten rows are done, with these rejects in each."""
    progress = Progress(100, rows_total, 0, 0, started_at=0.0)
    for number, classes in enumerate(rejects):
        facts: dict[str, Any] = {"num_rows": 10 - filtered, "num_filtered": filtered}
        made = record(unit(number, 10), rejects=classes, **facts)
        progress.add(Commit(made, is_ours=True))
    return progress


NO_STORE = LocalStore("/nowhere/at/all")


def check_budget(job: Job, progress: Progress) -> None:
    """Let the budget look at a run with this progress."""
    RejectBudget(job, NO_STORE).committed(Commit(record(unit(0, 10)), is_ours=True), progress)


@pytest.mark.parametrize(
    ("budget", "rejects", "filtered", "is_exceeded"),
    [
        # 5 % of 100 rows are five.
        ({"max_reject_rate": 0.05}, [5], 0, False),
        ({"max_reject_rate": 0.05}, [6], 0, True),
        ({"max_reject_rate": 0.05}, [3, 3], 0, True),
        ({"max_reject_rate": 0}, [1], 0, True),
        ({"max_reject_rate": 0}, [0], 0, False),
        ({"max_reject_rate": 1}, [10], 0, False),
        # The smaller limit counts.
        ({"max_reject_rate": 1, "max_rejects": 3}, [3], 0, False),
        ({"max_reject_rate": 1, "max_rejects": 3}, [4], 0, True),
        ({"max_reject_rate": 0.02, "max_rejects": 50}, [3], 0, True),
        # Filtered rows are not in the output: 5 % of 80 are four.
        ({"max_reject_rate": 0.05}, [2, 2], 10, False),
        ({"max_reject_rate": 0.05}, [2, 3], 10, True),
    ],
)
def test_a_run_stops_when_it_is_certain_to_exceed_the_budget(
    budget: dict[str, float], rejects: list[int], filtered: int, is_exceeded: bool
) -> None:
    """With one reject fewer it goes on, since all remaining rows may be answered."""
    classes = [{"timeout": count} if count else {} for count in rejects]
    progress = progress_of(100, *classes, filtered=filtered)
    if is_exceeded:
        refusal(OverBudget, lambda: check_budget(job(budget), progress))
    else:
        check_budget(job(budget), progress)


def test_the_last_unit_does_not_stop_the_run() -> None:
    """After it the run ends by itself, with a summary and its own exit code."""
    progress = progress_of(20, {"timeout": 5}, {"timeout": 5})
    check_budget(job({"max_reject_rate": 0}), progress)


def test_the_reason_names_the_main_classes_first() -> None:
    """The message has the three most frequent classes with their counts."""
    rejects = {"timeout": 1, "engine_error": 4, "empty_input": 2, "bad_text": 3}
    progress = progress_of(100, rejects)
    message = refusal(OverBudget, lambda: check_budget(job({"max_rejects": 3}), progress))
    assert "10 of 100 rows were rejected; the limit is 3 (max_rejects: 3)" in message
    assert ": 4 engine_error, 3 bad_text, 2 empty_input. " in message
    assert "timeout" not in message


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (
            {"max_reject_rate": 0.01},
            "1 of 64 rows was rejected; the limit is 0 (max_reject_rate: 0.01)",
        ),
        ({"max_reject_rate": 0.01, "max_rejects": 0}, "the limit is 0 (max_rejects: 0)"),
        ({"max_reject_rate": 0.01, "max_rejects": 9}, "the limit is 0 (max_reject_rate: 0.01)"),
    ],
)
def test_the_reason_names_the_limit_and_its_key(budget: dict[str, float], words: str) -> None:
    """Of two limits it names the one that is exceeded."""
    progress = progress_of(64, {"timeout": 1})
    message = refusal(OverBudget, lambda: check_budget(job(budget), progress))
    assert words in message


# A whole run.

TEXTS = {"a.parquet": ["", "one", "two", "three", "", "", *(f"later {n}" for n in range(194))]}


def test_a_run_stops_early_and_continues_with_a_larger_budget(tmp_path: Path) -> None:
    """It stops with its own exit code and an example; committed units are kept and counted."""
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    keys = job_over(corpus, tmp_path / "out", units={"rows": 1}, max_rejects=2)
    tight, wide = (Job.model_validate({**keys, "max_rejects": limit}) for limit in (2, 3))
    store = LocalStore(str(tmp_path / "out"))
    message = refusal(OverBudget, lambda: drive(tight, store))
    assert OverBudget.exit_code == ExitCode.OVER_REJECT_BUDGET == 3
    assert "3 empty_input (such as a.parquet row 0: " in message
    committed = {item.key for item in store.list("data")}
    assert 6 <= len(committed) < 200
    assert read_success(store) is None
    summary = drive(wide, store)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.units == 200 - len(committed)
    totals = read_success(store)
    assert totals is not None and totals.rejects == {"empty_input": 3}


def test_a_budget_that_is_exceeded_at_the_end_leaves_no_success(tmp_path: Path) -> None:
    """All units are saved and the exit code is 3; with a larger budget no unit runs again."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["fine", ""]})
    store = LocalStore(str(tmp_path / "out"))
    keys = job_over(corpus, tmp_path / "out", max_rejects=0)
    summary = drive(Job.model_validate(keys), store)
    assert summary is not None and summary.exit_code == ExitCode.OVER_REJECT_BUDGET
    assert read_success(store) is None
    again = drive(Job.model_validate({**keys, "max_rejects": 1}), store)
    assert again is not None and (again.units, again.exit_code) == (0, ExitCode.FINISHED)
    assert read_success(store) is not None
