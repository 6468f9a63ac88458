"""An output's folder: what stands in it, what is still missing, and when it is finished.

data/…/rows-….parquet            one object a unit
_tokenmill/plan.parquet          the plan; it decides what this is the output of
_tokenmill/job.yaml              the resolved job, for people
_tokenmill/runs/<run>/…          each run's summary and events
_SUCCESS                         written last, when all units are committed and verified
"""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pipeline.commit import UnitRecord, read_record
from pipeline.errors import RunFailed, UserError
from pipeline.job import Job, differing_fields
from pipeline.plan import UNIT_KEY, Plan, Unit, plan_from_bytes, plan_to_bytes
from pipeline.store import Store

PLAN_KEY = "_tokenmill/plan.parquet"
JOB_KEY = "_tokenmill/job.yaml"
SUCCESS_KEY = "_SUCCESS"

# Reading footers is waiting for the store.
_VERIFY_THREADS = 32


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all committed units of an output, whichever run made them."""

    units: int
    rows: int
    rejected: int
    filtered: int
    input_tokens: int
    generated_tokens: int

    @property
    def reject_rate(self) -> float:
        """Rejected rows as a share of the output's rows."""
        return self.rejected / self.rows if self.rows else 0.0


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
            f"{store.url} is not empty and not an output of tokenmill (it holds {first.key}); "
            "use a new folder"
        )


def has_results(store: Store) -> bool:
    """Whether any unit is committed, of whatever plan."""
    return next(iter(store.list("data")), None) is not None


def replace_plan(store: Store, plan: Plan, job: Job) -> Plan:
    """Put a plan in the place of one of which nothing was ever committed."""
    store.replace(PLAN_KEY, plan_to_bytes(plan))
    _write_job(store, job)
    return plan


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


def _write_job(store: Store, job: Job) -> None:
    store.replace(JOB_KEY, f"# fingerprint: {job.fingerprint}\n{job.to_yaml()}".encode())


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


def missing_units(plan: Plan, committed: Collection[str]) -> tuple[Unit, ...]:
    """What is left to run, in the plan's order."""
    return tuple(unit for unit in plan.units if unit.key not in committed)


def verify(store: Store, plan: Plan) -> Totals:
    """Prove from the objects that every planned row is accounted for, and count.

    Each unit's object is there, names this unit and this job, and its rows and filtered rows add up
    to the unit's. Raises `RunFailed` for a unit that is missing, `UserError` for one that is wrong.
    """
    missing = missing_units(plan, committed_keys(store, plan))
    if missing:
        raise RunFailed(
            f"{store.url}: {len(missing):,} units are missing, first {missing[0].key}; "
            "run the command again"
        )
    with ThreadPoolExecutor(_VERIFY_THREADS) as pool:
        records = list(pool.map(lambda unit: _verified_record(store, plan, unit), plan.units))
    return Totals(
        units=len(records),
        rows=sum(record.num_rows for record in records),
        rejected=sum(record.num_rejected for record in records),
        filtered=sum(record.num_filtered for record in records),
        input_tokens=sum(record.input_tokens for record in records),
        generated_tokens=sum(record.generated_tokens for record in records),
    )


def _verified_record(store: Store, plan: Plan, unit: Unit) -> UnitRecord:
    record = read_record(store, unit.key)
    if record.fingerprint != plan.fingerprint:
        raise UserError(f"{store.url}/{unit.key}: belongs to another job; remove it and run again")
    accounted = record.num_rows + record.num_filtered
    if (record.unit, accounted) != (unit.key, unit.num_rows):
        raise UserError(
            f"{store.url}/{unit.key}: does not fit the plan (unit {record.unit}, "
            f"{accounted:,} rows accounted for of {unit.num_rows:,}); remove it and run again"
        )
    return record


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
