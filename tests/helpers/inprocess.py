"""Runs and retries in this process, with the same stages as on Ray, one unit after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenmill.cli import app
from tokenmill.job.job import Job
from tokenmill.observe.metrics import NoRecorder, Recorder
from tokenmill.observe.screen import Screen
from tokenmill.output.commit import Commit
from tokenmill.output.rejects import Selection
from tokenmill.run.retry import retry_rejects
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.in_process import InProcessExecution, InProcessExecutor
from tokenmill.storage.base import Store
from typer.testing import CliRunner, Result

from helpers.stores import Crash

#: Two shards, with each kind of empty text among their rows.
CORPUS: dict[str, Sequence[str | None]] = {
    "a.parquet": ["one", "", "three", None, "five"],
    "b/c.parquet": ["six", "seven", "   "],
}


class DriverCrashed(Exception):
    """A store's crash, as an exception that ends the run."""


class CrashingExecutor(InProcessExecutor):
    """Runs units in this process, on a store that may crash."""

    def start(self, job: Job) -> "CrashingExecution":
        return CrashingExecution(job)


class CrashingExecution(InProcessExecution):
    """Turns a store's `Crash`, which no handler catches, into `DriverCrashed`."""

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        try:
            yield from super().commits(spec)
        except Crash as crash:
            raise DriverCrashed from crash


@dataclass(frozen=True)
class ScriptedExecutor(InProcessExecutor):
    """Runs units in this process; `around` yields the commits of the execution it is given.

    Metrics are recorded in `recorder`.
    """

    around: Callable[[InProcessExecution, RunSpec], Iterator[Commit]] = InProcessExecution.commits
    recorder: Recorder = field(default_factory=NoRecorder)

    def start(self, job: Job) -> "ScriptedExecution":
        return ScriptedExecution(job, self)


class ScriptedExecution(InProcessExecution):
    """The execution of a `ScriptedExecutor`."""

    def __init__(self, job: Job, script: ScriptedExecutor) -> None:
        super().__init__(job)
        self.recorder = script.recorder
        self._script = script

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        return self._script.around(InProcessExecution(self._job), spec)


@dataclass
class Quiet:
    """An interface that shows nothing, and keeps the lines that it was given."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def event(self, event: Mapping[str, Any]) -> None:
        """Not kept: events are in the output."""

    @contextmanager
    def watch(self, _log: Path) -> Iterator[Screen]:
        yield Screen()


def drive(job: Job, store: Store) -> Summary | None:
    """Run the job; its output is in this store."""
    return run_job(job, CrashingExecutor(), Quiet(), output=store)


def drive_retry(store: Store, selection: Selection, *overrides: str) -> Summary | None:
    """Retry rows of the output in this store."""
    return retry_rejects(store, selection, overrides, CrashingExecutor(), Quiet())


def invoke(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """The result of the command line with these arguments, with units run in this process."""
    executor = InProcessExecutor()
    return CliRunner().invoke(app, list(map(str, arguments)), env=env, obj=executor)


def write_corpus(folder: Path, corpus: Mapping[str, Sequence[str | None]] | None = None) -> Path:
    """Write shards with a column of texts and a number for each row."""
    for name, texts in (corpus or CORPUS).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
        pq.write_table(table, path)
    return folder


def job_over(corpus: Path, output: Path | str, **changes: Any) -> dict[str, Any]:
    """The keys of a job with short answers of the fake engine and units of two rows."""
    return {
        "name": "tiny",
        "input": {"path": str(corpus), "keep": ["id"]},
        "model": {"source": "fake", "engine": {}},
        "prompt": {"user": "{{ text }}"},
        "sampling": {"max_tokens": 16},
        "output": {"path": str(output)},
        "units": {"rows": 2},
        "max_reject_rate": 1.0,
        **changes,
    }
