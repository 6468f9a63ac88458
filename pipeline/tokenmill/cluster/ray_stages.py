"""The stages of a run as functions that Ray calls in worker processes.

Workers import this module and `replica_actor`, and nothing that only the driver needs.
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray

from tokenmill.errors import RunFailed, TokenmillError, root_cause
from tokenmill.job.job import Job
from tokenmill.output.commit import Commit
from tokenmill.output.counts import Counts
from tokenmill.output.record import UnitRecord
from tokenmill.stages.block import from_block, to_block
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.load import collect_seldom, load_tasks
from tokenmill.stages.unit import commit_unit, render_unit
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import RowTasks

_COMMIT_COLUMN = "commit"


@dataclass(frozen=True, slots=True)
class PickledSpec:
    """A run's spec on its way to worker processes.

    For each unit Ray Data unpickles the arguments of a stage again, and a plan may have many units.
    So the spec is pickled once, into a buffer that stays in Ray's shared memory.
    """

    run: str
    pickled: pa.Buffer = field(compare=False, repr=False)

    @classmethod
    def of(cls, spec: RunSpec) -> "PickledSpec":
        return cls(spec.run, pa.py_buffer(pickle.dumps(spec)))


@lru_cache(maxsize=1)
def unpickled(pickled: PickledSpec) -> RunSpec:
    """The spec; unpickled once in a worker process."""
    spec: RunSpec = pickle.loads(pickled.pickled)  # noqa: S301 - from this run's driver
    return spec


@lru_cache(maxsize=1)
def loaded_tasks(job_json: str, storage_url: str) -> RowTasks:
    """The job's tasks, loaded once in a worker process: a tokenizer takes seconds."""
    job = Job.model_validate_json(job_json)
    tasks = load_tasks(job, open_store(storage_url, job.input.endpoint_url))
    collect_seldom()
    return tasks


@contextmanager
def failures_reported(coordinator: Any) -> Iterator[None]:
    """Report to the coordinator why a stage fails, before Ray wraps the error."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if not isinstance(cause, TokenmillError):
            cause = RunFailed(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
        ray.get(coordinator.failed.remote(cause))
        raise


def render_units(batch: pa.Table, spec: PickledSpec, coordinator: Any) -> pa.Table:
    """The first stage: read units and render their rows."""
    with failures_reported(coordinator):
        run = unpickled(spec)
        tasks = loaded_tasks(run.job.model_dump_json(), run.source.store.url)
        return pa.concat_tables(
            [
                to_block(position, render_unit(run, position, tasks))
                for position in batch.column("id").to_pylist()
            ]
        )


def write_units(batch: pa.Table, spec: PickledSpec, coordinator: Any) -> pa.Table:
    """The last stage: write units; its rows are the commits, which go to the driver."""
    with failures_reported(coordinator):
        run = unpickled(spec)
        commits = [commit_unit(run, position, rows) for position, rows in from_block(batch)]
    texts = [json.dumps(asdict(commit)) for commit in commits]
    return pa.table({_COMMIT_COLUMN: pa.array(texts, pa.string())})


def commits_of(batch: pa.Table) -> Iterator[Commit]:
    """The commits in a batch that `write_units` has made."""
    for text in batch.column(_COMMIT_COLUMN).to_pylist():
        values = json.loads(text)
        repaired = None if values["repaired"] is None else Counts(**values["repaired"])
        record = UnitRecord.from_facts(values["record"])
        yield Commit(**{**values, "record": record, "repaired": repaired})
