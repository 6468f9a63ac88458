"""Generate: the prompt's answer as text, why it ended, and how likely the model found it.

Or several answers to the same prompt, all of them or the best. Each is a request of its own (the
prompt is in the engine's prefix cache behind the first), so that one that fails touches no other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from tokenmill.config.length import JoinKind
from tokenmill.config.model_source import ModelSource
from tokenmill.config.section import Section
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.reject import Reject
from tokenmill.request import Completion, Params, Request, Sampling
from tokenmill.tasks.generation.answer_columns import (
    COLUMNS,
    JOINS,
    AnswerColumn,
    SampledAnswer,
    joined_mean,
    mean_logprob,
)
from tokenmill.tasks.generation.reasoning import Splitter, ThinkingMarkers, Thought
from tokenmill.tasks.retries import ask_until_valid, check_whole_answers, cut_off
from tokenmill.tasks.scoring.reward import Judged, RewardJudge, best_index
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, SideModel, TaskContext

# The prompt ends inside of the thinking.
_OPEN_NOTE = "open"
# The prompt as the judge of several answers reads it.
_CONTENTS_NOTE = "contents"
_MOST_SAMPLES = 1000


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

    takes_chats: ClassVar[bool] = True

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

    def check(self) -> None:
        super().check()
        if self.retries is not None and self.num_samples > 1:
            raise ValueError(f"{self.place}retries: several samples are tries enough; leave it out")
        check_whole_answers(self, complete=self.complete)
        sampling = self.sampling or {}
        if self.tokens is not None and "logprobs" in sampling:
            raise ValueError(f"{self.place}sampling.logprobs: tokens.top says it; leave it out")
        if self.judge_place is not None and self.own_prompt.chat is not None:
            raise ValueError(f"{self.place}best_of.by: a reward model reads templates, not chats")
        if self.best_of is not None and sampling.get("logprobs", 0) is None:
            raise ValueError(f"{self.place}sampling.logprobs: best_of compares them; leave it out")
        if self.num_samples == 1:
            return
        if sampling.get("temperature") == 0 or sampling.get("top_k") == 1:
            raise ValueError(
                f"{self.place}n: at temperature 0 (or top_k 1) all samples are alike; raise it"
            )
        if "seed" in (self.overrides or {}) and sampling.get("seed") is None:
            raise ValueError(
                f"{self.place}overrides.seed: with several samples set sampling.seed as well"
            )

    @property
    def num_samples(self) -> int:
        """How many answers are asked for."""
        return self.n if self.best_of is None else self.best_of.n

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """One of each of `COLUMNS` that the section wants; lists where a row has n answers."""
        if self.n > 1:
            return tuple(
                pa.field(column.list_name, pa.list_(column.type)) for column in self.wanted
            )
        fields = tuple(pa.field(column.name, column.type) for column in self.wanted)
        if self.best_of is None:
            return fields
        fields = (*fields, pa.field("num_samples", pa.int32()))
        return fields if self.judge_place is None else (*fields, pa.field("reward", pa.float64()))

    @property
    def judge_place(self) -> str | None:
        """Where the job names the model that chooses the best answer, if one does."""
        by_reward = self.best_of is not None and self.best_of.model is not None
        return self.place_of("best_of.model") if by_reward else None

    @property
    def side_models(self) -> dict[str, SideModel]:
        """The task's own, and the reward model."""
        models = super().side_models
        if self.best_of is not None and self.best_of.model is not None:
            models[self.place_of("best_of.model")] = SideModel(self.best_of.model, "pooling")
        return models

    @property
    def wanted(self) -> tuple["AnswerColumn", ...]:
        """What is told of each answer."""
        absent = set()
        if not self.has_stops:
            absent.add("stop_reason")
        if self.reasoning is None:
            absent.add("reasoning_text")
        if self.tokens is None:
            absent.add("tokens")
        return tuple(column for column in COLUMNS if column.name not in absent)

    @property
    def join_kind(self) -> JoinKind | None:
        """Texts stand one after another; lists of them cannot."""
        return "concatenate" if self.n == 1 else None

    @property
    def params(self) -> tuple[Params, ...]:
        """One for each answer, alike but for the seeds; or one for each attempt at the one."""
        return self.samplings(special_tokens=False)

    def samplings(self, *, special_tokens: bool) -> tuple[Sampling, ...]:
        """`params`, those of a model whose marks are special tokens with `special_tokens`."""
        extra: dict[str, Any] = {} if self.tokens is None else {"logprobs": self.tokens.top}
        if special_tokens:
            extra["skip_special_tokens"] = False
        first, *retries = (Sampling({**own.values, **extra}) for own in self.own_samplings)
        seed = first.values.get("seed")
        if self.num_samples == 1 or seed is None:
            return (*(first,) * self.num_samples, *retries)
        return tuple(
            Sampling({**first.values, "seed": seed + at}) for at in range(self.num_samples)
        )

    def override_problem(self, overrides: Mapping[str, Any]) -> str | None:
        """Samples without chance would be alike."""
        greedy = overrides.get("temperature") == 0 or overrides.get("top_k") == 1
        if greedy and self.num_samples > 1:
            return "temperature 0 (or top_k 1) makes all samples of the row alike"
        return None

    def build(self, tools: TaskContext) -> "Generator":
        splitter = None if self.reasoning is None else Splitter(self.reasoning, tools.tokenizer)
        special = splitter is not None and splitter.needs_special_tokens
        if special and self.own_sampling.values.get("skip_special_tokens"):
            raise UserError(
                f"{self.place}sampling.skip_special_tokens: reasoning needs the model's marks, "
                "which are special tokens; leave it out"
            )
        samplings = self.samplings(special_tokens=special)
        return Generator(self, self.prompter(tools), splitter, samplings, self._judge(tools))

    def _judge(self, tools: TaskContext) -> "_RewardJudge | None":
        if self.judge_place is None:
            return None
        beside = tools.beside[self.judge_place]
        judge = RewardJudge(beside, self.place, model=self.judge_place)
        return _RewardJudge(judge, self.prompter(beside))


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
                for column in self._section.wanted
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
        return {column.name: column.cell(sample) for column in self._section.wanted}

    def _ask(self, prompt: Sequence[int], is_open: bool) -> Dialogue[list[SampledAnswer | Reject]]:
        if self._section.complete and self._section.num_samples == 1:
            sample = yield from ask_until_valid(
                prompt, self._samplings, lambda answer: self._sample(answer, is_open)
            )
            return [sample]
        answers = yield [Request(prompt, sampling) for sampling in self._samplings]
        return [
            answer if isinstance(answer, Reject) else self._sample(answer, is_open)
            for answer in answers
        ]

    def join(self, parts: Sequence[Cells]) -> Cells:
        """The cells of a long text's chunks as one row's, for sections of one answer a row.

        Texts and tokens stand one after another; the reason is `length` where any part's is.
        """
        cells = {name: JOINS[name]([part[name] for part in parts]) for name in parts[0]}
        return {**cells, "mean_logprob": joined_mean(parts)}

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
        guard = self._prompter.tokenizer.controls.guard
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
