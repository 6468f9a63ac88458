"""The keys that all kinds of tasks share in a job file."""

from typing import Any

from pydantic import Field, field_validator

from tokenmill.config.length import Length
from tokenmill.config.model_source import ModelSource
from tokenmill.config.prompt import Prompt
from tokenmill.config.sampling import OVERRIDABLE, Retries
from tokenmill.config.section import Section


class TaskSection(Section):
    """The keys that all kinds of tasks share."""

    kind: str
    name: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Prefixes the task's columns: topic_label. Required in a list of tasks.",
    )
    prompt: Prompt | None = Field(default=None, description="Default: the job's prompt.")
    sampling: dict[str, Any] | None = Field(
        default=None, description="Default: the job's sampling."
    )
    retries: Retries | None = Field(
        default=None, description="Retries for rows with an invalid answer. Default: none."
    )
    model: ModelSource | None = Field(
        default=None,
        description="A model for this task, loaded next to the job's. Default: the job's model.",
    )

    length: Length | None = Field(default=None, description="Default: the job's length policy.")
    overrides: dict[str, str] | None = Field(
        default=None,
        description="Columns with a row's own sampling parameters, by parameter. "
        "Default: the job's overrides.",
    )
    adapter: str | None = Field(
        default=None,
        description="The column with the name of a row's LoRA adapter. Default: the job's adapter.",
    )

    @field_validator("overrides")
    @classmethod
    def _overridable(cls, overrides: dict[str, str] | None) -> dict[str, str] | None:
        return check_overrides(overrides)


def check_overrides(overrides: dict[str, str] | None) -> dict[str, str] | None:
    """Return `overrides`. Raises `ValueError` for a parameter that rows cannot set."""
    for name in overrides or {}:
        if name not in OVERRIDABLE:
            allowed = ", ".join(OVERRIDABLE)
            raise ValueError(f"{name} cannot be set by row; use one of {allowed}")
    return overrides


def has_stops(section: TaskSection) -> bool:
    """Whether an answer may end at a stop string or stop token that the job gives."""
    sampling = section.sampling or {}
    stops = sampling.get("stop") or sampling.get("stop_token_ids")
    return bool(stops) or "stop" in (section.overrides or {})
