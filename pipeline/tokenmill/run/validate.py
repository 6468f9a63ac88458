"""What can be known of a job in seconds: its file, its models, its input, its output's columns.

Nothing is written, no row is read, and no Ray and no engine are started.
"""

from dataclasses import dataclass

from tokenmill.job.job import Job
from tokenmill.output.schema import added_fields, output_schema
from tokenmill.run.checks import models_by_key
from tokenmill.run.planning import plan_ahead
from tokenmill.stages.backend import backend_of
from tokenmill.stages.load import load_tasks


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model of the job, and whether it is on this machine."""

    place: str
    source: str
    is_fetched: bool


@dataclass(frozen=True, slots=True)
class Validation:
    """A job that can be run, as far as is known before an engine is there.

    `columns` maps the output's columns to their Arrow types. What follows from tokenizers (labels
    that begin alike, prompts that are too long) is known only where all models are fetched.
    """

    rows: int
    shards: int
    units: int
    skipped_shards: tuple[str, ...]
    columns: dict[str, str]
    models: tuple[ModelState, ...]

    @property
    def missing_models(self) -> tuple[ModelState, ...]:
        """Those that a run would download first."""
        return tuple(model for model in self.models if not model.is_fetched)


def validate(job: Job) -> Validation:
    """Hold a job against its input, its models and this machine. Raises `UserError`."""
    ahead = plan_ahead(job)
    plan = ahead.plan
    models = tuple(
        ModelState(place, model.source, backend_of(model, place).is_fetched)
        for place, model in models_by_key(ahead.job).items()
    )
    if all(model.is_fetched for model in models):
        load_tasks(ahead.job)
    schema = output_schema(ahead.kept_schema, added_fields(ahead.job))
    return Validation(
        rows=plan.num_rows,
        shards=plan.num_shards,
        units=len(plan.units),
        skipped_shards=tuple(bad.path for bad in plan.skipped),
        columns={field.name: str(field.type) for field in schema},
        models=models,
    )
