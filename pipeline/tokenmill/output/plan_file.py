"""The objects below `_tokenmill/`: the plan, the job, the folders of runs."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from tokenmill.errors import RunFailed, UserError
from tokenmill.job.job import Job, differing_fields
from tokenmill.job.loader import stored_job
from tokenmill.plan.plan import Plan, plan_from_bytes, plan_to_bytes
from tokenmill.storage.base import Store

PLAN_KEY = "_tokenmill/plan.parquet"
JOB_KEY = "_tokenmill/job.yaml"
SUCCESS_KEY = "_SUCCESS"
RUNS_FOLDER = "_tokenmill/runs"
#: In a run's folder, written when it ends, however it ends.
SUMMARY_NAME = "summary.json"


def run_folder(run: str) -> str:
    """Where a run leaves what it has to say."""
    return f"{RUNS_FOLDER}/{run}"


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


def check_same_job(store: Store, plan: Plan, job: Job) -> None:
    """Raise `UserError` with the differing fields if the output is another job's."""
    if plan.fingerprint == job.fingerprint:
        return
    fields = ", ".join(differing_fields(plan.answer_fields, job.answer_fields))
    raise UserError(
        f"{store.url} holds the output of another job; these differ: {fields}. "
        "Change them back, or write to another output.path"
    )


def check_no_foreign_files(store: Store) -> None:
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
    return store.put_if_match(PLAN_KEY, plan_to_bytes(plan), version)


def publish_plan(store: Store, plan: Plan, job: Job) -> Plan:
    """Write the plan if there is none yet; the plan that stands, ours or a faster driver's."""
    if not store.put_if_absent(PLAN_KEY, plan_to_bytes(plan)):
        standing = read_plan(store)
        if standing is None:
            raise RunFailed(f"{store.url}/{PLAN_KEY} was there and is gone; run the command again")
        check_same_job(store, standing, job)
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
