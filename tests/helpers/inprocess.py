"""A whole run or retry in this process: the same stages as on Ray, one unit after another."""

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

#: Two shards, among whose rows is each kind of text that there is nothing to answer to.
CORPUS: dict[str, Sequence[str | None]] = {
    "a.parquet": ["one", "", "three", None, "five"],
    "b/c.parquet": ["six", "seven", "   "],
}


class DriverDied(Exception):
    """The crash of a store, as an error that ends the run."""


class CrashingExecutor(InProcessExecutor):
    """Runs units in this process, over a store that may crash."""

    def start(self, job: Job) -> "CrashingExecution":
        return CrashingExecution(job)


class CrashingExecution(InProcessExecution):
    """Turns a store's crash, which no handler catches, into the end of the run."""

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        try:
            yield from super().commits(spec)
        except Crash as crash:
            raise DriverDied from crash


@dataclass(frozen=True)
class ScriptedExecutor(InProcessExecutor):
    """Runs units in this process; `around` yields the commits, of the execution or none of them.

    Metrics go to `recorder`.
    """

    around: Callable[[InProcessExecution, RunSpec], Iterator[Commit]] = InProcessExecution.commits
    recorder: Recorder = field(default_factory=NoRecorder)

    def start(self, job: Job) -> "ScriptedExecution":
        return ScriptedExecution(job, self)


class ScriptedExecution(InProcessExecution):
    """What a `ScriptedExecutor` starts."""

    def __init__(self, job: Job, script: ScriptedExecutor) -> None:
        super().__init__(job)
        self.recorder = script.recorder
        self._script = script

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        return self._script.around(InProcessExecution(self._job), spec)


@dataclass
class Quiet:
    """An interface that keeps what was said, and shows nothing."""

    said: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.said.append(line)

    def event(self, event: Mapping[str, Any]) -> None:
        """Not kept: it stands in the output."""

    @contextmanager
    def watch(self, _log: Path) -> Iterator[Screen]:
        yield Screen()


def drive(job: Job, store: Store) -> Summary | None:
    """Run the job on an output behind this store."""
    return run_job(job, CrashingExecutor(), Quiet(), output=store)


def drive_retry(store: Store, selection: Selection, *overrides: str) -> Summary | None:
    """Answer rows of the output behind this store again."""
    return retry_rejects(store, selection, overrides, CrashingExecutor(), Quiet())


def invoke(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """The command line with these arguments, its exit code and what it wrote."""
    executor = InProcessExecutor()
    return CliRunner().invoke(app, list(map(str, arguments)), env=env, obj=executor)


def write_corpus(folder: Path, corpus: Mapping[str, Sequence[str | None]] | None = None) -> Path:
    """Shards of a column of texts beside a number for each row."""
    for name, texts in (corpus or CORPUS).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
        pq.write_table(table, path)
    return folder


def job_over(corpus: Path, output: Path | str, **changes: Any) -> dict[str, Any]:
    """A job's keys: short answers of the fake engine, units of two rows."""
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
