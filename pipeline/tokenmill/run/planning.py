"""Before a run: check the job against its input and output, and read or make its plan.

Reads the listing and the footers of the input, but no row. Starts neither Ray nor an engine.
"""

import random
import time
from collections.abc import Mapping, Sequence
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
    check_no_foreign_files,
    check_same_job,
    extend_plan,
    publish_plan,
    read_plan,
    replace_plan,
    update_job,
)
from tokenmill.output.runs import count_runs
from tokenmill.output.schema import check_columns
from tokenmill.output.status import running_runs
from tokenmill.output.success import read_success
from tokenmill.plan.diff import changes_since, dropped_keys, extended_plan
from tokenmill.plan.keys import PLAN_KEY
from tokenmill.plan.plan import Plan, Unit
from tokenmill.plan.units import first_rows, plan_units, unit_size
from tokenmill.run.checks import check_job, check_without_gpu
from tokenmill.stages.load import resolve
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import input_columns

# An estimate for the text of templates and of the chat format around a row's text.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A job checked against its input and output: its plan, and what is committed.

    `new_shards` counts shards of the input that are not in the plan and are left out. `is_first` if
    this run has made the plan. `notes` say what of the input is not read.
    """

    opened: OpenedOutput
    committed: frozenset[str]
    new_shards: int
    is_first: bool
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[Unit, ...]:
        """The units that are still to run."""
        return missing_units(self.opened.plan, self.committed)

    def in_order(self) -> tuple[Unit, ...]:
        """The missing units in an order in which another run hardly meets this one.

        A unit is skipped if it is committed, so only runs that take the same units at the same time
        do work twice. The first run takes them in the plan's order, a second one begins at the
        end, and any other takes them at random.
        """
        if self.is_first:
            return self.missing
        store = self.opened.store
        num_runs = count_runs(store)
        if num_runs <= 1 and num_runs == len(running_runs(store, time.time())):
            return self.missing[::-1]
        return tuple(random.sample(self.missing, len(self.missing)))


def finished_before(job: Job, store: Store) -> Counts | None:
    """The totals of an output that this job has finished; None if there is work to do.

    Raises `UserError` if the output belongs to another job.
    """
    plan = read_plan(store)
    totals = None if plan is None else read_success(store)
    if plan is None or totals is None:
        return None
    check_same_job(store, plan, job)
    return None if job.input.follows and _has_changes(job, plan) else totals


def _has_changes(job: Job, plan: Plan) -> bool:
    """Whether the input has changed so that shards must be planned.

    Raises `UserError` for changes that the job does not follow.
    """
    listing = list_input(job.input.path, job.input.endpoint_url)
    changes = changes_since(plan, listing.objects)
    changes.check(listing.store, job.input.change_policy)
    return bool(changes.to_plan(job.input.change_policy))


def prepare(job: Job, store: Store, has_gpus: bool) -> PreparedRun:
    """Read the output's plan, or make one, and check it against input and output.

    Raises `UserError` for an input or output that does not fit the job.
    """
    # Before the listing: a shard that another run plans in between would seem to be gone.
    plan = read_plan(store)
    is_first = False
    listing = list_input(job.input.path, job.input.endpoint_url)
    check_output_outside(listing, store.url)
    if plan is None:
        check_no_foreign_files(store)
        plan, is_first = publish_plan(store, _make_plan(job, listing, has_gpus), job)
    elif plan.fingerprint == job.fingerprint:
        update_job(store, job)
    else:
        plan = _replan(job, store, plan, _make_plan(job, listing, has_gpus))
    plan, new_shards = _follow_changes(job, store, plan, listing, has_gpus)
    opened = OpenedOutput(store, plan, job)
    committed = committed_keys(store, plan)
    return PreparedRun(opened, committed, new_shards, is_first, listing.notes)


def _follow_changes(
    job: Job, store: Store, plan: Plan, listing: Listing, has_gpus: bool
) -> tuple[Plan, int]:
    """The plan with the input's changes that the job follows, and the number of shards left out.

    Raises `UserError` for a change that the job does not follow.
    """
    while True:
        changes = changes_since(plan, listing.objects)
        changes.check(listing.store, job.input.change_policy)
        shards = changes.to_plan(job.input.change_policy)
        if not shards:
            return plan, 0 if job.input.limit is not None else len(changes.new)
        # With an unchanged shard, because a plan needs a readable shard and none of the new ones
        # may be readable.
        objects = (*shards, *changes.unchanged[:1])
        kept = plan.schema.names if job.input.keeps_all else job.input.keep
        addition = _make_plan(job, replace(listing, objects=objects), has_gpus, kept)
        extended = extended_plan(plan, addition, shards)
        if extended == plan:
            # The new shards have no rows.
            return plan, 0
        version = store.info(PLAN_KEY).version
        stored = read_plan(store)
        if stored == plan and extend_plan(
            store, extended, version, dropped_keys(plan, changes.changed)
        ):
            plan = extended
        else:
            # Another driver was faster, and may have planned shards that this listing lacks.
            plan = stored or plan
            listing = list_input(job.input.path, job.input.endpoint_url)


def _replan(job: Job, store: Store, stored: Plan, plan: Plan) -> Plan:
    """Replace the stored plan of a job that was changed. Raises `UserError` if it has results."""
    if has_results(store):
        check_same_job(store, stored, job)
    return replace_plan(store, plan, job)


def plan_ahead(job: Job) -> tuple[OpenedOutput, tuple[str, ...]]:
    """The plan of a run on this machine with a new output; nothing is written.

    Also returns notes on what of the input is not read.

    Raises `UserError` for what such a run would refuse.
    """
    check_job(job)
    has_gpus = has_local_gpus()
    if not has_gpus:
        check_without_gpu(job)
    job = resolve(job)
    listing = list_input(job.input.path, job.input.endpoint_url)
    store = open_store(job.output.path, job.output.endpoint_url)
    return OpenedOutput(store, _make_plan(job, listing, has_gpus), job), listing.notes


def _make_plan(
    job: Job, listing: Listing, has_gpus: bool, kept: Sequence[str] | None = None
) -> Plan:
    """Plan the listed shards. `kept` are the columns to keep; by default, those of the job."""
    read_columns = input_columns(job.steps)
    keeps_all = kept is None and job.input.keeps_all
    if kept is None:
        kept = () if keeps_all else job.input.keep
    footers = read_footers(
        listing,
        _needed_columns(job, read_columns, kept),
        frozenset(read_columns),
        keeps_all=keeps_all,
    )
    if keeps_all:
        check_columns(job, footers.schema.names)
    if footers.bad and job.input.on_bad_shard == "stop":
        bad = footers.bad[0]
        raise UserError(
            f"{listing.store.url}/{bad.path}: {bad.reason}; fix or remove it, or set "
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


def _needed_columns(
    job: Job, read_columns: Mapping[str, str], kept: Sequence[str]
) -> dict[str, str]:
    """The columns that the job needs, each with the key that names it.

    `read_columns` are those that its tasks read.
    """
    columns = dict(read_columns)
    if job.input.where is not None:
        columns |= dict.fromkeys(sorted(where_columns(job.input.where)), "input.where")
    return columns | dict.fromkeys(kept, "input.keep")


def _overhead_tokens(job: Job) -> int:
    """Estimated tokens per row in addition to its text: templates and the longest answers."""
    templates = [templates for step in job.steps for templates in step.templates.values()]
    sources = [source for item in templates for source in item.sources]
    template_tokens = sum(map(len, sources)) // _CHARACTERS_PER_TOKEN
    return template_tokens + sum(params.max_tokens or 0 for params in job.params)
