"""What the user asks for: a checked `Job`.

Knows nothing of shards, Ray or engines. What can be wrong with a job by itself is found here and
raised as `UserError`; what needs the input (its columns) is found by `plan`, what needs the engine
(its arguments) by `engine`.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator, model_validator

from tokenmill.config.length import Length, RejectLong
from tokenmill.config.prompt import Prompt
from tokenmill.config.section import Section
from tokenmill.job.dates import with_date
from tokenmill.job.sections import Input, Model, Notify, Output
from tokenmill.job.strict_yaml import Dumper, represent_text
from tokenmill.plan.units import Units
from tokenmill.prompt.cleaning.clean import Clean
from tokenmill.request import Params
from tokenmill.tasks.kind import TaskStep, check_logprobs
from tokenmill.tasks.kinds import DEFAULT_KIND, AnyTask, step_of
from tokenmill.tasks.section import TaskSection, check_overrides
from tokenmill.tasks.task import AuxiliaryModel, Runner

# Change no answer; so they may differ between a run and its resume.
_SAME_ANSWERS = ("name", "date", "output", "units", "max_reject_rate", "max_rejects", "notify")
# Change how fast answers come and what they cost, not what they are.
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
# What `Job.steps` makes one of.
_ASKED = ("prompt", "sampling", "length", "task", "tasks")


class Job(Section):
    """One task, or several, over the rows of a corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    date: str | None = Field(
        default=None,
        description="The day that {date} in a path stands for: today, yesterday (in UTC), or "
        "2026-01-31. `--date` sets it.",
    )
    input: Input
    model: Model
    prompt: Prompt | None = Field(default=None, description="Of each task without its own.")
    sampling: dict[str, Any] | None = Field(
        default=None, description="vLLM's SamplingParams; max_tokens is required."
    )
    overrides: dict[str, str] | None = Field(
        default=None,
        description="Sampling parameter to the column with a row's own, e.g. max_tokens: length.",
    )
    adapter: str | None = Field(
        default=None, description="The column that names a row's adapter of model.adapters."
    )
    task: AnyTask | None = Field(default=None, description="By default {kind: generate}.")
    tasks: tuple[AnyTask, ...] | None = Field(
        default=None, min_length=1, description="Several tasks on each row; each has a name."
    )
    length: Length = Field(
        default=RejectLong(), description="Of each task without its own: what is too long."
    )
    clean: Clean | None = Field(default=None, description="By default texts stay as they are.")
    output: Output
    units: Units | None = Field(
        default=None, description="By default sized by estimated tokens for the machine."
    )
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="A finished run with a larger share of rejects exits with 3."
    )
    max_rejects: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="A finished run with more rejects exits with 3."
    )
    notify: Notify | None = Field(default=None, description="Whom a run tells how it ended.")

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, data: Any) -> Any:
        return with_date(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _nothing_spare(self) -> "Job":
        if self.prompt is not None and not any(step.kind.asks_by_prompt for step in self.steps):
            raise ValueError("prompt: the task does not ask by one; leave it out")
        runners = {step.runner for step in self.steps if step.section.model is None}
        if not runners:
            raise ValueError("every task has a model of its own; give one of them as model")
        if len(runners) > 1:
            raise ValueError(
                "tasks that write text and tasks of pooling models need two models; give the "
                "tasks of one kind a model of their own"
            )
        return self

    @model_validator(mode="after")
    def _whole_tasks(self) -> "Job":
        if self.task is not None and self.tasks is not None:
            raise ValueError("give one of task and tasks")
        names = [task.name for task in self.tasks or ()]
        if None in names:
            raise ValueError("each of tasks needs a name, which stands before its columns")
        if len(set(names)) != len(names):
            raise ValueError("two of tasks have the same name")
        for step in self.steps:
            step.check()
        if self.sampling is not None and not any(step.kind.writes_text for step in self.steps):
            raise ValueError("sampling: the task writes no text; leave it out")
        return self

    @field_validator("overrides")
    @classmethod
    def _overridable(cls, overrides: dict[str, str] | None) -> dict[str, str] | None:
        return check_overrides(overrides)

    @model_validator(mode="after")
    def _whole_variations(self) -> "Job":
        for step in self.steps:
            if step.section.overrides and not step.kind.writes_text:
                raise ValueError(
                    f"{step.key_prefix}overrides: the task writes no text; leave it out"
                )
            if step.section.adapter is not None and not self.model.adapters:
                raise ValueError(
                    f"{step.key_prefix}adapter: model.adapters names none; write model.adapters: "
                    "{name: path}"
                )
        if self.model.adapters and all(step.section.adapter is None for step in self.steps):
            raise ValueError(
                "model.adapters: no task takes one; write adapter: COLUMN, the column that names "
                "a row's adapter"
            )
        if self.overrides and not any(step.kind.writes_text for step in self.steps):
            raise ValueError("overrides: the task writes no text; leave it out")
        check_logprobs(self.params)
        return self

    @property
    def steps(self) -> tuple[TaskStep[Any], ...]:
        """The tasks, with the job's keys in the place of those that they leave out."""
        sections = self.tasks or (self.task or DEFAULT_KIND.section(),)
        return tuple(step_of(self._with_defaults(section)) for section in sections)

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

    def most_rejects(self, num_rows: int) -> int:
        """How many of so many rows may be rejected."""
        most = math.floor(self.max_reject_rate * num_rows)
        return most if self.max_rejects is None else min(most, self.max_rejects)

    @property
    def runner(self) -> Runner:
        """Which of vLLM's two runners the job's own model needs."""
        return next(step.runner for step in self.steps if step.section.model is None)

    @property
    def auxiliary_models(self) -> dict[str, AuxiliaryModel]:
        """The models besides the job's own, by their keys in the job."""
        return {key: model for step in self.steps for key, model in step.auxiliary_models.items()}

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters of the tasks' requests, as far as they are known without a model."""
        finals = [step.final for step in self.steps]
        steps = [*self.steps, *(final for final in finals if final is not None)]
        return tuple(params for step in steps for params in step.params)

    @property
    def answer_fields(self) -> dict[str, Any]:
        """What the answers depend on, as dotted name to value: all that the fingerprint covers."""
        data = self.model_dump(mode="json", exclude={*_SAME_ANSWERS, *_ASKED})
        for key in _SPEED_ONLY_MODEL_KEYS:
            data["model"].pop(key)
        _drop_speed(data["model"])
        for key in ("endpoint_url", "on_bad_shard", "on_new_shard", "on_changed_shard"):
            data["input"].pop(key)
        return dict(_flatten(data | self._asked()))

    def _asked(self) -> dict[str, Any]:
        """What the tasks are, the same whether a task or the job says it."""
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
        """SHA-256 of `answer_fields`, hexadecimal."""
        canonical = json.dumps(self.answer_fields, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved job, as it is written to the output."""
        data = self.model_dump(mode="json", exclude_none=True)
        return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


Dumper.add_representer(str, represent_text)


def differing_fields(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names at which two `answer_fields` differ, in order."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _drop_speed(model: dict[str, Any]) -> None:
    """Take out of a model's data what only changes how fast it answers."""
    for key in _SPEED_ONLY_ENGINE_ARGUMENTS:
        model.get("engine", {}).pop(key, None)


def _flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value
