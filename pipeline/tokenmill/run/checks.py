"""What can be refused before a run, without input, output, Ray or engine."""

from collections.abc import Mapping

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
from tokenmill.tasks.row_tasks import input_columns


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
        split_url(job.output.publish)
    models = models_by_key(job)
    for place, model in models.items():
        check_not_gguf(model, place)
        check_source(model)
        if model.is_fake:
            fake_settings(model.engine, place)
    if not job.model.is_fake:
        check_adapters(job.model.adapters)
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
    for place, model in models_by_key(job).items():
        check_on_cpu(model, place)


def models_by_key(job: Job) -> dict[str, ModelSource]:
    """The job's models by their places."""
    return {"model": job.model, **{at: side.source for at, side in job.side_models.items()}}
