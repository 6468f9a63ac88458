"""Two runs on one output: each unit is committed once, and hardly any is answered twice."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import (
    Quiet,
    ScriptedExecutor,
    drive,
    drive_retry,
    job_over,
    write_corpus,
)
from tokenmill.job.job import Job
from tokenmill.output.commit import Commit
from tokenmill.output.heartbeat import ALIVE_NAME
from tokenmill.output.output import open_output
from tokenmill.output.rejects import Selection
from tokenmill.output.runs import SUMMARY_NAME, run_folder
from tokenmill.output.success import read_success
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.run.planning import prepare
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.in_process import InProcessExecution
from tokenmill.storage.base import Store

NUM_UNITS = 24


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job with 24 units of one row."""
    texts = [f"text {number}" for number in range(NUM_UNITS)]
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": texts})
    return Job.model_validate(job_over(corpus, tmp_path / "out", units={"rows": 1}))


def assert_whole(store: Store) -> None:
    opened = open_output(store)
    assert verify(store, expected_output(opened), Level.INPUT).is_whole
    totals = read_success(store)
    assert totals is not None and totals.rows == NUM_UNITS


def test_runs_that_start_together_share_the_work(job: Job, memory_store: Store) -> None:
    """One begins at the front and one at the end, so at most one unit is answered by both."""
    both_planned = threading.Barrier(2, timeout=60)

    def around(execution: InProcessExecution, spec: RunSpec) -> Iterator[Commit]:
        both_planned.wait()
        yield from execution.commits(spec)

    def run() -> Summary | None:
        return run_job(job, ScriptedExecutor(around), Quiet(), output=memory_store)

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run) for _ in range(2)]
        summaries = [run.result() for run in runs]
    assert_whole(memory_store)
    answered = [summary.units for summary in summaries if summary is not None]
    lost = [summary.lost_races for summary in summaries if summary is not None]
    assert len(answered) == 2
    assert sum(lost) <= 1
    assert sum(answered) - sum(lost) == NUM_UNITS


def test_a_run_that_is_overtaken_skips_what_is_done(job: Job, memory_store: Store) -> None:
    """Its engine is not asked again, and its summary counts only its own units, rows and tokens."""
    other: list[Summary | None] = []

    def around(execution: InProcessExecution, spec: RunSpec) -> Iterator[Commit]:
        commits = execution.commits(spec)
        for _ in range(3):
            yield next(commits)
        other.append(drive(job, memory_store))
        yield from commits

    first = run_job(job, ScriptedExecutor(around), Quiet(), output=memory_store)
    (second,) = other
    assert first is not None and second is not None
    assert (first.units, first.rows, first.lost_races) == (3, 3, 0)
    assert (second.units, second.rows, second.lost_races) == (NUM_UNITS - 3, NUM_UNITS - 3, 0)
    totals = read_success(memory_store)
    assert totals is not None
    assert first.input_tokens + second.input_tokens == totals.input_tokens
    assert_whole(memory_store)


def test_a_retry_skips_no_unit(tmp_path: Path, memory_store: Store) -> None:
    """The objects of the units exist, and are what it repairs."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "two"]})
    model = {"source": "fake", "engine": {"error_rate": 1.0}}
    drive(Job.model_validate(job_over(corpus, tmp_path / "out", model=model)), memory_store)
    summary = drive_retry(memory_store, Selection(), "model.engine.error_rate=0")
    assert summary is not None and (summary.rows, summary.rejected) == (2, 0)


def order(job: Job, store: Store) -> list[int]:
    """The first rows of the units that a run would take now, in its order."""
    return [unit.first_row for unit in prepare(job, store, has_gpus=False).in_order()]


def test_runs_take_units_in_different_orders(job: Job, memory_store: Store) -> None:
    """The first in the plan's order, the second from the end, and any other at random."""
    rows = list(range(NUM_UNITS))
    alive = {"host": "there", "pid": 1, "at": time.time()}

    def put(run: str, name: str, facts: dict[str, Any]) -> None:
        memory_store.replace(f"{run_folder(run)}/{name}", json.dumps(facts).encode())

    assert order(job, memory_store) == rows
    assert order(job, memory_store) == rows[::-1]
    put("one", ALIVE_NAME, alive)
    assert order(job, memory_store) == rows[::-1]
    put("two", ALIVE_NAME, alive)
    random_orders = [order(job, memory_store) for _ in range(2)]
    assert all(sorted(taken) == rows for taken in random_orders)
    assert random_orders[0] != random_orders[1]
    memory_store.delete(f"{run_folder('two')}/{ALIVE_NAME}")
    put("one", SUMMARY_NAME, {})
    assert order(job, memory_store) not in (rows, rows[::-1])
