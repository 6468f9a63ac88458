"""Generate: the prompt's answer as text, why it ended, and how likely the model found it.

Or several answers to the same prompt, all of them or the best. Each is a request of its own (the
prompt is in the engine's prefix cache behind the first), so that one that fails touches no other.
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

# The prompt ends inside of the thinking.
_OPEN_NOTE = "open"
# The prompt as the judge of several answers reads it.
_CONTENTS_NOTE = "contents"
_MOST_SAMPLES = 1000
_JUDGE_KEY = "best_of.model"


class BestOf(Section):
    """`best_of: {n: 8, by: mean_logprob}`, or `{n: 8, by: reward, model: {source: …}}`."""

    n: int = Field(ge=2, le=_MOST_SAMPLES)
    by: Literal["mean_logprob", "reward"] = "mean_logprob"
    model: ModelSource | None = Field(default=None, description="The reward model that chooses.")

    @model_validator(mode="after")
    def _judge_of_rewards(self) -> "BestOf":
        if (self.by == "reward") != (self.model is not None):
            raise ValueError("by: reward goes with the reward model as model; give both or neither")
        return self


class Tokens(Section):
    """`tokens: {top: 5}`."""

    # vLLM's own limit.
    top: int = Field(default=0, ge=0, le=20, description="Likeliest tokens in each one's place.")


class Generate(TaskSection):
    """`task: {kind: generate}`, the task of a job that names none."""

    kind: Literal["generate"] = "generate"
    n: int = Field(default=1, ge=1, le=_MOST_SAMPLES, description="Answers to each row, in lists.")
    best_of: BestOf | None = Field(default=None, description="Of n answers the best alone.")
    reasoning: ThinkingMarkers | None = Field(
        default=None, description="Split the thinking off: true, or its marks as {start, end}."
    )
    tokens: Tokens | None = Field(
        default=None, description="The generated tokens with their log-probabilities."
    )
    complete: bool = Field(
        default=False, description="An answer that max_tokens cuts off does not do."
    )

    @field_validator("reasoning", mode="before")
    @classmethod
    def _usual_marks(cls, reasoning: Any) -> Any:
        if isinstance(reasoning, bool):
            return ThinkingMarkers() if reasoning else None
        return reasoning

    @model_validator(mode="after")
    def _whole_samples(self) -> "Generate":
        if self.best_of is not None and self.n != 1:
            raise ValueError("give one of n and best_of")
        return self


def _num_samples(section: Generate) -> int:
    """How many answers are requested for a row."""
    return section.n if section.best_of is None else section.best_of.n


def _judge_model(section: Generate) -> ModelSource | None:
    """The reward model that chooses the best answer, if one does."""
    return None if section.best_of is None else section.best_of.model


def _fields(section: Generate) -> tuple[pa.Field, ...]:
    """The columns of one answer; with `n` each is a list."""
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
    """Without randomness all samples would be equal."""
    greedy = overrides.get("temperature") == 0 or overrides.get("top_k") == 1
    if greedy and _num_samples(section) > 1:
        return "temperature 0 (or top_k 1) makes all samples of the row alike"
    return None


def _check(step: TaskStep[Generate]) -> None:
    section, prefix = step.section, step.key_prefix
    num_samples = _num_samples(section)
    if section.retries is not None and num_samples > 1:
        raise ValueError(f"{prefix}retries: several samples are tries enough; leave it out")
    check_whole_answers(step, complete=section.complete)
    sampling = section.sampling or {}
    if section.tokens is not None and "logprobs" in sampling:
        raise ValueError(f"{prefix}sampling.logprobs: tokens.top says it; leave it out")
    if _judge_model(section) is not None and step.prompt.chat is not None:
        raise ValueError(f"{prefix}best_of.by: a reward model reads templates, not chats")
    if section.best_of is not None and sampling.get("logprobs", 0) is None:
        raise ValueError(f"{prefix}sampling.logprobs: best_of compares them; leave it out")
    if num_samples == 1:
        return
    if sampling.get("temperature") == 0 or sampling.get("top_k") == 1:
        raise ValueError(
            f"{prefix}n: at temperature 0 (or top_k 1) all samples are alike; raise it"
        )
    if "seed" in (section.overrides or {}) and sampling.get("seed") is None:
        raise ValueError(f"{prefix}overrides.seed: with several samples set sampling.seed as well")


def _samplings(step: TaskStep[Generate], *, special_tokens: bool = False) -> tuple[Sampling, ...]:
    """One for each answer, which differ in their seeds; or one for each attempt at one answer.

    `special_tokens` keeps the special tokens in the text, for a model whose thinking markers are
    special tokens.
    """
    section = step.section
    extra: dict[str, Any] = {} if section.tokens is None else {"logprobs": section.tokens.top}
    if special_tokens:
        extra["skip_special_tokens"] = False
    first, *retries = (Sampling({**attempt.values, **extra}) for attempt in step.samplings)
    num_samples, seed = _num_samples(section), first.values.get("seed")
    if num_samples == 1 or seed is None:
        return (*(first,) * num_samples, *retries)
    return tuple(Sampling({**first.values, "seed": seed + number}) for number in range(num_samples))


def _build(step: TaskStep[Generate], context: TaskContext) -> "Generator":
    section = step.section
    splitter = None if section.reasoning is None else Splitter(section.reasoning, context.tokenizer)
    special = splitter is not None and splitter.needs_special_tokens
    if special and step.sampling.values.get("skip_special_tokens"):
        raise UserError(
            f"{step.key_prefix}sampling.skip_special_tokens: reasoning needs the model's marks, "
            "which are special tokens; leave it out"
        )
    samplings = _samplings(step, special_tokens=special)
    judge = None
    if _judge_model(section) is not None:
        key = step.key_of(_JUDGE_KEY)
        auxiliary = context.auxiliary[key]
        judge = _RewardJudge(RewardJudge(auxiliary, key, model=key), step.encoder(auxiliary))
    return Generator(section, step.encoder(context), splitter, samplings, judge)


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
    """One request for each of a row's answers, all in one round; or one answer until it does."""

    def __init__(
        self,
        section: Generate,
        prompter: PromptEncoder,
        splitter: Splitter | None,
        samplings: Sequence[Sampling],
        judge: "_RewardJudge | None",
    ) -> None:
        self._section = section
        self._columns = _answer_columns(section)
        self._prompter = prompter
        self._splitter = splitter
        self._samplings = samplings
        self._judge = judge
        self._stop_token_ids = frozenset(samplings[0].values.get("stop_token_ids") or ())

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            prompt
            if isinstance(prompt, Reject)
            else PreparedRow([prompt], self._notes(prompt, row))
            for prompt, row in zip(self._prompter.encode(rows), rows, strict=True)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        samples = yield from self._ask(prepared.prompts[0], _OPEN_NOTE in prepared.notes)
        sound = [sample for sample in samples if isinstance(sample, SampledAnswer)]
        if not sound:
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
            return self._cells(sound[0])
        counted = {"num_samples": len(sound)}
        if self._judge is None:
            return self._cells(max(sound, key=_likelihood)) | counted
        choice = yield from self._judge.best(prepared.notes[_CONTENTS_NOTE], sound)
        if isinstance(choice, Reject):
            return choice
        return self._cells(choice.sample) | counted | {"reward": choice.reward}

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
        if self._judge is not None:
            notes[_CONTENTS_NOTE] = self._judge.contents(row)
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
    """The answer that a reward model prefers, and its number."""

    sample: SampledAnswer
    reward: float


class _RewardJudge:
    """Chooses among answers to a prompt, which it writes with its own model's tokenizer."""

    def __init__(self, judge: RewardJudge, prompter: PromptEncoder) -> None:
        self._judge = judge
        self._prompter = prompter

    def contents(self, row: Row) -> list[str]:
        """What the judge reads of a row whose prompt could be written."""
        contents = self._prompter.render_row(row)
        if isinstance(contents, Reject):
            raise ValueError(contents.message)  # noqa: TRY004 - the same templates, the same row
        return contents

    def best(
        self, contents: Sequence[str], samples: Sequence[SampledAnswer]
    ) -> Dialogue[_Choice | Reject]:
        """The sample with the largest number, the first of equals; the thinking is not judged."""
        guard = self._prompter.tokenizer.control_tokens.escape
        roles = self._prompter.templates.roles
        prompts = self._judge.encode(
            [Judged(roles, contents, guard(sample.thought.answer)) for sample in samples]
        )
        rewards = yield from self._judge.rewards(prompts)
        known = [reward if isinstance(reward, float) else None for reward in rewards]
        at = best_index(known)
        reward = None if at is None else known[at]
        if at is None or reward is None:
            return next(reward for reward in rewards if isinstance(reward, Reject))
        return _Choice(samples[at], reward)


def _all_failed(rejects: Sequence[Reject]) -> Reject:
    first = rejects[0]
    if len(rejects) == 1:
        return first
    message = f"all {len(rejects)} samples failed, the first: {first.message}"
    return Reject(first.reject_class, message, first.attempts)


def _likelihood(sample: SampledAnswer) -> float:
    """What the best of several is chosen by; an empty answer is behind all others."""
    mean = mean_logprob(sample.completion)
    return -math.inf if mean is None else mean
