"""An output's folder: what stands in it, what is still missing, and when it is finished.

data/…/rows-….parquet            one object a unit
_tokenmill/plan.parquet          the plan; it decides what this is the output of
_tokenmill/job.yaml              the resolved job, for people
_tokenmill/runs/<run>/…          each run's summary and events, and a sign of life while it runs
_SUCCESS                         written last, when all units are committed and verified
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import UnitRecord, read_record, record_from
from pipeline.errors import RunFailed, UserError
from pipeline.job import Job, differing_fields
from pipeline.job_file import stored_job
from pipeline.plan import UNIT_KEY, Plan, Unit, plan_from_bytes, plan_to_bytes
from pipeline.source import Source
from pipeline.store import Store, open_store

PLAN_KEY = "_tokenmill/plan.parquet"
JOB_KEY = "_tokenmill/job.yaml"
SUCCESS_KEY = "_SUCCESS"
RUNS_FOLDER = "_tokenmill/runs"
#: In a run's folder, written when it ends, however it ends.
SUMMARY_NAME = "summary.json"
#: Rows that are in memory as Python's objects at most.
BATCH_ROWS = 2048

# Reading footers is waiting for the store.
_FOOTER_THREADS = 32


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all committed units of an output, whichever run made them."""

    units: int
    rows: int
    filtered: int
    rejects: Mapping[str, int]
    input_tokens: int
    generated_tokens: int

    @property
    def rejected(self) -> int:
        """Rows without an answer."""
        return sum(self.rejects.values())

    @property
    def reject_rate(self) -> float:
        """Rejected rows as a share of the output's rows."""
        return self.rejected / self.rows if self.rows else 0.0


def run_folder(run: str) -> str:
    """Where a run leaves what it has to say."""
    return f"{RUNS_FOLDER}/{run}"


def totals_of(records: Collection[UnitRecord]) -> Totals:
    """The sums over units' records."""
    rejects: Counter[str] = Counter()
    for record in records:
        rejects.update(record.rejects)
    return Totals(
        units=len(records),
        rows=sum(record.num_rows for record in records),
        filtered=sum(record.num_filtered for record in records),
        rejects=dict(sorted(rejects.items())),
        input_tokens=sum(record.input_tokens for record in records),
        generated_tokens=sum(record.generated_tokens for record in records),
    )


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


def open_output(path: str, endpoint_url: str | None = None) -> Opened:
    """The output at a path, with its plan and job. Raises `UserError` if there is none."""
    store = open_store(path, endpoint_url)
    plan = read_plan(store)
    if plan is None:
        raise UserError(f"{store.url}: no output of tokenmill stands here; mend the path")
    job = read_job(store)
    refuse_other_job(store, plan, job)
    return Opened(store, plan, job)


def read_job(store: Store, overrides: Sequence[str] = ()) -> Job:
    """The job that an output holds, with overrides. Raises `UserError`."""
    try:
        text = store.read(JOB_KEY).decode()
    except FileNotFoundError as error:
        raise UserError(f"{store.url}/{JOB_KEY} is gone; run the job again") from error
    return stored_job(text, f"{store.url}/{JOB_KEY}", overrides)


def read_plan(store: Store) -> Plan | None:
    """The plan that stands in an output, if any."""
    try:
        data = store.read(PLAN_KEY)
    except FileNotFoundError:
        return None
    return plan_from_bytes(data, f"{store.url}/{PLAN_KEY}")


def refuse_other_job(store: Store, plan: Plan, job: Job) -> None:
    """Raise `UserError` with the differing fields if the output is another job's."""
    if plan.fingerprint == job.fingerprint:
        return
    fields = ", ".join(differing_fields(plan.answer_fields, job.answer_fields))
    raise UserError(
        f"{store.url} holds the output of another job; these differ: {fields}. "
        "Change them back, or write to another output.path"
    )


def refuse_foreign_files(store: Store) -> None:
    """Raise `UserError` if a folder without a plan has something in it."""
    first = next(iter(store.list()), None)
    if first is not None:
        raise UserError(
            f"{store.url} is not empty and not an output of tokenmill (it holds "
            f"{first.key or 'an object of its own name'}); use a new folder"
        )


def has_results(store: Store) -> bool:
    """Whether any unit is committed, of whatever plan."""
    return next(iter(store.list("data")), None) is not None


def replace_plan(store: Store, plan: Plan, job: Job) -> Plan:
    """Put a plan in the place of one of which nothing was ever committed."""
    store.replace(PLAN_KEY, plan_to_bytes(plan))
    _write_job(store, job)
    return plan


def extend_plan(store: Store, plan: Plan, version: str, dropped: Collection[str]) -> bool:
    """Put a plan in the place of the one of this `version`: False if there is another by now.

    The output is unfinished from now on. The objects of `dropped` keys go first: a death in between
    leaves units that are missing, never one that is taken for another's.
    """
    store.delete(SUCCESS_KEY)
    for key in dropped:
        store.delete(key)
    return store.exchange(PLAN_KEY, plan_to_bytes(plan), version)


def publish_plan(store: Store, plan: Plan, job: Job) -> Plan:
    """Write the plan if there is none yet; the plan that stands, ours or a faster driver's."""
    if not store.create(PLAN_KEY, plan_to_bytes(plan)):
        standing = read_plan(store)
        if standing is None:
            raise RunFailed(f"{store.url}/{PLAN_KEY} was there and is gone; run the command again")
        refuse_other_job(store, standing, job)
        plan = standing
    _write_job(store, job)
    return plan


def keep_job(store: Store, job: Job) -> None:
    """Write the job beside its plan unless it stands there.

    A driver may have died between the two, and fields that change no answer may differ by now.
    """
    with suppress(FileNotFoundError):
        if store.read(JOB_KEY) == _job_text(job):
            return
    _write_job(store, job)


def _write_job(store: Store, job: Job) -> None:
    store.replace(JOB_KEY, _job_text(job))


def _job_text(job: Job) -> bytes:
    return f"# fingerprint: {job.fingerprint}\n{job.to_yaml()}".encode()


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


def read_success(store: Store) -> Totals | None:
    """The totals of a finished output; None if it is not finished."""
    try:
        return Totals(**json.loads(store.read(SUCCESS_KEY)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # Some other tool's marker: the run verifies and writes ours.
        return None


def write_success(store: Store, totals: Totals) -> None:
    """Mark the output as finished: the last write of its last run."""
    store.replace(SUCCESS_KEY, (json.dumps(asdict(totals)) + "\n").encode())
