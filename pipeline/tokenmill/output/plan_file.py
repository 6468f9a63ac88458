"""The plan and the job of an output: the objects `_tokenmill/plan.parquet` and `job.yaml`."""

from collections.abc import Collection, Sequence
from contextlib import suppress

from tokenmill.errors import RunFailed, UserError
from tokenmill.job.job import Job, differing_fields
from tokenmill.job.loader import stored_job
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.plan.keys import PLAN_KEY, is_by_product
from tokenmill.plan.plan import Plan, plan_from_bytes, plan_to_bytes
from tokenmill.storage.base import Store

JOB_KEY = "_tokenmill/job.yaml"


def read_job(store: Store, overrides: Sequence[str] = ()) -> Job:
    """The job stored in an output, with overrides applied.

    Raises `UserError` if it is missing or invalid.
    """
    try:
        text = store.read(JOB_KEY).decode()
    except FileNotFoundError as error:
        raise UserError(
            f"{store.url}/{JOB_KEY} is missing; run the job again to restore it"
        ) from error
    return stored_job(text, f"{store.url}/{JOB_KEY}", overrides)


def read_plan(store: Store) -> Plan | None:
    """The plan stored in an output; None if there is none. Raises `UserError` if it is invalid."""
    try:
        data = store.read(PLAN_KEY)
    except FileNotFoundError:
        return None
    return plan_from_bytes(data, f"{store.url}/{PLAN_KEY}")


def check_same_job(store: Store, plan: Plan, job: Job) -> None:
    """Raise `UserError` with the differing fields if the plan was made for another job."""
    if plan.fingerprint == job.fingerprint:
        return
    fields = ", ".join(differing_fields(plan.answer_fields, job.answer_fields))
    raise UserError(
        f"{store.url} holds the output of another job; these fields differ: {fields}. "
        "Change them back, or set another output.path"
    )


def check_no_foreign_files(store: Store) -> None:
    """Raise `UserError` if a folder without a plan holds more than a file manager's files."""
    first = next((item for item in store.list() if not is_by_product(item.key)), None)
    if first is not None:
        raise UserError(
            f"{store.url} is not empty and not a tokenmill output (it contains "
            f"{first.key or 'an object with the same name'}); set output.path to a new folder"
        )


def replace_plan(store: Store, plan: Plan, job: Job) -> Plan:
    """Overwrite the plan and the job of an output that has no committed units."""
    store.replace(PLAN_KEY, plan_to_bytes(plan))
    _write_job(store, job)
    return plan


def extend_plan(store: Store, plan: Plan, version: str, dropped: Collection[str]) -> bool:
    """Replace the plan if it still has this `version`; False if another driver replaced it first.

    The output is unfinished from now on. The objects of `dropped` keys are deleted before the plan
    is replaced: a crash in between leaves units that are missing, but never an object that the new
    plan would take for another unit's.
    """
    store.delete(SUCCESS_KEY)
    for key in dropped:
        store.delete(key)
    return store.put_if_match(PLAN_KEY, plan_to_bytes(plan), version)


def publish_plan(store: Store, plan: Plan, job: Job) -> tuple[Plan, bool]:
    """Write the plan unless one exists.

    Returns the plan that the output then has, and whether this call wrote it. Raises `UserError` if
    the existing plan was made for another job.
    """
    is_first = store.put_if_absent(PLAN_KEY, plan_to_bytes(plan))
    if not is_first:
        existing = read_plan(store)
        if existing is None:
            raise RunFailed(
                f"{store.url}/{PLAN_KEY} was deleted during the run; run the command again"
            )
        check_same_job(store, existing, job)
        plan = existing
    _write_job(store, job)
    return plan, is_first


def update_job(store: Store, job: Job) -> None:
    """Write the job unless the output already holds the same text.

    It may be missing, because a driver crashed after it wrote the plan; or it may differ in fields
    that change no answer.
    """
    with suppress(FileNotFoundError):
        if store.read(JOB_KEY) == _job_text(job):
            return
    _write_job(store, job)


def _write_job(store: Store, job: Job) -> None:
    store.replace(JOB_KEY, _job_text(job))


def _job_text(job: Job) -> bytes:
    return f"# fingerprint: {job.fingerprint}\n{job.to_yaml()}".encode()
