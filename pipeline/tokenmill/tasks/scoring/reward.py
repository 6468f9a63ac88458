"""Reward: a reward model's number for a prompt and its completion, or for each of several.

`RewardJudge` is also what other tasks choose the best of several completions by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Params, Pooling, Request
from tokenmill.tasks.kind import Join, TaskKind, TaskStep, template_columns
from tokenmill.tasks.scoring.completion import completion_templates
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# These give a number for each token; the last one's is that of the whole.
_TOKEN_REWARD_ARCHITECTURES = frozenset({"InternLM2ForRewardModel", "Qwen2ForRewardModel"})


class Reward(TaskSection):
    """`task: {kind: reward}`: of the prompt alone, of it and a completion, or of several."""

    kind: Literal["reward"]
    completion: str | None = Field(default=None, description="A template: the answer to judge.")
    completions: str | None = Field(
        default=None, description="A column with a list of answers, each of them judged."
    )
    activation: bool = Field(
        default=False, description="The model's own activation (a sigmoid, unless it says else)."
    )

    @model_validator(mode="after")
    def _one_form(self) -> "Reward":
        if self.completion is not None and self.completions is not None:
            raise ValueError("give one of completion and completions")
        return self


def _fields(section: Reward) -> tuple[pa.Field, ...]:
    """One number; for several completions a list, and the position of the best."""
    if section.completions is None:
        return (pa.field("reward", pa.float64()),)
    return (pa.field("rewards", pa.list_(pa.float64())), pa.field("best_index", pa.int32()))


def _columns(step: TaskStep[Reward]) -> Mapping[str, str]:
    columns = dict(template_columns(step))
    if step.section.completions is not None:
        columns.setdefault(step.section.completions, step.key_of("completions"))
    return columns


def _params(step: TaskStep[Reward]) -> tuple[Params, ...]:
    return (Pooling("classify", {"use_activation": step.section.activation}),)


def _build(step: TaskStep[Reward], context: TaskContext) -> "Rewarder":
    section, encoder = step.section, step.encoder(context)
    judge = RewardJudge(context, step.model_key or "model", activation=section.activation)
    if section.completions is not None:
        return ListRewarder(encoder, judge, section.completions, step.key_of("completions"))
    completion = None if section.completion is None else step.encoder(context, "completion")
    return OneRewarder(encoder, judge, completion)


def _mean(parts: Sequence[Cells]) -> Cells:
    """A row's number from those of its chunks."""
    return {"reward": sum(part["reward"] for part in parts) / len(parts)}


REWARD = TaskKind(
    name="reward",
    section=Reward,
    fields=_fields,
    build=_build,
    writes_text=False,
    joins_by_prompt=False,
    runner=lambda _: "pooling",
    # A list of numbers has no mean.
    join=lambda section: Join("mean", _mean) if section.completions is None else None,
    templates=completion_templates,
    columns=_columns,
    params=_params,
    starter=Starter(
        "rewards",
        """\
prompt: {user: $text}             # what is judged; or, with a completion, what it answers
task:
  kind: reward
  # completion: $text             # a template: the answer to judge
""",
        StarterModel(
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
            "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
            "{max_model_len: 4096}",
            "{max_model_len: 8192}",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge reads: a prompt's contents, by roles where it is a chat, and an answer."""

    roles: Sequence[str]
    contents: Sequence[str]
    completion: str | None


class RewardJudge:
    """A reward model: prompts and completions in, numbers out.

    `key` is the model's key in the job. `model` is the same key for an auxiliary model, which its
    requests name; None for the task's own model.
    """

    def __init__(
        self,
        context: TaskContext,
        key: str = "model",
        *,
        activation: bool = False,
        model: str | None = None,
    ) -> None:
        num_labels = context.config.get("num_labels", 1)
        architectures = set(context.config.get("architectures") or ())
        by_token = bool(architectures & _TOKEN_REWARD_ARCHITECTURES)
        if num_labels != 1 and not by_token:
            raise UserError(
                f"{key}: a reward model gives one number; this one has {num_labels} labels"
            )
        task: Literal["classify", "token_classify"] = "token_classify" if by_token else "classify"
        self._pooling = Pooling(task, {"use_activation": activation})
        self._tokenizer: Tokenizer = context.tokenizer
        self._model = model

    def encode(self, judged: Sequence[Judged]) -> list[Sequence[int] | Reject]:
        """Each one's token ids: a chat whose last turn is the completion, or a plain text."""
        chats = [_chat(one) for one in judged if one.roles]
        texts = ["".join([*one.contents, one.completion or ""]) for one in judged if not one.roles]
        of_chats = iter(self._tokenizer.encode_answered_chats(chats) if chats else ())
        of_texts = iter(self._tokenizer.encode_texts(texts) if texts else ())
        return [next(of_chats if one.roles else of_texts) for one in judged]

    def rewards(self, prompts: Sequence[Sequence[int] | Reject]) -> Dialogue[list[float | Reject]]:
        """Each prompt's number."""
        requests = [
            Request(prompt, self._pooling, model=self._model)
            for prompt in prompts
            if not isinstance(prompt, Reject)
        ]
        answers = iter((yield requests) if requests else ())
        return [
            prompt if isinstance(prompt, Reject) else _number(next(answers)) for prompt in prompts
        ]


class Rewarder:
    """What both forms share: contents of the prompt, and a judge."""

    def __init__(self, prompter: PromptEncoder, judge: RewardJudge) -> None:
        self._prompter = prompter
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        raise NotImplementedError

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        raise NotImplementedError

    def judged(self, contents: Sequence[str], completion: str | None) -> Judged:
        return Judged(self._prompter.templates.roles, contents, completion)


class OneRewarder(Rewarder):
    """One request a row."""

    def __init__(
        self, prompter: PromptEncoder, judge: RewardJudge, completion: PromptEncoder | None
    ) -> None:
        super().__init__(prompter, judge)
        self._completion = completion

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        judged = [
            _both(contents, completion)
            for contents, completion in zip(
                self._prompter.render(rows), self._completions(rows), strict=True
            )
        ]
        readable = [self.judged(*one) for one in judged if not isinstance(one, Reject)]
        prompts = iter(self._judge.encode(readable))
        encoded = [one if isinstance(one, Reject) else next(prompts) for one in judged]
        return [one if isinstance(one, Reject) else PreparedRow([one]) for one in encoded]

    def _completions(self, rows: Sequence[Row]) -> Sequence[list[str] | Reject | None]:
        return [None] * len(rows) if self._completion is None else self._completion.render(rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (reward,) = yield from self._judge.rewards(prepared.prompts)
        return reward if isinstance(reward, Reject) else {"reward": reward}


class ListRewarder(Rewarder):
    """One request a completion, all in one round; null where a completion is null or too long."""

    def __init__(
        self, prompter: PromptEncoder, judge: RewardJudge, column: str, place: str
    ) -> None:
        super().__init__(prompter, judge)
        self._column = column
        self._place = place

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            contents if isinstance(contents, Reject) else self._prepared(contents, row)
            for contents, row in zip(self._prompter.render(rows), rows, strict=True)
        ]

    def _prepared(self, contents: Sequence[str], row: Row) -> PreparedRow | Reject:
        completions = row[self._column]
        if not isinstance(completions, list | tuple | None):
            raise UserError(f"{self._place}: the column {self._column} holds no lists of texts")
        at = [place for place, text in enumerate(completions or ()) if text is not None]
        if not completions or not at:
            reason = f"the column {self._column} holds no completion"
            return Reject(RejectClass.EMPTY_INPUT, reason)
        guard = self._prompter.tokenizer.control_tokens.escape
        texts = [guard(str(completions[place])) for place in at]
        prompts = self._judge.encode([self.judged(contents, text) for text in texts])
        readable = [
            (place, prompt)
            for place, prompt in zip(at, prompts, strict=True)
            if not isinstance(prompt, Reject)
        ]
        if not readable:
            return next(prompt for prompt in prompts if isinstance(prompt, Reject))
        notes = {"at": [place for place, _ in readable], "count": len(completions)}
        return PreparedRow([prompt for _, prompt in readable], notes)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        answers = yield from self._judge.rewards(prepared.prompts)
        rewards: list[float | None] = [None] * prepared.notes["count"]
        for place, reward in zip(prepared.notes["at"], answers, strict=True):
            if not isinstance(reward, Reject):
                rewards[place] = reward
        best = best_index(rewards)
        if best is None:
            return next(answer for answer in answers if isinstance(answer, Reject))
        return {"rewards": rewards, "best_index": best}


def best_index(rewards: Sequence[float | None]) -> int | None:
    """The place of the largest, the first of equals; None where there is none."""
    known = [(reward, -place) for place, reward in enumerate(rewards) if reward is not None]
    return -max(known)[1] if known else None


def _both(
    contents: list[str] | Reject, completion: list[str] | Reject | None
) -> tuple[list[str], str | None] | Reject:
    if isinstance(contents, Reject):
        return contents
    if isinstance(completion, Reject):
        return completion
    return contents, None if completion is None else completion[0]


def _chat(judged: Judged) -> list[tuple[str, str]]:
    turns = list(zip(judged.roles, judged.contents, strict=True))
    return turns if judged.completion is None else [*turns, ("assistant", judged.completion)]


def _number(answer: Answer) -> float | Reject:
    if isinstance(answer, Reject):
        return answer
    if answer.vector is None or not answer.vector.size:
        raise ValueError("the engine gave no number")
    return float(answer.vector.reshape(-1)[-1])
