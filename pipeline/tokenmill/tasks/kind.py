"""What a kind of task is, as data, and a task as one job asks for it.

A section holds what the job file says. A `TaskKind` holds what all tasks of a kind have in common.
A `TaskStep` combines the two: the section with the job's defaults, and its compiled templates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import pyarrow as pa

from tokenmill.config.length import Chunk, JoinKind, JoinPrompt, Truncate
from tokenmill.config.prompt import Prompt
from tokenmill.config.sampling import check_retries, check_sampling
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import PromptTemplates, compile_prompt
from tokenmill.reject import Reject
from tokenmill.request import Params, Sampling
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import AuxiliaryModel, Cells, Runner, Task, TaskContext

SectionT = TypeVar("SectionT", bound=TaskSection)
#: A step's compiled templates by name. All kinds that ask by a prompt have one called `prompt`.
Templates = Mapping[str, PromptTemplates]
#: Reads a model's config.json.
ReadConfig = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Join:
    """A way to make a row's cells from those of its chunks, and its name in the job file."""

    kind: JoinKind
    cells: Callable[[Sequence[Cells]], Cells | Reject]


def prompt_templates(step: "TaskStep[Any]") -> Templates:
    """The step's prompt, compiled."""
    return {"prompt": compile_prompt(step.prompt, step.prompt_prefix)}


def template_columns(step: "TaskStep[Any]") -> Mapping[str, str]:
    """The columns that the step's templates use, each with the key of the last that uses it."""
    columns: dict[str, str] = {}
    for templates in step.templates.values():
        columns |= templates.columns
    return columns


@dataclass(frozen=True, kw_only=True)
class TaskKind(Generic[SectionT]):
    """One kind of task.

    Attributes:
        name: The section's `kind`.
        section: The keys in the job file.
        fields: The output columns and their types. They follow from the section alone.
        build: Makes the task. Raises `UserError` for what cannot work with the model.
        starter: The kind's part of the job file that `tokenmill init` writes.
        writes_text: Whether the model writes text, so that `sampling.max_tokens` is needed.
        asks_by_prompt: Whether the task needs a `prompt`.
        takes_chats: Whether a column of whole chats can take the place of templates.
        joins_by_prompt: Whether a second prompt can join the answers of a long text's chunks.
        runner: Which of vLLM's two runners the task's model needs.
        join: How chunks are joined without a second prompt; None if they cannot be.
        default_prompt: The prompt if neither the task nor the job has one.
        templates: Compiles the step's templates. Raises `UserError`.
        columns: The input columns that the task reads, each with the job key that names it.
        params: The parameters of the task's requests, as far as they are known without a model.
        check: Raises `ValueError` for a section that is invalid with its prompt and sampling.
        resolve: Fills in keys of the section from the model's config.json.
        auxiliary_models: The models that the task needs in addition to its own, by section key.
        override_problem: Why a row cannot have these overrides, though each is valid by itself.
        located_column: The column in whose text the answers have offsets, if they have.
        media_column: The column with images or audio, if there is one.
        is_record: Whether the answer is all fields together, and not the first one alone.
        empty_advice: What to do if no row has an answer; empty if only the prompt can help.
    """

    name: str
    section: type[SectionT]
    fields: Callable[[SectionT], tuple[pa.Field, ...]]
    build: Callable[["TaskStep[SectionT]", TaskContext], Task]
    starter: Starter
    writes_text: bool = True
    asks_by_prompt: bool = True
    takes_chats: bool = False
    joins_by_prompt: bool = True
    runner: Callable[[SectionT], Runner] = lambda _: "generate"
    join: Callable[[SectionT], Join | None] = lambda _: None
    default_prompt: Callable[[SectionT], Prompt | None] = lambda _: None
    templates: Callable[["TaskStep[SectionT]"], Templates] = prompt_templates
    columns: Callable[["TaskStep[SectionT]"], Mapping[str, str]] = template_columns
    params: Callable[["TaskStep[SectionT]"], tuple[Params, ...]] = lambda step: step.samplings
    check: Callable[["TaskStep[SectionT]"], None] = lambda _: None
    resolve: Callable[["TaskStep[SectionT]", ReadConfig], SectionT] = lambda step, _: step.section
    auxiliary_models: Callable[[SectionT], Mapping[str, AuxiliaryModel]] = lambda _: {}
    override_problem: Callable[[SectionT, Mapping[str, Any]], str | None] = lambda *_: None
    located_column: Callable[[SectionT], str | None] = lambda _: None
    media_column: Callable[[SectionT], str | None] = lambda _: None
    is_record: bool = False
    empty_advice: str = ""


@dataclass(frozen=True)
class TaskStep(Generic[SectionT]):
    """One task of a job: its kind, and its section with the job's defaults filled in.

    `is_join` marks the second prompt of a task that divides long texts, `is_only` a task that is
    not in a list: its keys are in the job's section `task`, whether it has a name or not.
    """

    kind: TaskKind[SectionT]
    section: SectionT
    is_join: bool = False
    is_only: bool = False

    @property
    def name(self) -> str:
        """What people call the task: its own name, or that of its kind."""
        return self.section.name or self.kind.name

    @property
    def key_prefix(self) -> str:
        """Comes before keys in messages; empty if the job has a single task."""
        has_prefix = self.section.name is not None and not self.is_only
        return f"tasks.{self.section.name}." if has_prefix else ""

    @property
    def prompt_prefix(self) -> str:
        """Comes before `prompt` in messages."""
        return f"{self.key_prefix}length.join." if self.is_join else self.key_prefix

    def key_of(self, key: str) -> str:
        """The job's key for one of the section's keys."""
        return f"{self.key_prefix or 'task.'}{key}"

    @property
    def model_key(self) -> str | None:
        """The key of the task's own model; None if the job's model answers."""
        return None if self.section.model is None else self.key_of("model")

    @property
    def prompt(self) -> Prompt:
        """The prompt, the job's or the task's own."""
        if self.section.prompt is None:
            raise ValueError(f"{self.key_prefix}prompt is missing; write what to ask about a row")
        return self.section.prompt

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters, the job's or the task's own."""
        if self.section.sampling is None:
            raise ValueError(f"{self.key_prefix}sampling is missing; set at least max_tokens")
        return Sampling(self.section.sampling)

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """The sampling of each attempt: the first, then the retries. Empty without sampling."""
        if not self.kind.writes_text:
            return ()
        first, retries = self.sampling, self.section.retries
        if retries is None:
            return (first,)
        return (first, *map(Sampling, retries.samplings(dict(first.values))))

    @property
    def runner(self) -> Runner:
        """Which of vLLM's two runners the task's model needs."""
        return self.kind.runner(self.section)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The task's output columns, without its name before them."""
        return self.kind.fields(self.section)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """The fields that hold the answer itself; the others describe it."""
        names = tuple(str(field.name) for field in self.fields)
        return names if self.kind.is_record else names[:1]

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters of the task's requests, as far as they are known without a model."""
        return self.kind.params(self)

    @property
    def uses_seeds(self) -> bool:
        """Whether a request may be sampled with a seed: the job's, the task's own or a row's."""
        overrides = self.section.overrides or {}
        return any(
            ("seed" in overrides or params.values.get("seed") is not None)
            # At temperature 0 vLLM ignores the seed.
            and ("temperature" in overrides or params.values.get("temperature") != 0)
            for params in self.params
            if isinstance(params, Sampling)
        )

    @property
    def join(self) -> Join | None:
        """How chunks are joined without a second prompt, if they can be."""
        return self.kind.join(self.section)

    @property
    def located_column(self) -> str | None:
        """The column in whose text the answers have offsets, if they have."""
        return self.kind.located_column(self.section)

    @property
    def media_column(self) -> str | None:
        """The column with images or audio, if there is one."""
        return self.kind.media_column(self.section)

    @cached_property
    def templates(self) -> Templates:
        """All templates of the task's requests, compiled once. Raises `UserError`."""
        return self.kind.templates(self)

    @property
    def columns(self) -> Mapping[str, str]:
        """The columns that the task reads, each with the job key that names it."""
        return self.kind.columns(self)

    @property
    def all_columns(self) -> Mapping[str, str]:
        """`columns`, and those that hold a row's overrides and adapter."""
        overrides = (self.section.overrides or {}).values()
        columns = dict.fromkeys(overrides, f"{self.key_prefix}overrides")
        if self.section.adapter is not None:
            columns[self.section.adapter] = f"{self.key_prefix}adapter"
        return {**columns, **self.columns}

    @property
    def auxiliary_models(self) -> dict[str, AuxiliaryModel]:
        """The models that the task needs in addition to the job's model, by their job keys."""
        models = {}
        if self.section.model is not None:
            models[self.key_of("model")] = AuxiliaryModel(self.section.model, self.runner)
        others = self.kind.auxiliary_models(self.section)
        return models | {self.key_of(key): model for key, model in others.items()}

    @cached_property
    def final(self) -> "TaskStep[SectionT] | None":
        """The step whose prompt joins the answers of a long text's chunks, if one does."""
        length = self.section.length
        if not (isinstance(length, Chunk) and isinstance(length.join, JoinPrompt)):
            return None
        sampling = length.join.sampling or self.section.sampling
        changes = {"prompt": length.join.prompt, "sampling": sampling, "length": None}
        return replace(self, section=self.section.model_copy(update=changes), is_join=True)

    def encoder(self, context: TaskContext, name: str = "prompt") -> PromptEncoder:
        """What turns rows into the token ids of one of the step's templates."""
        return PromptEncoder(self.templates[name], context.tokenizer)

    def build(self, context: TaskContext) -> Task:
        """Make the task. Raises `UserError` for what cannot work with the model."""
        return self.kind.build(self, context)

    def check(self) -> None:
        """Raise `ValueError` for a section that is invalid with the job's defaults."""
        if self.kind.asks_by_prompt:
            _check_chat(self)
        elif self.section.prompt is not None:
            raise ValueError(
                f"{self.key_prefix}prompt: {self.kind.name} tasks have no prompt; remove it"
            )
        if self.kind.writes_text:
            check_sampling(dict(self.sampling.values), self.key_prefix)
        for step in (self, self.final):
            if step is not None:
                _check_retries(step)
                step.kind.check(step)


def _check_chat(step: TaskStep[Any]) -> None:
    """Raise `ValueError` for whole chats if the task or its length policy needs templates.

    A task cannot add to a whole chat, and a length policy cannot cut it.
    """
    prefix = step.key_prefix
    if step.final is not None and step.final.prompt.chat is not None:
        raise ValueError(f"{prefix}length.join.prompt.chat: a join needs templates")
    if step.prompt.chat is None:
        return
    if not step.kind.takes_chats:
        raise ValueError(f"{prefix}prompt.chat: only generate accepts whole chats; use templates")
    if isinstance(step.section.length, Truncate | Chunk):
        raise ValueError(  # noqa: TRY004 - a mistake in the job
            f"{prefix}length: whole chats cannot be cut; remove it, or use templates"
        )


def _check_retries(step: TaskStep[Any]) -> None:
    retries = step.section.retries
    if retries is None:
        return
    if not step.kind.writes_text:
        raise ValueError(f"{step.key_prefix}retries: the task generates no text; remove it")
    check_retries(retries, dict(step.sampling.values))


def check_logprobs(params: Sequence[Params]) -> None:
    """Raise `ValueError` for requests that cannot share an engine.

    If a batch has a request with `logprob_token_ids`, vLLM 0.32 returns no alternatives for the
    others (`v1/sample/sampler.py`: "prefer logprob_token_ids").
    """
    samplings = [item.values for item in params if isinstance(item, Sampling)]
    wants_top = any(values.get("logprobs") for values in samplings)
    if wants_top and any(values.get("logprob_token_ids") is not None for values in samplings):
        raise ValueError(
            "tokens.top and sampling.logprobs cannot be combined with classify and tag: vLLM would "
            "not return the likeliest tokens; make two jobs"
        )
