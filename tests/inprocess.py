"""A whole run or retry in this process: the same stages as on Ray, one unit after another."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Crash
from typer.testing import CliRunner, Result

from pipeline import output, pool, run
from pipeline.cli import app
from pipeline.commit import Commit
from pipeline.engine import MachineShare
from pipeline.job import Job
from pipeline.meters import NoRecorder, Recorder
from pipeline.monitor import Progress
from pipeline.parcel import unpack
from pipeline.pool_state import PoolState
from pipeline.rejects import Selection
from pipeline.replica import Replica, load_engine
from pipeline.retry import retry_rejects
from pipeline.run import Summary, run_job
from pipeline.store import Store, open_store
from pipeline.tools import load_tasks

#: Two shards, among whose rows is each kind of text that there is nothing to answer to.
CORPUS: dict[str, Sequence[str | None]] = {
    "a.parquet": ["one", "", "three", None, "five"],
    "b/c.parquet": ["six", "seven", "   "],
}


class DriverDied(Exception):
    """The crash, on its way from the thread of the commits to the main one."""


class InProcessPool:
    """Stands for `pool.Pool`, without Ray."""

    recorder: Recorder = NoRecorder()

    def __init__(self, _address: str | None, job: Job, _metrics_port: int | None = None) -> None:
        self._job = job
        self._working = threading.Lock()
        self._is_stopped = False

    def state(self) -> PoolState:
        return PoolState()

    def commits(self, spec: pool.RunSpec) -> Iterator[Commit]:
        share = MachineShare(num_gpus=0, num_threads=1)
        tasks = load_tasks(self._job)
        replica = Replica(
            lambda: load_engine(self._job, share),
            tasks,
            _ignore,
            _ignore,
            self._job.model.request_timeout_s,
        )
        for position in range(len(spec.units)):
            with self._working:
                if self._is_stopped:
                    return
                try:
                    made = _run_unit(spec, position, replica)
                except Crash as crash:
                    raise DriverDied from crash
            yield made

    def stop(self) -> None:
        self._is_stopped = True

    def close(self) -> None:
        """Nothing is written after this, as when a cluster is gone."""
        self._is_stopped = True
        # Whoever is at work ends it first.
        with self._working:
            return


def _run_unit(spec: pool.RunSpec, position: int, replica: Replica) -> Commit:
    """What a unit meets in its three stages."""
    ((_, rendered),) = unpack(pool._render_unit(spec, position))
    answered = replica.answer(rendered)
    whole = pool._with_facts(answered, rendered, replica.info, "here")
    return pool._commit_unit(spec, position, whole)


def _ignore(_: object) -> None:
    """Nobody looks."""


@dataclass
class Quiet:
    """An interface that keeps what was said."""

    said: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.said.append(line)

    def event(self, event: Mapping[str, Any]) -> None:
        """Not kept: it stands in the output."""

    @contextmanager
    def watch(self, _log: Path) -> Iterator["Quiet"]:
        yield self

    def update(self, _progress: Progress, _now: float) -> None:
        """Draw nothing."""


def drive(job: Job, store: Store) -> Summary | None:
    """Run the job on an output behind this store."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "Pool", InProcessPool)
        patched.setattr(run, "open_store", lambda *_: store)
        return run_job(job, None, Quiet())


def drive_retry(store: Store, selection: Selection, *overrides: str) -> Summary | None:
    """Answer rows of the output behind this store again."""

    def open_ours(url: str, *_: object) -> Store:
        return store if url == store.url else open_store(url)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "Pool", InProcessPool)
        patched.setattr(output, "open_store", open_ours)
        return retry_rejects(store.url, selection, overrides, None, Quiet())


def invoke(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Result:
    """The command line with these arguments, its exit code and what it wrote."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "Pool", InProcessPool)
        return CliRunner().invoke(app, list(map(str, arguments)), env=env)


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
