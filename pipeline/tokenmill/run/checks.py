"""Checks of a job that need neither its input nor its output, and neither Ray nor an engine."""

from collections.abc import Iterator, Sequence
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.input.where import where_columns
from tokenmill.job.job import Job
from tokenmill.output.schema import check_columns
from tokenmill.row_columns import INTERNAL_PREFIX
from tokenmill.stages.backend import backend_of
from tokenmill.storage.open import split_url
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.row_tasks import input_columns


def check_job(job: Job) -> None:
    """Check what needs no input, output, Ray or engine. Raises `UserError`."""
    # The columns of `*` are checked when the input's are known.
    check_columns(job, () if job.input.keeps_all else job.input.keep)
    _check_read_columns(job)
    _check_cleaned(job, job.steps)
    if job.output.publish is not None:
        split_url(job.output.publish)
    sampling = dict(sampling for step in job.steps for sampling in _samplings(step))
    for key, model in models_by_key(job).items():
        backend = backend_of(model, key)
        backend.check(job.model.adapters if key == "model" else {})
        backend.check_sampling(sampling)


def _samplings(step: TaskStep[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The step's sampling parameters, each with its key in the job."""
    section, final = step.section, step.final
    if section.sampling:
        yield f"{step.key_prefix}sampling", section.sampling
    if section.retries is not None:
        yield f"{step.key_prefix}retries.sampling", section.retries.sampling
    if final is not None and final.section.sampling:
        yield f"{final.prompt_prefix}sampling", final.section.sampling


def _check_read_columns(job: Job) -> None:
    """Refuse input columns that have the name of a column that accompanies them in memory."""
    columns = input_columns(job.steps)
    if job.input.where is not None:
        columns |= dict.fromkeys(where_columns(job.input.where), "input.where")
    for name, key in columns.items():
        if name.startswith(INTERNAL_PREFIX):
            raise UserError(
                f"{key}: {name} begins with {INTERNAL_PREFIX}, which tokenmill reserves for its "
                "own columns; rename the column in the input"
            )


def _check_cleaned(job: Job, steps: Sequence[TaskStep[Any]]) -> None:
    """Check that tasks read the cleaned columns, and that no answer has offsets in them."""
    columns = input_columns(steps)
    for column in () if job.clean is None else job.clean.columns:
        if column not in columns:
            raise UserError(
                f"clean.columns: no task reads {column}; tasks read {', '.join(sorted(columns))}"
            )
        for step in steps:
            if step.located_column == column:
                raise UserError(
                    f"clean.columns: {step.key_of('locate')} returns offsets in {column}, which "
                    "would refer to its cleaned text; remove one of them"
                )


def check_formats(job: Job) -> None:
    """Refuse models on this machine, without a GPU, that it cannot run. Raises `UserError`."""
    for key, model in models_by_key(job).items():
        backend_of(model, key).check_on_cpu()


def models_by_key(job: Job) -> dict[str, ModelSource]:
    """The job's models, by their keys in the job."""
    return {"model": job.model} | {key: side.source for key, side in job.auxiliary_models.items()}
