"""An output: its plan and job, its committed and missing units, and their rows.

data/…/rows-….parquet            one object per unit
_tokenmill/plan.parquet          the plan, which decides what this is the output of
_tokenmill/job.yaml              the resolved job, for people
_tokenmill/runs/<run>/…          each run's summary and events, and its heartbeat while it runs
_SUCCESS                         written last, once all units are committed and verified
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.plan_file import check_same_job, read_job, read_plan
from tokenmill.output.record import UnitRecord, record_from
from tokenmill.plan.keys import UNIT_KEY, is_stray
from tokenmill.plan.plan import Plan, Unit
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

#: Largest number of rows that are held as Python objects at a time.
BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class OpenedOutput:
    """An existing output, with its plan and its job."""

    store: Store
    plan: Plan
    job: Job

    @property
    def kept_schema(self) -> pa.Schema:
        """The kept input columns and their types."""
        return pa.schema([self.plan.schema.field(name) for name in self.job.input.keep])

    @property
    def source(self) -> Source:
        """The input, at the URL that the plan recorded."""
        endpoint_url = self.job.input.endpoint_url
        store = open_store(self.plan.input_url, endpoint_url)
        return Source(store, self.plan.schema, self.job.input.where)


def open_output(store: Store) -> OpenedOutput:
    """Open the output in a store. Raises `UserError` if there is none."""
    plan = read_plan(store)
    if plan is None:
        raise UserError(f"No tokenmill output found in {store.url}. Check the path.")
    job = read_job(store)
    check_same_job(store, plan, job)
    return OpenedOutput(store, plan, job)


def has_results(store: Store) -> bool:
    """Whether any unit is committed, of this plan or another."""
    return any(not is_stray(item.key) for item in store.list("data"))


def committed_keys(store: Store, plan: Plan) -> frozenset[str]:
    """The keys of the committed units, from one listing.

    Raises `UserError` for an object below `data/` that does not belong to this plan. Objects that
    other programs write and Parquet readers skip are ignored.
    """
    planned = {unit.key for unit in plan.units}
    committed = frozenset(item.key for item in store.list("data") if not is_stray(item.key))
    for key in sorted(committed - planned):
        is_unit = UNIT_KEY.fullmatch(key) is not None
        problem = "belongs to another plan" if is_unit else "was not written by tokenmill"
        raise UserError(f"{store.url}/{key} {problem}; remove it or use another output")
    return committed


def committed_units(store: Store, plan: Plan) -> tuple[Unit, ...]:
    """The committed units, in the plan's order. Raises `UserError` as `committed_keys` does."""
    committed = committed_keys(store, plan)
    return tuple(unit for unit in plan.units if unit.key in committed)


def missing_units(plan: Plan, committed: Collection[str]) -> tuple[Unit, ...]:
    """The units that are not committed, in the plan's order."""
    return tuple(unit for unit in plan.units if unit.key not in committed)


def batches(store: Store, unit: Unit, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a unit's rows, in batches of at most `BATCH_ROWS` rows."""
    with store.open(unit.key) as file:
        yield from _batches_in(pq.ParquetFile(file), names)


def batches_with_record(
    store: Store, unit: Unit, names: Sequence[str]
) -> Iterator[tuple[UnitRecord, pa.RecordBatch]]:
    """As `batches`, each with the unit's record. Opens the object once."""
    with store.open(unit.key) as file:
        parquet = pq.ParquetFile(file)
        record = record_from(parquet.metadata)
        for batch in _batches_in(parquet, names):
            yield record, batch


def _batches_in(file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    yield from file.iter_batches(BATCH_ROWS, columns=list(names))
