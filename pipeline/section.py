"""The parts that a job file's sections are made of: strict, frozen models, and the prompt."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: `source` of the engine without a model, for tests and dry runs.
FAKE_SOURCE = "fake"


class Section(BaseModel):
    """A mapping in the job file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        serialize_by_alias=True,
        # Each process of a run imports these; many validate none, and nested ones are built once.
        defer_build=True,
    )


class Message(Section):
    """One turn of a chat; its content is a template."""

    role: str = Field(min_length=1)
    content: str


class Prompt(Section):
    """Jinja2 templates over the row's columns: `system` and `user`, or `messages`, or `text`.

    Or `chat`, a column of whole chats.
    """

    system: str | None = None
    user: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    text: str | None = Field(
        default=None, description="A prompt as it is, without the model's chat template."
    )
    chat: str | None = Field(
        default=None,
        min_length=1,
        description="For generate: the column with a row's messages, a list of {role, content}.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> "Prompt":
        forms = (self.user, self.messages, self.text, self.chat)
        if sum(form is not None for form in forms) != 1:
            raise ValueError("give one of user (with or without system), messages, text, chat")
        if self.system is not None and self.user is None:
            raise ValueError("system goes with user; with messages write a message of that role")
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The chat's messages; empty for a plain `text`, and where each row has its own."""
        if self.messages is not None:
            return self.messages
        if self.user is None:
            return ()
        system = () if self.system is None else (Message(role="system", content=self.system),)
        return (*system, Message(role="user", content=self.user))

    @property
    def templates(self) -> dict[str, str]:
        """The templates by the place below `prompt` that names them, in order."""
        if self.text is not None:
            return {"text": self.text}
        if self.messages is not None:
            turns = enumerate(self.messages)
            return {f"messages.{position}": turn.content for position, turn in turns}
        return {turn.role: turn.content for turn in self.turns}


class ModelSource(Section):
    """A model, and how its engine is started."""

    source: str = Field(
        min_length=1,
        description="bundled:NAME, a local folder, a hub id, an s3:// prefix, or fake.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM's engine arguments.")

    @model_validator(mode="after")
    def _own_keys(self) -> "ModelSource":
        for key in ("model", "revision", "tokenizer_revision"):
            if key in self.engine:
                raise ValueError(f"engine.{key} is set by model.source and model.revision")
        if isinstance(self.engine.get("hf_token"), str):
            raise ValueError(  # noqa: TRY004 - what pydantic reports
                "engine.hf_token: jobs are stored with their output; set HF_TOKEN in the "
                "environment instead"
            )
        if self.revision is not None and not self.is_hub_id:
            raise ValueError(f"revision applies to hub ids only, not to {self.source}")
        return self

    @property
    def is_fake(self) -> bool:
        return self.source == FAKE_SOURCE

    @property
    def is_hub_id(self) -> bool:
        """`owner/name` that is no local folder."""
        return not (
            self.is_fake
            or self.source.startswith(("bundled:", "s3://", "/", "./", "../", "~"))
            or Path(self.source).is_dir()
        )


class Retries(Section):
    """How often a row is asked again whose answer does not do, and with what change."""

    times: Annotated[int, Field(ge=1, le=10)] = 1
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="In place of the task's values of the same names."
    )

    def samplings(self, first: dict[str, Any]) -> list[dict[str, Any]]:
        """The sampling of each retry, behind the first attempt's; a seed grows by one each time."""
        changed = {**first, **self.sampling}
        seed = changed.get("seed")
        if seed is None:
            return [changed] * self.times
        start = seed + (seed == first.get("seed"))
        return [{**changed, "seed": start + time} for time in range(self.times)]


def check_retries(retries: Retries, first: dict[str, Any]) -> None:
    """Raise `ValueError` for retries that a task cannot take, or that repeat the same answer."""
    changed = {**first, **retries.sampling}
    check_sampling(changed)
    if not isinstance(changed.get("seed", 0), int):
        raise ValueError("retries: the sampling's seed must be a whole number")  # noqa: TRY004
    if changed.get("temperature", 1) != 0:
        return
    same = [
        {key: value for key, value in each.items() if key != "seed"} for each in (first, changed)
    ]
    if same[0] == same[1]:
        raise ValueError(
            "retries: at temperature 0 the same request has the same answer; "
            "give retries.sampling another temperature or max_tokens"
        )
    if retries.times > 1:
        raise ValueError(
            "retries.times: at temperature 0 all retries have the same answer; "
            "write times: 1, or give retries.sampling a temperature"
        )


def check_sampling(sampling: dict[str, Any], place: str = "") -> None:
    """Raise `ValueError` for sampling parameters that a task cannot take.

    `place` stands before `sampling` in messages: `tasks.topic.` in a list of tasks.
    """
    if "max_tokens" not in sampling:
        # vLLM's own default of 16 tokens would cut nearly every answer without a word.
        raise ValueError(f"{place}sampling.max_tokens is missing: say how long an answer may be")
    limit = sampling["max_tokens"]
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(
            f"{place}sampling.max_tokens must be a positive number, or null for no limit"
        )
    seed = sampling.get("seed")
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        # The engine would die of it.
        raise ValueError(f"{place}sampling.seed must fit into 64 bits")
    for key in ("output_kind", "detokenize"):
        if key in sampling:
            raise ValueError(f"{place}sampling.{key} is set by tokenmill; leave it out")
    if sampling.get("n", 1) != 1:
        raise ValueError(
            f"{place}sampling.n must be 1; several answers a row are the task's: n, best_of"
        )


def unknown(name: str, known: Iterable[str], what: str = "key") -> str:
    """`unknown key; did you mean …?` with the nearest known one, or all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(names)}"
    return f"unknown {what}; {hint}"
