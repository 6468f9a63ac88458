"""An output's folder: what stands in it, what is still missing, and when it is finished.

data/…/rows-….parquet            one object a unit
_tokenmill/plan.parquet          the plan; it decides what this is the output of
_tokenmill/job.yaml              the resolved job, for people
_tokenmill/runs/<run>/…          each run's summary and events, and a sign of life while it runs
_SUCCESS                         written last, when all units are committed and verified
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.plan_file import (
    RUNS_FOLDER,
    SUMMARY_NAME,
    check_same_job,
    read_job,
    read_plan,
    run_folder,
)
from tokenmill.output.record import UnitRecord, read_record, record_from
from tokenmill.plan.keys import UNIT_KEY
from tokenmill.plan.plan import Plan, Unit
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

#: Rows that are in memory as Python's objects at most.
BATCH_ROWS = 2048
# Reading footers is waiting for the store.
_FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run that left something; `summary` is None of one that was killed or is at work."""

    run: str
    summary: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Opened:
    """An output that stands: what it is the output of."""

    store: Store
    plan: Plan
    job: Job

    @property
    def kept_schema(self) -> pa.Schema:
        """The kept columns and their types."""
        return pa.schema([self.plan.schema.field(name) for name in self.job.input.keep])

    @property
    def source(self) -> Source:
        """The input, where it stood when the plan was made."""
        endpoint_url = self.job.input.endpoint_url
        store = open_store(self.plan.input_url, endpoint_url)
        return Source(store, self.plan.schema, self.job.input.where)


def open_output(store: Store) -> Opened:
    """The output in a store, with its plan and job. Raises `UserError` if there is none."""
    plan = read_plan(store)
    if plan is None:
        raise UserError(f"No tokenmill output found in {store.url}. Check the path.")
    job = read_job(store)
    check_same_job(store, plan, job)
    return Opened(store, plan, job)


def committed_keys(store: Store, plan: Plan) -> frozenset[str]:
    """The keys of the units that are done, from one listing.

    Raises `UserError` for an object below `data/` that is not of this plan.
    """
    planned = {unit.key for unit in plan.units}
    found = frozenset(item.key for item in store.list("data"))
    for key in sorted(found - planned):
        what = "of another plan" if UNIT_KEY.fullmatch(key) else "not written by tokenmill"
        raise UserError(f"{store.url}/{key} is {what}; remove it or use another output")
    return found


def committed_units(store: Store, plan: Plan) -> tuple[Unit, ...]:
    """What is done, in the plan's order. Raises `UserError` as `committed_keys` does."""
    committed = committed_keys(store, plan)
    return tuple(unit for unit in plan.units if unit.key in committed)


def read_records(store: Store, keys: Sequence[str]) -> Iterator[UnitRecord]:
    """The records of units, in the keys' order; from the footers of their objects alone."""
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        yield from pool.map(partial(read_record, store), keys)


def batches(store: Store, unit: Unit, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A unit's rows as they stand in its object, some columns of them, a few thousand at a time."""
    with store.open(unit.key) as file:
        yield from _batches_in(pq.ParquetFile(file), names)


def recorded_batches(
    store: Store, unit: Unit, names: Sequence[str]
) -> Iterator[tuple[UnitRecord, pa.RecordBatch]]:
    """As `batches`, each with the unit's record, from one opening of the object."""
    with store.open(unit.key) as file:
        parquet = pq.ParquetFile(file)
        record = record_from(parquet.metadata)
        for batch in _batches_in(parquet, names):
            yield record, batch


def _batches_in(file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    yield from file.iter_batches(BATCH_ROWS, columns=list(names))


def missing_units(plan: Plan, committed: Collection[str]) -> tuple[Unit, ...]:
    """What is left to run, in the plan's order."""
    return tuple(unit for unit in plan.units if unit.key not in committed)


def runs_of(store: Store) -> tuple[RunFacts, ...]:
    """The runs that left something in an output, the oldest first."""
    keys = {item.key for item in store.list(RUNS_FOLDER)}
    names = sorted({key.removeprefix(f"{RUNS_FOLDER}/").split("/")[0] for key in keys})
    return tuple(
        RunFacts(
            name,
            json.loads(store.read(f"{run_folder(name)}/{SUMMARY_NAME}"))
            if f"{run_folder(name)}/{SUMMARY_NAME}" in keys
            else None,
        )
        for name in names
    )
