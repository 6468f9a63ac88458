"""Build what a job's stages need from its models: its tasks, and its engine."""

import gc
from collections.abc import Mapping
from dataclasses import replace

from tokenmill.engine.base import Engine, EngineResources
from tokenmill.engine.multi_model import MultiModelEngine, memory_shares
from tokenmill.job.job import Job
from tokenmill.stages.backend import backend_of
from tokenmill.storage.base import Store
from tokenmill.tasks.kinds import step_of
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import AuxiliaryModel, TaskContext

# With Python's default of 700 objects, every few rows would start a collection, which visits the
# token lists of all rows.
_YOUNG_OBJECTS = 10_000


def collect_seldom() -> None:
    """Collect garbage less often, and never look at what is loaded by now.

    Rows leave no reference cycles behind. Looking for them took two fifths of a row's time (`python
    -m bench null`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def load_engine(job: Job, resources: EngineResources) -> Engine:
    """Start the engine that the job asks for. Raises `UserError`."""
    auxiliary = job.auxiliary_models
    # Tasks with the same model share its engine, which is loaded for the first of their keys.
    first_keys = {
        key: next(first for first, other in auxiliary.items() if other == side)
        for key, side in auxiliary.items()
    }
    distinct = {key: side for key, side in auxiliary.items() if first_keys[key] == key}
    memory = memory_shares(
        job.model.engine, {key: side.source.engine for key, side in distinct.items()}
    )

    def load(side: AuxiliaryModel, key: str | None, adapters: Mapping[str, str]) -> Engine:
        backend = backend_of(side.source, key or "model")
        share = replace(resources, gpu_memory=memory[key])
        return backend.load(side.runner, job.params, adapters, share, uses_seeds=job.uses_seeds)

    engine = load(AuxiliaryModel(job.model, job.runner), None, job.model.adapters)
    if not auxiliary:
        return engine
    engines = {key: load(side, key, {}) for key, side in distinct.items()}
    return MultiModelEngine(engine, {key: engines[first] for key, first in first_keys.items()})


def resolve(job: Job) -> Job:
    """Return the job with everything that its output's types depend on.

    Fetches no more than the config.json of its models.
    """

    def resolved(section: TaskSection) -> TaskSection:
        step = step_of(section, is_only=job.tasks is None)
        backend = backend_of(section.model or job.model, step.model_key or "model")
        complete: TaskSection = step.kind.resolve(step, backend.config)
        return complete

    if job.tasks is not None:
        return job.model_copy(update={"tasks": tuple(resolved(task) for task in job.tasks)})
    return job if job.task is None else job.model_copy(update={"task": resolved(job.task)})


def load_tasks(job: Job, storage: Store | None = None) -> RowTasks:
    """Return the job's tasks, ready to prepare and answer rows; `storage` is the input's store.

    Raises `UserError`.
    """
    return RowTasks(job.steps, load_context(job, storage), job.output.columns)


def load_context(job: Job, storage: Store | None = None) -> TaskContext:
    """Return what the job's tasks are built with. Raises `UserError`."""
    auxiliary = {
        key: backend_of(side.source, key).context(side.runner)
        for key, side in job.auxiliary_models.items()
    }
    return replace(
        backend_of(job.model).context(job.runner),
        adapters=tuple(job.model.adapters),
        auxiliary=auxiliary,
        storage=storage,
    )
