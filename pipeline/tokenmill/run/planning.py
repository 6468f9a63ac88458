"""Before a run: the job held against its input and output, its plan found or made.

Reads the listing and the footers of the input; no row, no Ray, no engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tokenmill.errors import UserError
from tokenmill.hardware import has_local_gpus
from tokenmill.input.footers import read_footers
from tokenmill.input.listing import Listing, check_output_outside, list_input
from tokenmill.input.where import where_columns, where_expression
from tokenmill.job.job import Job
from tokenmill.output.counts import Counts
from tokenmill.output.output import OpenedOutput, committed_keys, has_results, missing_units
from tokenmill.output.plan_file import (
    PLAN_KEY,
    check_no_foreign_files,
    check_same_job,
    extend_plan,
    publish_plan,
    read_plan,
    replace_plan,
    update_job,
)
from tokenmill.output.success import read_success
from tokenmill.plan.diff import changes_since, dropped_keys, extended_plan
from tokenmill.plan.plan import Plan, Unit
from tokenmill.plan.units import first_rows, plan_units, unit_size
from tokenmill.run.checks import check_formats, check_job
from tokenmill.stages.load import resolve
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import input_columns

# A template's words and the chat's marks around a row's text.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A job checked against its input and output: what is planned and what is committed."""

    opened: OpenedOutput
    committed: frozenset[str]
    new_shards: int

    @property
    def missing(self) -> tuple[Unit, ...]:
        """The units that are left to run."""
        return missing_units(self.opened.plan, self.committed)


def finished_before(job: Job, store: Store) -> Counts | None:
    """The totals of an output that this very job has finished; None if there is work to do."""
    plan = read_plan(store)
    totals = None if plan is None else read_success(store)
    if plan is None or totals is None:
        return None
    check_same_job(store, plan, job)
    return None if job.input.follows and _has_moved(job, plan) else totals


def _has_moved(job: Job, plan: Plan) -> bool:
    """Whether the input has shards to be planned, or some that the job does not follow."""
    listing = list_input(job.input.path, job.input.endpoint_url)
    changes = changes_since(plan, listing.objects)
    changes.check(listing.store, job.input.change_policy)
    return bool(changes.to_plan(job.input.change_policy))


def prepare(job: Job, store: Store, has_gpus: bool) -> PreparedRun:
    """Find the output's plan, or make it; hold it against input and output. Raises `UserError`."""
    # Before the listing, or a shard that another night has planned since would look as if gone.
    plan = read_plan(store)
    listing = list_input(job.input.path, job.input.endpoint_url)
    check_output_outside(listing, store.url)
    if plan is None:
        check_no_foreign_files(store)
        plan = publish_plan(store, _make_plan(job, listing, has_gpus), job)
    elif plan.fingerprint == job.fingerprint:
        update_job(store, job)
    else:
        plan = _replan(job, store, plan, _make_plan(job, listing, has_gpus))
    plan, left_out = _follow(job, store, plan, listing, has_gpus)
    return PreparedRun(OpenedOutput(store, plan, job), committed_keys(store, plan), left_out)


def _follow(
    job: Job, store: Store, plan: Plan, listing: Listing, has_gpus: bool
) -> tuple[Plan, int]:
    """The plan with what became of its input, as far as the job follows it; new shards beside it.

    Raises `UserError` for a change that the job does not follow.
    """
    while True:
        changes = changes_since(plan, listing.objects)
        changes.check(listing.store, job.input.change_policy)
        followed = changes.to_plan(job.input.change_policy)
        if not followed:
            return plan, 0 if job.input.limit is not None else len(changes.new)
        # Beside one that is as it was, so that none of the new ones need be readable.
        looked_at = (*followed, *changes.unchanged[:1])
        addition = _make_plan(job, replace(listing, objects=looked_at), has_gpus)
        longer = extended_plan(plan, addition, followed)
        if longer == plan:
            # New shards without a row.
            return plan, 0
        version = store.info(PLAN_KEY).version
        standing = read_plan(store)
        if standing == plan and extend_plan(
            store, longer, version, dropped_keys(plan, changes.changed)
        ):
            plan = longer
        else:
            # Another night's driver was faster, and may have planned what our listing has not.
            plan = standing or plan
            listing = list_input(job.input.path, job.input.endpoint_url)


def _replan(job: Job, store: Store, standing: Plan, plan: Plan) -> Plan:
    """The plan for a job that was changed after a first try; refused once there are results."""
    if has_results(store):
        check_same_job(store, standing, job)
    return replace_plan(store, plan, job)


def plan_ahead(job: Job) -> OpenedOutput:
    """What a run on this machine would begin with in a new output; nothing is written.

    Raises `UserError` for what such a run would refuse.
    """
    check_job(job)
    has_gpus = has_local_gpus()
    if not has_gpus:
        check_formats(job)
    job = resolve(job)
    listing = list_input(job.input.path, job.input.endpoint_url)
    store = open_store(job.output.path, job.output.endpoint_url)
    return OpenedOutput(store, _make_plan(job, listing, has_gpus), job)


def _make_plan(job: Job, listing: Listing, has_gpus: bool) -> Plan:
    read = input_columns(job.steps)
    footers = read_footers(listing, _needed_columns(job, read), frozenset(read))
    if footers.bad and job.input.on_bad_shard == "stop":
        bad = footers.bad[0]
        raise UserError(
            f"{listing.store.url}/{bad.path}: {bad.reason}; mend or remove it, or set "
            f"input.on_bad_shard: skip ({len(footers.bad):,} of {len(listing.objects):,} shards "
            "cannot be used)"
        )
    if job.input.where is not None:
        where_expression(job.input.where, footers.schema)
    limit = job.input.limit
    shards = footers.shards if limit is None else first_rows(footers.shards, limit)
    return Plan(
        input_url=listing.store.url,
        fingerprint=job.fingerprint,
        answer_fields=job.answer_fields,
        schema=footers.schema,
        units=plan_units(shards, unit_size(job.units, has_gpus), _overhead_tokens(job)),
        skipped=footers.bad,
    )


def _needed_columns(job: Job, read: Mapping[str, str]) -> dict[str, str]:
    """Each column that the job needs, and the place that names it; `read` are its tasks'."""
    columns = dict(read)
    if job.input.where is not None:
        columns |= dict.fromkeys(sorted(where_columns(job.input.where)), "input.where")
    return columns | dict.fromkeys(job.input.keep, "input.keep")


def _overhead_tokens(job: Job) -> int:
    """What each row costs beyond its text: the template's own words and the longest answer."""
    templates = [templates for step in job.steps for templates in step.templates.values()]
    sources = [source for item in templates for source in item.sources]
    words = sum(map(len, sources)) // _CHARACTERS_PER_TOKEN
    return words + sum(params.max_tokens or 0 for params in job.params)
