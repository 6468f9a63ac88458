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
        description="In a list of tasks: stands before the task's columns, as in topic_label.",
    )
    prompt: Prompt | None = Field(default=None, description="By default the job's.")
    sampling: dict[str, Any] | None = Field(default=None, description="By default the job's.")
    retries: Retries | None = Field(
        default=None, description="For rows whose answer does not do; by default none."
    )
    model: ModelSource | None = Field(
        default=None, description="By default the job's; another one stands beside it."
    )

    length: Length | None = Field(default=None, description="By default the job's.")
    overrides: dict[str, str] | None = Field(
        default=None,
        description="Sampling parameter to the column with a row's own; by default the job's.",
    )
    adapter: str | None = Field(
        default=None, description="The column that names a row's adapter; by default the job's."
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
            raise ValueError(f"{name} cannot differ by row; these can: {allowed}")
    return overrides


def has_stops(section: TaskSection) -> bool:
    """Whether an answer may end at a stop string or stop token that the job gives."""
    sampling = section.sampling or {}
    stops = sampling.get("stop") or sampling.get("stop_token_ids")
    return bool(stops) or "stop" in (section.overrides or {})
