"""Before a run: the job held against its input and output, its plan found or made.

Reads the listing and the footers of the input; no row, no Ray, no engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.adapters import check_adapters
from pipeline.columns import added_fields, output_schema
from pipeline.engine import check_argument_names, has_local_gpus
from pipeline.errors import UserError
from pipeline.fake import fake_settings
from pipeline.growth import changes_since, dropped_keys, grown
from pipeline.job import Job, Units
from pipeline.models import check_source
from pipeline.output import (
    PLAN_KEY,
    Opened,
    Totals,
    committed_keys,
    extend_plan,
    has_results,
    keep_job,
    missing_units,
    publish_plan,
    read_plan,
    read_success,
    refuse_foreign_files,
    refuse_other_job,
    replace_plan,
)
from pipeline.plan import Plan, Unit, UnitSize, first_rows, plan_units
from pipeline.quantized import check_on_cpu, refuse_gguf_file
from pipeline.section import ModelSource
from pipeline.shards import Listing, list_input, read_footers, refuse_output_inside
from pipeline.store import Store, open_store, split_place
from pipeline.tasks.row import input_columns
from pipeline.tools import resolve
from pipeline.where import where_columns, where_expression

# About a minute of one replica: 300 tokens a second on two cores, some 20,000 on a large GPU.
_UNIT_TOKENS_CPU = 16_384
_UNIT_TOKENS_GPU = 1_000_000
# A template's words and the chat's marks around a row's text.
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job checked against its input and output: what is planned and what is committed."""

    opened: Opened
    committed: frozenset[str]
    new_shards: int

    @property
    def missing(self) -> tuple[Unit, ...]:
        """The units that are left to run."""
        return missing_units(self.opened.plan, self.committed)


def check_job(job: Job) -> None:
    """What can be refused without the input, the output, Ray or an engine. Raises `UserError`."""
    names = output_schema(pa.schema([]), added_fields(job)).names
    taken = sorted(set(names).intersection(job.input.keep))
    if taken:
        raise UserError(
            f"input.keep: {taken[0]} is the name of an output column; rename the input's column"
        )
    if len(set(job.input.keep)) != len(job.input.keep):
        raise UserError("input.keep: a column stands twice")
    _check_cleaned(job, input_columns(job.steps))
    if job.output.publish is not None:
        split_place(job.output.publish)
    models = models_by_place(job)
    for place, model in models.items():
        refuse_gguf_file(model, place)
        check_source(model)
        if model.is_fake:
            fake_settings(model.engine, place)
    check_adapters(job.model)
    real = {f"{at}.engine": model.engine for at, model in models.items() if not model.is_fake}
    if real:
        check_argument_names(
            real,
            {f"{step.place}sampling": step.sampling for step in job.steps if step.sampling}
            | {
                f"{step.place}retries.sampling": step.retries.sampling
                for step in job.steps
                if step.retries
            }
            | {
                f"{step.place}length.join.sampling": step.final.sampling
                for step in job.steps
                if step.final is not None and step.final.sampling
            },
        )


def _check_cleaned(job: Job, read: Mapping[str, str]) -> None:
    """Refuse to clean what no task reads, or what answers have places in."""
    for column in () if job.clean is None else job.clean.columns:
        if column not in read:
            raise UserError(
                f"clean.columns: no prompt uses {column}; they use {', '.join(sorted(read))}"
            )
        for step in job.steps:
            if step.located_column == column:
                raise UserError(
                    f"clean.columns: {step.place_of('locate')} gives places in {column}, which "
                    "would be those in its clean text; leave it out"
                )


def check_formats(job: Job) -> None:
    """Refuse models on this machine, without a GPU, that it cannot run. Raises `UserError`."""
    for place, model in models_by_place(job).items():
        check_on_cpu(model, place)


def models_by_place(job: Job) -> dict[str, ModelSource]:
    """The job's models by their places."""
    return {"model": job.model, **{at: side.source for at, side in job.side_models.items()}}


def finished_before(job: Job, store: Store) -> Totals | None:
    """The totals of an output that this very job has finished; None if there is work to do."""
    plan = read_plan(store)
    totals = None if plan is None else read_success(store)
    if plan is None or totals is None:
        return None
    refuse_other_job(store, plan, job)
    return None if job.input.follows and _has_moved(job, plan) else totals


def _has_moved(job: Job, plan: Plan) -> bool:
    """Whether the input has shards to be planned, or some that the job does not follow."""
    listing = list_input(job.input.path, job.input.endpoint_url)
    changes = changes_since(plan, listing.objects)
    changes.refuse(listing.store, job.input)
    return bool(changes.followed(job.input))


def prepare(job: Job, store: Store, has_gpus: bool) -> Prepared:
    """Find the output's plan, or make it; hold it against input and output. Raises `UserError`."""
    # Before the listing, or a shard that another night has planned since would look as if gone.
    plan = read_plan(store)
    listing = list_input(job.input.path, job.input.endpoint_url)
    refuse_output_inside(listing, store.url)
    if plan is None:
        refuse_foreign_files(store)
        plan = publish_plan(store, _make_plan(job, listing, has_gpus), job)
    elif plan.fingerprint == job.fingerprint:
        keep_job(store, job)
    else:
        plan = _replan(job, store, plan, _make_plan(job, listing, has_gpus))
    plan, left_out = _follow(job, store, plan, listing, has_gpus)
    return Prepared(Opened(store, plan, job), committed_keys(store, plan), left_out)


def _follow(
    job: Job, store: Store, plan: Plan, listing: Listing, has_gpus: bool
) -> tuple[Plan, int]:
    """The plan with what became of its input, as far as the job follows it; new shards beside it.

    Raises `UserError` for a change that the job does not follow.
    """
    while True:
        changes = changes_since(plan, listing.objects)
        changes.refuse(listing.store, job.input)
        followed = changes.followed(job.input)
        if not followed:
            return plan, 0 if job.input.limit is not None else len(changes.new)
        # Beside one that is as it was, so that none of the new ones need be readable.
        looked_at = (*followed, *changes.unchanged[:1])
        addition = _make_plan(job, replace(listing, objects=looked_at), has_gpus)
        longer = grown(plan, addition, followed)
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
        refuse_other_job(store, standing, job)
    return replace_plan(store, plan, job)


def look_ahead(job: Job) -> Opened:
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
    return Opened(store, _make_plan(job, listing, has_gpus), job)


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
        units=plan_units(shards, _unit_size(job.units, has_gpus), _overhead_tokens(job)),
        skipped=footers.bad,
    )


def _needed_columns(job: Job, read: Mapping[str, str]) -> dict[str, str]:
    """Each column that the job needs, and the place that names it; `read` are its tasks'."""
    columns = dict(read)
    if job.input.where is not None:
        columns |= dict.fromkeys(sorted(where_columns(job.input.where)), "input.where")
    return columns | dict.fromkeys(job.input.keep, "input.keep")


def _unit_size(units: Units | None, has_gpus: bool) -> UnitSize:
    if units is None:
        return UnitSize(tokens=_UNIT_TOKENS_GPU if has_gpus else _UNIT_TOKENS_CPU)
    return UnitSize(rows=units.rows, tokens=units.tokens)


def _overhead_tokens(job: Job) -> int:
    """What each row costs beyond its text: the template's own words and the longest answer."""
    templates = [text for step in job.steps for text in step.templates.values()]
    words = sum(len(template) for template in templates) // _CHARACTERS_PER_TOKEN
    return words + sum(params.max_tokens or 0 for params in job.params)
