"""The `generate` task: writes an answer to the prompt, with finish reason and log-probabilities.

It can also write several answers and keep all of them, or only the best. Each is a separate
request, so that a failure does not affect the others; the engine's prefix cache holds the prompt
after the first one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from tokenmill.config.model_source import ModelSource
from tokenmill.config.section import Section
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject
from tokenmill.request import Completion, Request, Sampling
from tokenmill.tasks.generation.answer_columns import (
    COLUMNS,
    AnswerColumn,
    SampledAnswer,
    joined_cells,
    mean_logprob,
)
from tokenmill.tasks.generation.reasoning import Splitter, ThinkingMarkers, Thought
from tokenmill.tasks.kind import Join, TaskKind, TaskStep
from tokenmill.tasks.retries import ask_until_valid, check_whole_answers, cut_off
from tokenmill.tasks.scoring.reward import Judged, RewardJudge, best_index
from tokenmill.tasks.section import TaskSection, has_stops
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import AuxiliaryModel, Cells, Dialogue, PreparedRow, Row, TaskContext

# Note: the prompt ends inside the reasoning.
_OPEN_NOTE = "open"
# Note: the prompt's contents, for the reward model that chooses among the answers.
_CONTENTS_NOTE = "contents"
_MAX_SAMPLES = 1000
_JUDGE_KEY = "best_of.model"


class BestOf(Section):
    """`best_of: {n: 8, by: mean_logprob}`, or `{n: 8, by: reward, model: {source: …}}`.

    Generates n answers to each row and keeps the best.
    """

    n: int = Field(ge=2, le=_MAX_SAMPLES)
    by: Literal["mean_logprob", "reward"] = "mean_logprob"
    model: ModelSource | None = Field(
        default=None, description="Reward model that scores the answers. Required with by: reward."
    )

    @model_validator(mode="after")
    def _judge_of_rewards(self) -> "BestOf":
        if (self.by == "reward") != (self.model is not None):
            raise ValueError("by: reward and model (the reward model) must be set together")
        return self


class Tokens(Section):
    """`tokens: {top: 5}`: the generated tokens, each with the likeliest alternatives."""

    # vLLM's own limit.
    top: int = Field(default=0, ge=0, le=20, description="Likeliest tokens per position.")


class Generate(TaskSection):
    """`task: {kind: generate}`: text per row. The default if a job has no task."""

    kind: Literal["generate"] = "generate"
    n: int = Field(
        default=1,
        ge=1,
        le=_MAX_SAMPLES,
        description="Answers per row. With several, columns are lists.",
    )
    best_of: BestOf | None = Field(
        default=None, description="Generate several answers and keep the best."
    )
    reasoning: ThinkingMarkers | None = Field(
        default=None,
        description="Move the reasoning to its own column: true, or its markers {start, end}.",
    )
    tokens: Tokens | None = Field(
        default=None, description="Add the generated tokens and their log-probabilities."
    )
    complete: bool = Field(default=False, description="Reject answers that max_tokens cuts off.")

    @field_validator("reasoning", mode="before")
    @classmethod
    def _default_markers(cls, reasoning: Any) -> Any:
        if isinstance(reasoning, bool):
            return ThinkingMarkers() if reasoning else None
        return reasoning

    @model_validator(mode="after")
    def _whole_samples(self) -> "Generate":
        if self.best_of is not None and self.n != 1:
            raise ValueError("set n or best_of, not both")
        return self


def _num_samples(section: Generate) -> int:
    """The number of answers that a row requests."""
    return section.n if section.best_of is None else section.best_of.n


def _judge_model(section: Generate) -> ModelSource | None:
    """The reward model that chooses the best answer, if one does."""
    return None if section.best_of is None else section.best_of.model


def _fields(section: Generate) -> tuple[pa.Field, ...]:
    """The output columns. If `n` is above 1, each is a list."""
    columns = _answer_columns(section)
    if section.n > 1:
        return tuple(pa.field(column.list_name, pa.list_(column.type)) for column in columns)
    fields = tuple(pa.field(column.name, column.type) for column in columns)
    if section.best_of is not None:
        fields = (*fields, pa.field("num_samples", pa.int32()))
    if _judge_model(section) is not None:
        fields = (*fields, pa.field("reward", pa.float64()))
    return fields


def _answer_columns(section: Generate) -> tuple[AnswerColumn, ...]:
    """The columns of one answer that the section asks for."""
    absent = set()
    if not has_stops(section):
        absent.add("stop_reason")
    if section.reasoning is None:
        absent.add("reasoning_text")
    if section.tokens is None:
        absent.add("tokens")
    return tuple(column for column in COLUMNS if column.name not in absent)


def _join(section: Generate) -> Join | None:
    """Texts are concatenated; lists of them cannot be."""
    return Join("concatenate", joined_cells) if section.n == 1 else None


def _auxiliary_models(section: Generate) -> dict[str, AuxiliaryModel]:
    model = _judge_model(section)
    return {} if model is None else {_JUDGE_KEY: AuxiliaryModel(model, "pooling")}


def _override_problem(section: Generate, overrides: Mapping[str, Any]) -> str | None:
    """Reject greedy sampling with several samples, which would all be equal."""
    greedy = overrides.get("temperature") == 0 or overrides.get("top_k") == 1
    if greedy and _num_samples(section) > 1:
        return "temperature 0 (or top_k 1) makes all samples of the row equal"
    return None


def _check(step: TaskStep[Generate]) -> None:
    section, prefix = step.section, step.key_prefix
    num_samples = _num_samples(section)
    if section.retries is not None and num_samples > 1:
        raise ValueError(f"{prefix}retries: cannot be used with several samples; remove it")
    check_whole_answers(step, complete=section.complete)
    sampling = section.sampling or {}
    if section.tokens is not None and "logprobs" in sampling:
        raise ValueError(f"{prefix}sampling.logprobs: tokens.top already sets it; remove it")
    if _judge_model(section) is not None and step.prompt.chat is not None:
        raise ValueError(f"{prefix}best_of.by: reward needs a prompt of templates, not prompt.chat")
    if section.best_of is not None and sampling.get("logprobs", 0) is None:
        raise ValueError(f"{prefix}sampling.logprobs: best_of needs log-probabilities; remove it")
    if num_samples == 1:
        return
    if sampling.get("temperature") == 0 or sampling.get("top_k") == 1:
        raise ValueError(
            f"{prefix}n: at temperature 0 (or top_k 1) all samples are equal; raise temperature"
        )
    if "seed" in (section.overrides or {}) and sampling.get("seed") is None:
        raise ValueError(f"{prefix}overrides.seed: with several samples, set sampling.seed as well")


def _samplings(step: TaskStep[Generate], *, special_tokens: bool = False) -> tuple[Sampling, ...]:
    """The sampling parameters of each of several answers, or of each attempt at one answer.

    If a seed is set, samples use consecutive seeds. `special_tokens` keeps special tokens in the
    text, for a model whose reasoning markers are special tokens.
    """
    section = step.section
    extra: dict[str, Any] = {} if section.tokens is None else {"logprobs": section.tokens.top}
    if special_tokens:
        extra["skip_special_tokens"] = False
    first, *retries = (Sampling({**attempt.values, **extra}) for attempt in step.samplings)
    num_samples, seed = _num_samples(section), first.values.get("seed")
    if num_samples == 1 or seed is None:
        return (*(first,) * num_samples, *retries)
    return tuple(Sampling({**first.values, "seed": seed + i}) for i in range(num_samples))


def _build(step: TaskStep[Generate], context: TaskContext) -> "Generator":
    section = step.section
    splitter = None if section.reasoning is None else Splitter(section.reasoning, context.tokenizer)
    special = splitter is not None and splitter.needs_special_tokens
    if special and step.sampling.values.get("skip_special_tokens"):
        raise UserError(
            f"{step.key_prefix}sampling.skip_special_tokens: reasoning needs the model's markers, "
            "which are special tokens; remove it"
        )
    samplings = _samplings(step, special_tokens=special)
    chooser = None
    if _judge_model(section) is not None:
        key = step.key_of(_JUDGE_KEY)
        auxiliary = context.auxiliary[key]
        chooser = _BestAnswer(RewardJudge(auxiliary, key, model=key), step.encoder(auxiliary))
    return Generator(section, step.encoder(context), splitter, samplings, chooser)


GENERATE = TaskKind(
    name="generate",
    section=Generate,
    fields=_fields,
    build=_build,
    takes_chats=True,
    join=_join,
    params=_samplings,
    check=_check,
    auxiliary_models=_auxiliary_models,
    override_problem=_override_problem,
    starter=Starter(
        "summaries",
        """\
prompt:                           # Jinja2 templates over the row's columns
  system: You write one-sentence summaries.
  user: $text
sampling: {temperature: 0, max_tokens: 64}   # arguments of vLLM's SamplingParams
# task: {kind: generate, complete: true}     # reject answers that are cut off at max_tokens
""",
    ),
)


class Generator:
    """Sends one request per answer, all in one round. A single answer can be retried."""

    def __init__(
        self,
        section: Generate,
        encoder: PromptEncoder,
        splitter: Splitter | None,
        samplings: Sequence[Sampling],
        chooser: "_BestAnswer | None",
    ) -> None:
        self._section = section
        self._columns = _answer_columns(section)
        self._encoder = encoder
        self._splitter = splitter
        self._samplings = samplings
        self._chooser = chooser
        self._stop_token_ids = frozenset(samplings[0].values.get("stop_token_ids") or ())

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            prompt
            if isinstance(prompt, Reject)
            else PreparedRow([prompt], self._notes(prompt, row))
            for prompt, row in zip(self._encoder.encode(rows), rows, strict=True)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        samples = yield from self._ask(prepared.prompts[0], _OPEN_NOTE in prepared.notes)
        valid = [sample for sample in samples if isinstance(sample, SampledAnswer)]
        if not valid:
            return _all_failed([sample for sample in samples if isinstance(sample, Reject)])
        if self._section.n > 1:
            return {
                column.list_name: [
                    column.cell(sample) if isinstance(sample, SampledAnswer) else None
                    for sample in samples
                ]
                for column in self._columns
            }
        if self._section.best_of is None:
            return self._cells(valid[0])
        count = {"num_samples": len(valid)}
        if self._chooser is None:
            return self._cells(max(valid, key=_likelihood)) | count
        choice = yield from self._chooser.best(prepared.notes[_CONTENTS_NOTE], valid)
        if isinstance(choice, Reject):
            return choice
        return self._cells(choice.sample) | count | {"reward": choice.reward}

    def _cells(self, sample: SampledAnswer) -> dict[str, Any]:
        return {column.name: column.cell(sample) for column in self._columns}

    def _ask(self, prompt: Sequence[int], is_open: bool) -> Dialogue[list[SampledAnswer | Reject]]:
        if self._section.complete and _num_samples(self._section) == 1:
            sample = yield from ask_until_valid(
                prompt, self._samplings, lambda answer: self._sample(answer, is_open)
            )
            return [sample]
        answers = yield [Request(prompt, sampling) for sampling in self._samplings]
        return [
            answer if isinstance(answer, Reject) else self._sample(answer, is_open)
            for answer in answers
        ]

    def _notes(self, prompt: Sequence[int], row: Row) -> Mapping[str, Any]:
        notes: dict[str, Any] = {}
        if self._splitter is not None and self._splitter.opens(prompt):
            notes[_OPEN_NOTE] = True
        if self._chooser is not None:
            notes[_CONTENTS_NOTE] = self._chooser.contents(row)
        return notes

    def _sample(self, answer: Completion, is_open: bool) -> SampledAnswer | Reject:
        cut = cut_off(answer) if self._section.complete else None
        if cut is not None:
            return cut
        thought: Thought | Reject = Thought(None, answer.text)
        if self._splitter is not None:
            thought = self._splitter.split(answer, is_open=is_open)
        if isinstance(thought, Reject):
            return thought
        return SampledAnswer(answer, thought, answer.job_stop(self._stop_token_ids))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The answer that a reward model prefers, and its reward."""

    sample: SampledAnswer
    reward: float


class _BestAnswer:
    """Chooses the best of several answers with a reward model.

    `encoder` renders the prompt for the reward model.
    """

    def __init__(self, judge: RewardJudge, encoder: PromptEncoder) -> None:
        self._judge = judge
        self._encoder = encoder

    def contents(self, row: Row) -> list[str]:
        """The prompt's contents for a row whose prompt has already been rendered."""
        contents = self._encoder.render_row(row)
        if isinstance(contents, Reject):
            raise ValueError(contents.message)  # noqa: TRY004 - these templates have rendered this row
        return contents

    def best(
        self, contents: Sequence[str], samples: Sequence[SampledAnswer]
    ) -> Dialogue[_Choice | Reject]:
        """The sample with the largest reward, the first if several are equal.

        The reward model does not read the reasoning.
        """
        escape = self._encoder.tokenizer.control_tokens.escape
        roles = self._encoder.templates.roles
        prompts = self._judge.encode(
            [Judged(roles, contents, escape(sample.thought.answer)) for sample in samples]
        )
        rewards = yield from self._judge.rewards(prompts)
        numbers = [reward if isinstance(reward, float) else None for reward in rewards]
        best = best_index(numbers)
        reward = None if best is None else numbers[best]
        if best is None or reward is None:
            return next(reward for reward in rewards if isinstance(reward, Reject))
        return _Choice(samples[best], reward)


def _all_failed(rejects: Sequence[Reject]) -> Reject:
    first = rejects[0]
    if len(rejects) == 1:
        return first
    message = f"all {len(rejects)} samples failed; the first: {first.message}"
    return Reject(first.reject_class, message, first.attempts)


def _likelihood(sample: SampledAnswer) -> float:
    """The key for the likeliest of several samples. An empty answer is the least likely."""
    mean = mean_logprob(sample.completion)
    return -math.inf if mean is None else mean
