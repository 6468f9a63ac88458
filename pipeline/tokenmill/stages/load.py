"""A job's tasks, built with the tokenizers, contexts and configs of its models."""

import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.engine.base import Engine, EngineResources
from tokenmill.engine.fake import FakeEngine, fake_config, fake_settings
from tokenmill.engine.multi_model import MultiModelEngine, memory_shares
from tokenmill.engine.vllm import VllmEngine
from tokenmill.engine.vllm_start import load_vllm
from tokenmill.job.job import Job
from tokenmill.models.adapters import adapter_arguments, fetch_adapters
from tokenmill.models.code_safety import check_not_pickled, trusts_code
from tokenmill.models.config import max_model_len, read_config
from tokenmill.models.fetch import fetch_config, fetch_model
from tokenmill.models.quantization import cpu_arguments
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import ModelTokenizer
from tokenmill.storage.base import Store
from tokenmill.tasks.kinds import step_of
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import AuxiliaryModel, Runner, TaskContext

# Python's own 700 are the rows of a moment: each look goes through the token lists of all of them.
_YOUNG_OBJECTS = 10_000


def collect_seldom() -> None:
    """Look for circles of garbage less often, and never at what is loaded by now.

    Rows leave none behind. Looking for them took two fifths of a row's time (`python -m bench
    null`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def load_engine(job: Job, share: EngineResources) -> Engine:
    """The engine that the job asks for, started. Raises `UserError`."""
    beside = job.auxiliary_models
    # Tasks that name the same model share its engine: the first place loads it.
    first = {
        place: next(at for at, other in beside.items() if other == side)
        for place, side in beside.items()
    }
    distinct = {at: side for at, side in beside.items() if first[at] == at}
    memory = memory_shares(
        job.model.engine, {at: side.source.engine for at, side in distinct.items()}
    )
    engine = _load_own(job, replace(share, gpu_memory=memory[None]))
    if not beside:
        return engine
    loaded = {
        at: _load_beside(job, side, at, replace(share, gpu_memory=memory[at]))
        for at, side in distinct.items()
    }
    return MultiModelEngine(engine, {place: loaded[at] for place, at in first.items()})


def _load_own(job: Job, share: EngineResources) -> Engine:
    model = job.model
    if model.is_fake:
        return FakeEngine(fake_settings(model.engine))
    adapters = fetch_adapters(model.adapters)
    arguments = adapter_arguments(adapters, model.engine, on_cpu=not share.num_gpus)
    engine = _load_real(job, AuxiliaryModel(model, job.runner), "model", arguments, share)
    engine.load_adapters(adapters)
    return engine


def _load_beside(job: Job, side: AuxiliaryModel, place: str, share: EngineResources) -> Engine:
    if side.source.is_fake:
        return FakeEngine(fake_settings(side.source.engine, place))
    return _load_real(job, side, place, side.source.engine, share)


def _load_real(
    job: Job, side: AuxiliaryModel, place: str, arguments: Mapping[str, Any], share: EngineResources
) -> VllmEngine:
    folder = fetch_model(side.source)
    if not share.num_gpus:
        arguments = cpu_arguments(read_config(folder), arguments, place)
    return load_vllm(folder, arguments, side.runner, job.params, share)


def resolve(job: Job) -> Job:
    """The job with all that its output's types need; of its models no more than their config."""

    def resolved(section: TaskSection) -> TaskSection:
        step, model = step_of(section), section.model or job.model
        key = step.model_key or "model"
        complete: TaskSection = step.kind.resolve(step, lambda: _config(model, key))
        return complete

    if job.tasks is not None:
        return job.model_copy(update={"tasks": tuple(resolved(task) for task in job.tasks)})
    return job if job.task is None else job.model_copy(update={"task": resolved(job.task)})


def _config(model: ModelSource, place: str) -> Mapping[str, Any]:
    if model.is_fake:
        return fake_config(fake_settings(model.engine, place))
    return fetch_config(model)


def load_tasks(job: Job, storage: Store | None = None) -> RowTasks:
    """The job's tasks, ready to prepare and to answer; `storage` is where its input stands.

    Raises `UserError`.
    """
    return RowTasks(job.steps, load_context(job, storage))


def load_context(job: Job, storage: Store | None = None) -> TaskContext:
    """What the job's tasks are built with. Raises `UserError`."""
    beside = {
        place: _load_tools(side.source, side.runner, place)
        for place, side in job.auxiliary_models.items()
    }
    return replace(
        _load_tools(job.model, job.runner, "model"),
        adapters=tuple(job.model.adapters),
        auxiliary=beside,
        storage=storage,
    )


def _load_tools(model: ModelSource, runner: Runner, place: str) -> TaskContext:
    if model.is_fake:
        settings = fake_settings(model.engine, place)
        return TaskContext(FakeTokenizer(), settings.max_model_len, fake_config(settings))
    folder = fetch_model(model)
    check_not_pickled(folder, model)
    config = read_config(folder)
    context = max_model_len(model, runner, place, folder, config)
    return TaskContext(ModelTokenizer(folder, trusts_code=trusts_code(model)), context, config)
