"""Checks of a job before a run, without its input or output, Ray or an engine."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from tokenmill.config.model_source import ModelSource
from tokenmill.engine.fake import fake_settings
from tokenmill.engine.vllm_params import check_argument_names
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.models.adapters import check_adapters
from tokenmill.models.fetch import check_source
from tokenmill.models.quantization import check_not_gguf, check_on_cpu
from tokenmill.output.schema import added_fields, output_schema
from tokenmill.storage.open import split_url
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.row_tasks import input_columns


def check_job(job: Job) -> None:
    """Check what needs no input, output, Ray or engine. Raises `UserError`."""
    names = output_schema(pa.schema([]), added_fields(job)).names
    taken = sorted(set(names).intersection(job.input.keep))
    if taken:
        raise UserError(
            f"input.keep: {taken[0]} is also the name of an output column; rename the input column"
        )
    if len(set(job.input.keep)) != len(job.input.keep):
        raise UserError("input.keep: a column is listed twice")
    steps = job.steps
    _check_cleaned(job, steps)
    if job.output.publish is not None:
        split_url(job.output.publish)
    models = models_by_key(job)
    for key, model in models.items():
        check_not_gguf(model, key)
        check_source(model)
        if model.is_fake:
            fake_settings(model.engine, key)
    if not job.model.is_fake:
        check_adapters(job.model.adapters)
    engines = {f"{key}.engine": model.engine for key, model in models.items() if not model.is_fake}
    if engines:
        samplings = dict(sampling for step in steps for sampling in _samplings(step))
        check_argument_names(engines, samplings)


def _samplings(step: TaskStep[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The step's sampling parameters, each with its key in the job."""
    section, final = step.section, step.final
    if section.sampling:
        yield f"{step.key_prefix}sampling", section.sampling
    if section.retries is not None:
        yield f"{step.key_prefix}retries.sampling", section.retries.sampling
    if final is not None and final.section.sampling:
        yield f"{final.prompt_prefix}sampling", final.section.sampling


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
    """Check that this machine, which has no GPU, can run the models. Raises `UserError`."""
    for key, model in models_by_key(job).items():
        check_on_cpu(model, key)


def models_by_key(job: Job) -> dict[str, ModelSource]:
    """The job's models by their keys."""
    auxiliary = {key: model.source for key, model in job.auxiliary_models.items()}
    return {"model": job.model, **auxiliary}
