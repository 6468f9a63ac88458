"""What every task is: columns in, prompts out, and a dialogue with the engine for each row.

A task prepares whole units, so that texts are tokenized in batches, on any CPU of the cluster;
beside the engine it holds a dialogue for each row: a generator that asks rounds of requests and
ends with the row's cells or a reject. Knows nothing of engines, units or Ray.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import pyarrow as pa
from pydantic import Field, field_validator

from tokenmill.config.length import Chunk, JoinKind, JoinPrompt, Length, Truncate
from tokenmill.config.model_source import ModelSource
from tokenmill.config.prompt import Prompt
from tokenmill.config.sampling import OVERRIDABLE, Retries, check_retries
from tokenmill.config.section import Section
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import PromptTemplates, compile_prompt
from tokenmill.request import Params, Sampling
from tokenmill.tasks.task import Runner, SideModel, Task, TaskContext


class TaskSection(Section):
    """What all kinds of tasks have in the job file."""

    #: Whether the task writes text, and so needs `sampling` and its max_tokens.
    samples: ClassVar[bool] = True
    #: Whether the task asks by a `prompt`.
    asks_by_prompt: ClassVar[bool] = True
    #: Whether a row's own messages may stand in the prompt's place.
    takes_chats: ClassVar[bool] = False
    #: Whether a second prompt, over the answers of a long text's chunks, can join them.
    joins_by_prompt: ClassVar[bool] = True

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

    @property
    def runner(self) -> Runner:
        """Which of vLLM's two runners the task's model needs."""
        return "generate"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output columns and their types; they follow from the section alone."""
        raise NotImplementedError

    @property
    def default_prompt(self) -> Prompt | None:
        """The prompt where neither the task nor the job has one; None if one of them must."""
        return None

    @property
    def columns(self) -> Mapping[str, str]:
        """Each column that the task reads, and the place in the job that names it."""
        return self.compiled.columns

    @property
    def compiled(self) -> PromptTemplates:
        """The prompt, compiled. Raises `UserError`."""
        return self.compile_at(self.place)

    def compile_at(self, place: str) -> PromptTemplates:
        """The prompt, compiled; `place` stands before `prompt` in messages."""
        return compile_prompt(self.own_prompt, place)

    @property
    def reads(self) -> Mapping[str, str]:
        """`columns`, and those of what a row may vary."""
        varied = dict.fromkeys((self.overrides or {}).values(), f"{self.place}overrides")
        if self.adapter is not None:
            varied[self.adapter] = f"{self.place}adapter"
        return {**varied, **self.columns}

    def override_problem(self, overrides: Mapping[str, Any]) -> str | None:
        """Why a row cannot have these, though each is right by itself; None if it can."""
        del overrides
        return None

    @property
    def params(self) -> tuple[Params, ...]:
        """Those of the requests that are known without a model, for the engine to check early."""
        return self.own_samplings if self.samples else ()

    @property
    def has_stops(self) -> bool:
        """Whether an answer may end by a stop of the job's."""
        sampling = self.sampling or {}
        stops = sampling.get("stop") or sampling.get("stop_token_ids")
        return bool(stops) or "stop" in (self.overrides or {})

    def check_chat(self) -> None:
        """Raise `ValueError` if the prompt is a row's own messages and the task cannot take them.

        There is no text that a task could add to, and none that a length policy could cut.
        """
        final = None if self.final is None else self.final.prompt
        own = self.prompt is not None and self.prompt.chat is not None
        if final is not None and final.chat is not None:
            raise ValueError(f"{self.place}length.join.prompt.chat: joins ask by templates")
        if own and not self.takes_chats:
            raise ValueError(
                f"{self.place}prompt.chat: only generate takes whole chats; write templates"
            )
        if own and isinstance(self.length, Truncate | Chunk):
            raise ValueError(
                f"{self.place}length: whole chats are not cut; leave it out, or write templates"
            )

    def check(self) -> None:
        """Raise `ValueError` for what cannot work, now that prompt and sampling are known."""
        if self.retries is None:
            return
        if not self.samples or self.sampling is None:
            raise ValueError(f"{self.place}retries: the task writes no text; leave it out")
        check_retries(self.retries, self.sampling)

    @property
    def templates(self) -> Mapping[str, str]:
        """All templates of a row's requests; they are part of what a row costs."""
        return self.own_prompt.templates if self.asks_by_prompt else {}

    @property
    def side_models(self) -> dict[str, SideModel]:
        """The models that the task needs beside the job's own, by their places in the job."""
        place = self.model_place
        if place is None or self.model is None:
            return {}
        return {place: SideModel(self.model, self.runner)}

    @property
    def model_place(self) -> str | None:
        """Where the job names the task's model; None for the job's own."""
        return None if self.model is None else self.place_of("model")

    def resolved(self, config: Callable[[], Mapping[str, Any]]) -> Self:
        """The section with what its output's types take from its model's config.json."""
        del config
        return self

    def build(self, tools: TaskContext) -> Task:
        """The task itself. Raises `UserError` for what cannot work with this model."""
        raise NotImplementedError

    @property
    def join_kind(self) -> JoinKind | None:
        """How the task's `join` makes a row's cells of those of its chunks; None if it does not.

        Texts that are concatenated stand in the first of `fields`.
        """
        return None

    @property
    def located_column(self) -> str | None:
        """The column in whose text the task's answers have places, if they have."""
        return None

    @property
    def place(self) -> str:
        """What names the task in messages: nothing where the job has one task."""
        return "" if self.name is None else f"tasks.{self.name}."

    def place_of(self, key: str) -> str:
        """Where the job holds a key of the section."""
        return f"{self.place or 'task.'}{key}"

    @property
    def final(self) -> Self | None:
        """The section whose prompt joins the answers of a long text's chunks, if one does."""
        if not (isinstance(self.length, Chunk) and isinstance(self.length.join, JoinPrompt)):
            return None
        join = self.length.join
        changes = {"prompt": join.prompt, "sampling": join.sampling or self.sampling}
        return self.model_copy(update={**changes, "length": None})

    def prompter(self, tools: TaskContext) -> PromptEncoder:
        """What renders the section's prompt."""
        return PromptEncoder(self.compiled, tools.tokenizer)

    @property
    def own_prompt(self) -> Prompt:
        """The prompt of a section that has been given one (`Job.steps`)."""
        if self.prompt is None:
            raise ValueError(f"{self.place}prompt is missing")
        return self.prompt

    @property
    def own_sampling(self) -> Sampling:
        """The sampling of a section that has been given one (`Job.steps`)."""
        if self.sampling is None:
            raise ValueError(f"{self.place}sampling is missing")
        return Sampling(self.sampling)

    @property
    def own_samplings(self) -> tuple[Sampling, ...]:
        """The sampling of each attempt: the section's, then those of its retries."""
        first = self.own_sampling
        if self.retries is None:
            return (first,)
        return (first, *map(Sampling, self.retries.samplings(dict(first.values))))


def check_overrides(overrides: dict[str, str] | None) -> dict[str, str] | None:
    """`overrides` itself. Raises `ValueError` for a parameter that rows cannot set."""
    for name in overrides or {}:
        if name not in OVERRIDABLE:
            known = ", ".join(OVERRIDABLE)
            raise ValueError(f"{name} cannot differ by row; these can: {known}")
    return overrides


def check_logprobs(params: Sequence[Params]) -> None:
    """Raise `ValueError` for requests that cannot be in one engine at the same time.

    In a batch with a request for `logprob_token_ids`, vLLM 0.32 gives its neighbours no
    alternatives (`v1/sample/sampler.py`: "prefer logprob_token_ids").
    """
    samplings = [known.values for known in params if isinstance(known, Sampling)]
    wants_top = any(values.get("logprobs") for values in samplings)
    if wants_top and any(values.get("logprob_token_ids") is not None for values in samplings):
        raise ValueError(
            "one task asks for the likeliest tokens (tokens.top, sampling.logprobs), another for "
            "the probabilities of its labels, and in one engine the second breaks the first; make "
            "two jobs"
        )
