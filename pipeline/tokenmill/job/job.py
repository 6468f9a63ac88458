"""What the user asks for: a validated `Job`.

The job knows nothing of shards, Ray or engines. Mistakes in the job itself raise an error here.
Mistakes that only the input or a model can show, such as a missing column, are found before the
run by `run.planning` and `run.checks`.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from tokenmill.config.length import Length, RejectLong
from tokenmill.config.prompt import Prompt
from tokenmill.config.section import Section
from tokenmill.config.strict_yaml import dump_yaml
from tokenmill.job.dates import with_date
from tokenmill.job.sections import Input, Model, Notify, Output
from tokenmill.plan.units import Units
from tokenmill.prompt.cleaning.clean import Clean
from tokenmill.request import Params
from tokenmill.tasks.kind import TaskStep, check_logprobs
from tokenmill.tasks.kinds import DEFAULT_KIND, AnyTask, step_of
from tokenmill.tasks.section import TaskSection, check_overrides
from tokenmill.tasks.task import AuxiliaryModel, Runner

# Keys that change no answer, so they may differ between a run and its resumption. Of `output`, only
# `columns` is added again: it changes the objects.
_SAME_ANSWERS = ("name", "date", "output", "units", "max_reject_rate", "max_rejects", "notify")
# Keys that change the speed and the cost of answers, but not the answers.
_SPEED_ONLY_ENGINE_ARGUMENTS = frozenset(
    {
        "disable_log_stats",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "max_cpu_loras",
        "max_loras",
        "max_num_batched_tokens",
        "max_num_seqs",
    }
)
_SPEED_ONLY_MODEL_KEYS = (
    "replicas",
    "gpus_per_replica",
    "price_per_gpu_hour",
    "request_timeout_s",
    "deduplicate",
)
# Keys that `_answered_tasks` replaces by the sections of `Job.steps`.
_TASK_KEYS = ("prompt", "sampling", "length", "task", "tasks")

#: Keys of the job that tasks without their own use.
TASK_DEFAULTS = ("prompt", "sampling", "length", "overrides", "adapter")


class Job(Section):
    """One task, or several, for each row of a corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    date: str | None = Field(
        default=None,
        description="The day that replaces {date} in paths: today, yesterday (both in UTC) or a "
        "date such as 2026-01-31. `--date` overrides it.",
    )
    input: Input
    model: Model
    prompt: Prompt | None = Field(
        default=None, description="The prompt of tasks without their own."
    )
    sampling: dict[str, Any] | None = Field(
        default=None, description="Parameters of vLLM's SamplingParams. max_tokens is required."
    )
    overrides: dict[str, str] | None = Field(
        default=None,
        description="Columns with a row's own sampling parameters, by parameter. Example: "
        "{max_tokens: length_column}.",
    )
    adapter: str | None = Field(
        default=None,
        description="The column with the name of a row's LoRA adapter, one of model.adapters.",
    )
    task: AnyTask | None = Field(
        default=None, description="The job's only task. Default: {kind: generate}."
    )
    tasks: tuple[AnyTask, ...] | None = Field(
        default=None, min_length=1, description="Several tasks for each row, each with a name."
    )
    length: Length = Field(
        default=RejectLong(),
        description="What happens to texts that are too long, in tasks without their own policy.",
    )
    clean: Clean | None = Field(
        default=None, description="Cleans columns before prompts are made. Default: no cleaning."
    )
    output: Output
    units: Units | None = Field(
        default=None,
        description="The size of a unit of work. Default: by estimated tokens, for this machine.",
    )
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="A run with a larger share of rejected rows exits with code 3."
    )
    max_rejects: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="A run with more rejected rows exits with code 3."
    )
    notify: Notify | None = Field(
        default=None, description="Receives the summary of a run when it ends."
    )

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, data: Any) -> Any:
        return with_date(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _one_runner(self) -> "Job":
        if self.prompt is not None and not any(step.kind.asks_by_prompt for step in self.steps):
            raise ValueError("prompt: no task of the job has a prompt; remove it")
        runners = {step.runner for step in self.steps if step.section.model is None}
        if not runners:
            raise ValueError("model: every task has its own; make one of those the job's model")
        if len(runners) > 1:
            raise ValueError(
                "model: one model cannot both generate text and return vectors or scores; give the "
                "tasks that do one of the two a model of their own"
            )
        return self

    @model_validator(mode="after")
    def _complete_tasks(self) -> "Job":
        if self.task is not None and self.tasks is not None:
            raise ValueError("give either task or tasks, not both")
        names = [task.name for task in self.tasks or ()]
        if None in names:
            raise ValueError("tasks: each task needs a name, which prefixes its columns")
        if len(set(names)) != len(names):
            raise ValueError("tasks: two tasks have the same name")
        for step in self.steps:
            step.check()
        if self.sampling is not None and not any(step.kind.writes_text for step in self.steps):
            raise ValueError("sampling: no task of the job generates text; remove it")
        return self

    @field_validator("overrides")
    @classmethod
    def _overridable(cls, overrides: dict[str, str] | None) -> dict[str, str] | None:
        return check_overrides(overrides)

    @model_validator(mode="after")
    def _usable_overrides(self) -> "Job":
        for step in self.steps:
            if step.section.overrides and not step.kind.writes_text:
                raise ValueError(
                    f"{step.key_prefix}overrides: the task generates no text; remove it"
                )
            if step.section.adapter is not None and not self.model.adapters:
                raise ValueError(
                    f"{step.key_prefix}adapter: model.adapters is empty; set model.adapters: "
                    "{name: path}"
                )
        if self.model.adapters and all(step.section.adapter is None for step in self.steps):
            raise ValueError(
                "model.adapters: no task uses one; set adapter: COLUMN, the column with the name "
                "of a row's adapter"
            )
        if self.overrides and not any(step.kind.writes_text for step in self.steps):
            raise ValueError("overrides: no task of the job generates text; remove it")
        check_logprobs(self.params)
        return self

    @property
    def steps(self) -> tuple[TaskStep[Any], ...]:
        """The tasks, with the job's values for the keys that they leave out."""
        sections = self.tasks or (self.task or DEFAULT_KIND.section(),)
        is_only = self.tasks is None
        return tuple(step_of(self._with_defaults(item), is_only=is_only) for item in sections)

    def _with_defaults(self, section: TaskSection) -> TaskSection:
        kind = step_of(section).kind
        prompt, sampling, overrides = section.prompt, section.sampling, section.overrides
        if prompt is None:
            prompt = (self.prompt if kind.asks_by_prompt else None) or kind.default_prompt(section)
        if not kind.writes_text:
            sampling = None
        elif sampling is None:
            sampling = self.sampling
        if kind.writes_text and overrides is None:
            overrides = self.overrides
        return section.model_copy(
            update={
                "prompt": prompt,
                "sampling": sampling,
                "length": section.length or self.length,
                "overrides": overrides,
                "adapter": section.adapter or self.adapter,
            }
        )

    def reject_limit(self, num_rows: int) -> int:
        """The largest number of rejects, of `num_rows` rows, with which a run succeeds."""
        limit = math.floor(self.max_reject_rate * num_rows)
        return limit if self.max_rejects is None else min(limit, self.max_rejects)

    @property
    def runner(self) -> Runner:
        """Which of vLLM's two runners the job's own model needs."""
        return next(step.runner for step in self.steps if step.section.model is None)

    @property
    def auxiliary_models(self) -> dict[str, AuxiliaryModel]:
        """The models that tasks need in addition to the job's model, by their keys in the job."""
        return {key: model for step in self.steps for key, model in step.auxiliary_models.items()}

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters of the tasks' requests, as far as they are known without a model."""
        return tuple(params for step in self._all_steps for params in step.params)

    @property
    def uses_seeds(self) -> bool:
        """Whether a request may be sampled with a seed."""
        return any(step.uses_seeds for step in self._all_steps)

    @property
    def _all_steps(self) -> tuple[TaskStep[Any], ...]:
        """The tasks, and the second prompts of tasks that divide long texts."""
        finals = [step.final for step in self.steps]
        return (*self.steps, *(final for final in finals if final is not None))

    @property
    def answer_fields(self) -> dict[str, Any]:
        """What the answers depend on, as values by dotted key. The fingerprint covers these."""
        data = self.model_dump(mode="json", exclude={*_SAME_ANSWERS, *_TASK_KEYS})
        for key in _SPEED_ONLY_MODEL_KEYS:
            data["model"].pop(key)
        _drop_speed(data["model"])
        for key in ("endpoint_url", "on_bad_shard", "on_new_shard", "on_changed_shard"):
            data["input"].pop(key)
        if self.output.columns:
            # Without it, the fingerprint is that of versions that did not have the key.
            data["output"] = {"columns": self.output.columns}
        return dict(_flatten(data | self._answered_tasks()))

    def _answered_tasks(self) -> dict[str, Any]:
        """The tasks with the job's defaults: the same whether the task or the job has a key."""
        steps = [step.section.model_dump(mode="json") for step in self.steps]
        for step in steps:
            _drop_speed(step["model"] or {})
        if self.tasks is not None:
            return {
                "tasks": {step["name"]: {"position": at, **step} for at, step in enumerate(steps)}
            }
        (step,) = steps
        shared = {key: step.pop(key) for key in ("prompt", "sampling", "length")}
        return {**shared, "task": step}

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of `answer_fields`, in hexadecimal."""
        canonical = json.dumps(self.answer_fields, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved job as YAML, as it is stored with the output."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True))


def differing_fields(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys whose values differ between two `answer_fields`, in order."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _drop_speed(model: dict[str, Any]) -> None:
    """Remove the engine arguments that only change the speed of a model."""
    for key in _SPEED_ONLY_ENGINE_ARGUMENTS:
        model.get("engine", {}).pop(key, None)


def _flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value
