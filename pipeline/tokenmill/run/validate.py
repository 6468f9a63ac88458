"""Check a job within seconds: its file, models, input, and the columns of its output.

Nothing is written, no row is read, and neither Ray nor an engine is started.
"""

from dataclasses import dataclass

from tokenmill.job.job import Job
from tokenmill.output.schema import output_schema
from tokenmill.run.checks import check_params, check_tasks, models_by_key
from tokenmill.run.planning import plan_ahead
from tokenmill.stages.backend import backend_of


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model of the job, and whether it is on this machine. `place` is its key in the job."""

    place: str
    source: str
    is_fetched: bool


@dataclass(frozen=True, slots=True)
class Validation:
    """A job that passed all checks that need no engine.

    `columns` maps the output's columns to their Arrow types. What depends on tokenizers (labels
    with the same beginning, prompts that are too long) is checked only if all models are fetched.
    `notes` say what of the input is not read.
    """

    rows: int
    shards: int
    units: int
    skipped_shards: tuple[str, ...]
    columns: dict[str, str]
    models: tuple[ModelState, ...]
    notes: tuple[str, ...]

    @property
    def missing_models(self) -> tuple[ModelState, ...]:
        """The models that a run would download first."""
        return tuple(model for model in self.models if not model.is_fetched)


def validate(job: Job, *, is_quick: bool = False) -> Validation:
    """Check a job against its input, its models and this machine. Raises `UserError`.

    A quick check leaves out what needs a tokenizer or vLLM's classes.
    """
    opened, notes = plan_ahead(job)
    plan = opened.plan
    models = tuple(
        ModelState(key, model.source, backend_of(model, key).is_fetched)
        for key, model in models_by_key(opened.job).items()
    )
    if not is_quick:
        check_params(opened.job)
        if all(model.is_fetched for model in models):
            check_tasks(opened.job)
    schema = output_schema(opened.job, opened.kept_schema)
    return Validation(
        rows=plan.num_rows,
        shards=plan.num_shards,
        units=len(plan.units),
        skipped_shards=tuple(bad.path for bad in plan.skipped),
        columns={field.name: str(field.type) for field in schema},
        models=models,
        notes=notes,
    )
