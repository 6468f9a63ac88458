"""What the user asks for: a checked `Job`.

Knows nothing of shards, Ray or engines. What can be wrong with a job by itself is found here and
raised as `UserError`; what needs the input (its columns) is found by `plan`, what needs the engine
(its arguments) by `engine`.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from pipeline.clean import Clean
from pipeline.dates import on_its_day
from pipeline.length import Length, RejectLong
from pipeline.schema import Params
from pipeline.section import ModelSource, Prompt, Section, check_sampling
from pipeline.tasks.base import (
    Runner,
    SideModel,
    TaskSection,
    check_logprobs,
    check_overrides,
)
from pipeline.tasks.classify import Classify
from pipeline.tasks.describe import Describe
from pipeline.tasks.embed import Embed
from pipeline.tasks.extract import Extract
from pipeline.tasks.generate import Generate
from pipeline.tasks.rerank import Rerank
from pipeline.tasks.reward import Reward
from pipeline.tasks.score import Score
from pipeline.tasks.tag import Tag
from pipeline.tasks.transcribe import Transcribe
from pipeline.tasks.translate import Translate


def _with_kind(value: Any) -> Any:
    """A task that names no kind generates."""
    return {"kind": "generate", **value} if isinstance(value, dict) else value


#: Every kind of task; `kind` says which.
AnyTask = Annotated[
    Annotated[
        Generate
        | Classify
        | Tag
        | Extract
        | Translate
        | Score
        | Embed
        | Reward
        | Rerank
        | Describe
        | Transcribe,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_with_kind),
]


def _without_credentials(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "a name or password in it would be stored with the output; credentials come from the "
            "AWS chain"
        )
    return url


EndpointUrl = Annotated[str, AfterValidator(_without_credentials)]

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


class Input(Section):
    """What is read."""

    path: str = Field(description="A Parquet file, a folder, a glob, or the same on s3://.")
    keep: tuple[str, ...] = Field(
        default=(), description="Columns carried to the output as they are."
    )
    where: str | None = Field(
        default=None, description="Row filter in SQL, e.g. section = 'games' AND lang IS NULL."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Only the first rows of the corpus, for a try."
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop", description="A shard that cannot be read: stop before the run, or skip it."
    )
    on_new_shard: Literal["leave", "add"] = Field(
        default="leave",
        description="A shard that came after the plan was made: leave it out, or add its units.",
    )
    on_changed_shard: Literal["stop", "redo"] = Field(
        default="stop",
        description="A shard that was changed after the plan was made: stop, or answer its rows "
        "anew and drop their former answers.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="S3 endpoint; by default AWS_ENDPOINT_URL."
    )

    @model_validator(mode="after")
    def _whole_if_it_grows(self) -> "Input":
        if self.limit is not None and self.follows:
            raise ValueError(
                "limit: the first rows do not grow; leave it out, or on_new_shard and "
                "on_changed_shard"
            )
        return self

    @property
    def follows(self) -> bool:
        """Whether the plan follows what happens to the input's shards."""
        return self.on_new_shard == "add" or self.on_changed_shard == "redo"


class ReplicaRange(Section):
    """A pool that grows with its queue."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class Model(ModelSource):
    """What answers, and how much of it."""

    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = Field(
        default=1, description="Engines in the pool: a number, or {min, max}."
    )
    gpus_per_replica: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Ignored on a machine without GPUs."
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="In your currency; with it the cost is told before a run."
    )
    adapters: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = (
        Field(
            default_factory=dict,
            description="LoRA adapters by name: a folder, an s3:// prefix or a hub id each.",
        )
    )

    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0,
        description="A request that takes longer is aborted, and its row rejected; an engine that "
        "does not move for so long is given up.",
    )
    deduplicate: bool = Field(
        default=True,
        description="Compute only once, by all replicas, what is asked again with nothing left to "
        "chance.",
    )

    @property
    def most_replicas(self) -> int:
        """How many engines there may be at a time."""
        return self.replicas.max if isinstance(self.replicas, ReplicaRange) else self.replicas


class Output(Section):
    """Where the result stands."""

    path: str = Field(
        min_length=1, description="A folder or an s3:// prefix, new or a former run's."
    )
    publish: str | None = Field(
        default=None,
        pattern=r".\.json$",
        description="A small object, say s3://bucket/current.json, that names the output once it "
        "is finished and verified.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="S3 endpoint; by default AWS_ENDPOINT_URL."
    )


class Units(Section):
    """How large a unit is: `rows`, or estimated `tokens`."""

    rows: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Units":
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give one of rows and tokens")
        return self


class Notify(Section):
    """Who is told how a run ended: its summary as JSON."""

    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A program and its arguments; it gets the summary on its standard input.",
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the URL to which the summary is posted; "
        "such URLs are secrets.",
    )

    @model_validator(mode="after")
    def _someone(self) -> "Notify":
        if self.command is None and self.webhook is None:
            raise ValueError("give command, webhook, or both")
        return self


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
        return on_its_day(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _nothing_spare(self) -> "Job":
        if self.prompt is not None and not any(step.asks_by_prompt for step in self.steps):
            raise ValueError("prompt: the task does not ask by one; leave it out")
        runners = {step.runner for step in self.steps if step.model is None}
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
            if step.prompt is None and step.asks_by_prompt:
                raise ValueError(f"{step.place}prompt is missing: say what to ask about a row")
            if step.samples and step.sampling is None:
                raise ValueError(f"{step.place}sampling is missing: say at least max_tokens")
            if step.samples and step.sampling is not None:
                check_sampling(step.sampling, step.place)
            step.check_chat()
            step.check()
            if step.final is not None:
                step.final.check()
        if self.sampling is not None and not any(step.samples for step in self.steps):
            raise ValueError("sampling: the task writes no text; leave it out")
        return self

    @field_validator("overrides")
    @classmethod
    def _overridable(cls, overrides: dict[str, str] | None) -> dict[str, str] | None:
        return check_overrides(overrides)

    @model_validator(mode="after")
    def _whole_variations(self) -> "Job":
        for step in self.steps:
            if step.overrides and not step.samples:
                raise ValueError(f"{step.place}overrides: the task writes no text; leave it out")
            if step.adapter is not None and not self.model.adapters:
                raise ValueError(
                    f"{step.place}adapter: model.adapters names none; write model.adapters: "
                    "{name: path}"
                )
        if self.model.adapters and all(step.adapter is None for step in self.steps):
            raise ValueError(
                "model.adapters: no task takes one; write adapter: COLUMN, the column that names "
                "a row's adapter"
            )
        if self.overrides and not any(step.samples for step in self.steps):
            raise ValueError("overrides: the task writes no text; leave it out")
        check_logprobs(self.params)
        return self

    @property
    def steps(self) -> tuple[TaskSection, ...]:
        """The tasks, those without a prompt or sampling of their own with the job's."""
        sections = self.tasks or (self.task or Generate(),)
        return tuple(
            section.model_copy(
                update={
                    "prompt": self._prompt_of(section),
                    "sampling": self._sampling_of(section),
                    "length": section.length or self.length,
                    "overrides": (
                        self.overrides
                        if section.samples and section.overrides is None
                        else section.overrides
                    ),
                    "adapter": section.adapter or self.adapter,
                }
            )
            for section in sections
        )

    def _prompt_of(self, section: TaskSection) -> Prompt | None:
        inherited = self.prompt if section.asks_by_prompt else None
        return section.prompt or inherited or section.default_prompt

    def _sampling_of(self, section: TaskSection) -> dict[str, Any] | None:
        if not section.samples:
            return None
        return self.sampling if section.sampling is None else section.sampling

    def most_rejects(self, num_rows: int) -> int:
        """How many of so many rows may be rejected."""
        most = math.floor(self.max_reject_rate * num_rows)
        return most if self.max_rejects is None else min(most, self.max_rejects)

    @property
    def runner(self) -> Runner:
        """Which of vLLM's two runners the job's own model needs."""
        return next(step.runner for step in self.steps if step.model is None)

    @property
    def side_models(self) -> dict[str, SideModel]:
        """The models beside the job's own, by their places in the job."""
        return {place: side for step in self.steps for place, side in step.side_models.items()}

    @property
    def params(self) -> tuple[Params, ...]:
        """Those of the tasks' requests that are known without a model."""
        finals = [step.final for step in self.steps]
        sections = [*self.steps, *(final for final in finals if final is not None)]
        return tuple(params for section in sections for params in section.params)

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
        steps = [step.model_dump(mode="json") for step in self.steps]
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
        return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Safe, and U+0085 is escaped: PyYAML writes it as the line break that it reads as another."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, text, style)


_Dumper.add_representer(str, _represent_text)


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
