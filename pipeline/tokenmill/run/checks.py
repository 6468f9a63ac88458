"""Checks of a job that need neither its input nor its output, and neither Ray nor an engine."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.input.where import where_columns
from tokenmill.job.job import Job
from tokenmill.models.code_safety import trusts_code
from tokenmill.output.schema import check_columns
from tokenmill.prompt.without_torch import without_torch
from tokenmill.reject import Reject
from tokenmill.request import Params
from tokenmill.row_columns import INTERNAL_PREFIX
from tokenmill.stages.backend import backend_of
from tokenmill.stages.load import load_context
from tokenmill.storage.open import split_url
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.multimodal.media_section import MediaSection
from tokenmill.tasks.row_tasks import RowTasks, input_columns
from tokenmill.tasks.task import TaskContext


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


def check_params(job: Job) -> None:
    """Check the parameters of the tasks' requests by vLLM's own classes. Raises `UserError`.

    Takes half a second a model.
    """
    groups: dict[str, dict[str, Sequence[Params]]] = {}
    for step in job.steps:
        group = groups.setdefault(step.model_key or "model", {})
        group[f"{step.key_prefix}sampling"] = step.params
        if step.final is not None:
            group[f"{step.final.prompt_prefix}sampling"] = step.final.params
    models = models_by_key(job)
    for key, params in groups.items():
        backend_of(models[key], key).check_params(params)


def check_tasks(job: Job) -> None:
    """Build the tasks of a job whose models are on this machine, and check their chat templates.

    Raises `UserError`.
    """
    runs_code = any(trusts_code(model) for model in models_by_key(job).values())
    with nullcontext() if runs_code else without_torch():
        context = load_context(job)
        RowTasks(job.steps, context)
        for step in job.steps:
            for asked in (step, step.final):
                if asked is not None and asked.kind.asks_by_prompt:
                    _check_chat_template(asked, context)


def _check_chat_template(step: TaskStep[Any], context: TaskContext) -> None:
    """Check that the model has a chat template that takes the roles of the step's prompt."""
    if step.prompt.text is not None:
        return
    side = context if step.model_key is None else context.auxiliary[step.model_key]
    roles = [turn.role for turn in step.prompt.turns] or ["user"]
    (chat,) = side.tokenizer.render_chats([[(role, "x") for role in roles]])
    # A template for media expects other contents, and a whole chat has roles of its own.
    is_plain = step.prompt.chat is None and not isinstance(step.section, MediaSection)
    if isinstance(chat, Reject) and is_plain:
        raise UserError(
            f"{step.prompt_prefix}prompt: the model's chat template refuses the roles "
            f"{', '.join(roles)}: {chat.message}"
        )


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


def check_without_gpu(job: Job) -> None:
    """Refuse what this machine, without a GPU, cannot run. Raises `UserError`."""
    pooling = {key for key, side in job.auxiliary_models.items() if side.runner == "pooling"}
    for key, model in models_by_key(job).items():
        backend_of(model, key).check_on_cpu(uses_seeds=job.uses_seeds and key not in pooling)


def models_by_key(job: Job) -> dict[str, ModelSource]:
    """The job's models, by their keys in the job."""
    return {"model": job.model} | {key: side.source for key, side in job.auxiliary_models.items()}
