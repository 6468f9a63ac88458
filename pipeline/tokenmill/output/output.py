"""An output: its plan and job, its committed and missing units, and their rows.

data/…/rows-….parquet            one object per unit
_tokenmill/plan.parquet          the plan, which decides what this is the output of
_tokenmill/job.yaml              the resolved job, for people
_tokenmill/runs/<run>/…          each run's summary and events, and its heartbeat while it runs
_SUCCESS                         written last, once all units are committed and verified
"""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import UserError
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.plan_file import check_same_job, read_job, read_plan
from tokenmill.output.record import UnitRecord, record_from
from tokenmill.plan.keys import UNIT_KEY, is_stray
from tokenmill.plan.plan import Plan, Unit
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import open_store

#: Largest number of rows that are held as Python objects at a time.
BATCH_ROWS = 2048
# Objects that are read together; a larger one is read when its turn comes. While their rows are
# used, as many more are read, so that they take at most 64 MiB.
_AHEAD_OBJECTS = 64
_AHEAD_BYTES = 2**25


@dataclass(frozen=True, slots=True)
class OpenedOutput:
    """An existing output, with its plan and its job."""

    store: Store
    plan: Plan
    job: Job

    @property
    def kept_schema(self) -> pa.Schema:
        """The kept input columns and their types."""
        if self.job.input.keeps_all:
            return self.plan.schema
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
    """The keys of the committed units. Raises as `committed_objects`."""
    return frozenset(committed_objects(store, plan))


def committed_objects(store: Store, plan: Plan) -> dict[str, ObjectInfo]:
    """The objects of the committed units by their keys, from one listing.

    Raises `UserError` for an object below `data/` that does not belong to this plan. Objects that
    other programs write and Parquet readers skip are ignored.
    """
    planned = {unit.key for unit in plan.units}
    committed = {item.key: item for item in store.list("data") if not is_stray(item.key)}
    for key in sorted(committed.keys() - planned):
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


def all_batches(
    opened: OpenedOutput, units: Iterable[ObjectInfo], names: Sequence[str]
) -> Iterator[tuple[UnitRecord, pa.RecordBatch]]:
    """Some columns of several units' rows, in order and as `batches`, each with its unit's record.

    Small objects are read ahead, so that a store's latency is not paid unit by unit. Raises
    `UserError` for a damaged object.
    """
    for unit, open_object in _opened_ahead(opened.store, units):
        try:
            with open_object() as file:
                parquet = pq.ParquetFile(file)
                record = record_from(parquet.metadata)
                for batch in _batches_in(parquet, names):
                    yield record, batch
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            # Arrow raises OSError for bytes that it cannot decompress.
            reason = " ".join(str(error).split())
            raise UserError(
                f"{opened.store.url}/{unit.key}: {reason}; run tokenmill verify to find all damage"
            ) from error


def _opened_ahead(
    store: Store, objects: Iterable[ObjectInfo]
) -> Iterator[tuple[ObjectInfo, Callable[[], BinaryIO]]]:
    """Each object, in order, with a function that opens it. The next ones are read meanwhile."""

    def read(together: Sequence[ObjectInfo]) -> list[tuple[ObjectInfo, Callable[[], BinaryIO]]]:
        small = [item for item in together if item.size <= _AHEAD_BYTES]
        data = iter(store.read_ends(small, _AHEAD_BYTES))
        return [
            (
                item,
                partial(io.BytesIO, next(data))
                if item.size <= _AHEAD_BYTES
                else partial(store.open, item.key),
            )
            for item in together
        ]

    with ThreadPoolExecutor(1) as pool:
        current: Future[list[tuple[ObjectInfo, Callable[[], BinaryIO]]]] | None = None
        for together in _read_together(objects):
            following = pool.submit(read, together)
            if current is not None:
                yield from current.result()
            current = following
        if current is not None:
            yield from current.result()


def _read_together(objects: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    """The objects in runs of at most `_AHEAD_OBJECTS` and `_AHEAD_BYTES`, or of one larger one."""
    together: list[ObjectInfo] = []
    num_bytes = 0
    for item in objects:
        if together and (len(together) == _AHEAD_OBJECTS or num_bytes + item.size > _AHEAD_BYTES):
            yield together
            together, num_bytes = [], 0
        together.append(item)
        num_bytes += item.size
    if together:
        yield together


def _batches_in(file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    yield from file.iter_batches(BATCH_ROWS, columns=list(names))
