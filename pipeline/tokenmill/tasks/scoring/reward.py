"""The `reward` task: scores prompts and completions with a reward model.

Other tasks use `RewardJudge` to choose the best of several completions.
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

# These models return a reward per token; the last token's is the reward of the whole text.
_TOKEN_REWARD_ARCHITECTURES = frozenset({"InternLM2ForRewardModel", "Qwen2ForRewardModel"})


class Reward(TaskSection):
    """`task: {kind: reward}`: rewards for a prompt, one completion, or a list of completions."""

    kind: Literal["reward"]
    completion: str | None = Field(default=None, description="Template of the answer to judge.")
    completions: str | None = Field(
        default=None, description="Column with a list of answers to judge, each separately."
    )
    activation: bool = Field(
        default=False,
        description="Apply the model's own activation, a sigmoid unless its config sets another.",
    )

    @model_validator(mode="after")
    def _one_form(self) -> "Reward":
        if self.completion is not None and self.completions is not None:
            raise ValueError("set completion or completions, not both")
        return self


def _fields(section: Reward) -> tuple[pa.Field, ...]:
    """One reward; for `completions` a list of rewards and the position of the best."""
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
    return SingleRewarder(encoder, judge, completion)


def _mean(parts: Sequence[Cells]) -> Cells:
    """Average the rewards of a row's chunks."""
    return {"reward": sum(part["reward"] for part in parts) / len(parts)}


REWARD = TaskKind(
    name="reward",
    section=Reward,
    fields=_fields,
    build=_build,
    writes_text=False,
    joins_by_prompt=False,
    runner=lambda _: "pooling",
    # Lists of rewards cannot be averaged.
    join=lambda section: Join("mean", _mean) if section.completions is None else None,
    templates=completion_templates,
    columns=_columns,
    params=_params,
    starter=Starter(
        "rewards",
        """\
prompt: {user: $text}             # the text to judge or, with a completion, its question
task:
  kind: reward
  # completion: $text             # template of the answer to judge
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
    """What a judge reads: a prompt's contents, their roles (none for plain text), and an answer."""

    roles: Sequence[str]
    contents: Sequence[str]
    completion: str | None


class RewardJudge:
    """A reward model: takes prompts and completions, and returns rewards.

    `key` is the model's key in the job. `model` is the same key if the judge is an auxiliary model,
    to which its requests are sent, or None if it is the task's own model. Raises `UserError` for a
    model with several labels.
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
                f"{key}: a reward model has one label; this model has {num_labels} labels"
            )
        task: Literal["classify", "token_classify"] = "token_classify" if by_token else "classify"
        self._pooling = Pooling(task, {"use_activation": activation})
        self._tokenizer: Tokenizer = context.tokenizer
        self._model = model

    def encode(self, judged: Sequence[Judged]) -> list[Sequence[int] | Reject]:
        """Encode each item: a chat whose last turn is the completion, or a plain text."""
        chats = [_chat(item) for item in judged if item.roles]
        texts = [
            "".join([*item.contents, item.completion or ""]) for item in judged if not item.roles
        ]
        encoded_chats = iter(self._tokenizer.encode_answered_chats(chats) if chats else ())
        encoded_texts = iter(self._tokenizer.encode_texts(texts) if texts else ())
        return [next(encoded_chats if item.roles else encoded_texts) for item in judged]

    def rewards(self, prompts: Sequence[Sequence[int] | Reject]) -> Dialogue[list[float | Reject]]:
        """Request the reward of each prompt."""
        requests = [
            Request(prompt, self._pooling, model=self._model)
            for prompt in prompts
            if not isinstance(prompt, Reject)
        ]
        answers = iter((yield requests) if requests else ())
        return [
            prompt if isinstance(prompt, Reject) else _reward(next(answers)) for prompt in prompts
        ]


class Rewarder:
    """What both forms share: the prompt's encoder and the judge."""

    def __init__(self, encoder: PromptEncoder, judge: RewardJudge) -> None:
        self._encoder = encoder
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        raise NotImplementedError

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        raise NotImplementedError

    def judged(self, contents: Sequence[str], completion: str | None) -> Judged:
        return Judged(self._encoder.templates.roles, contents, completion)


class SingleRewarder(Rewarder):
    """Sends one request per row."""

    def __init__(
        self, encoder: PromptEncoder, judge: RewardJudge, completion: PromptEncoder | None
    ) -> None:
        super().__init__(encoder, judge)
        self._completion = completion

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        pairs = [
            _both(contents, completion)
            for contents, completion in zip(
                self._encoder.render(rows), self._completions(rows), strict=True
            )
        ]
        readable = [self.judged(*pair) for pair in pairs if not isinstance(pair, Reject)]
        prompts = iter(self._judge.encode(readable))
        encoded = [pair if isinstance(pair, Reject) else next(prompts) for pair in pairs]
        return [item if isinstance(item, Reject) else PreparedRow([item]) for item in encoded]

    def _completions(self, rows: Sequence[Row]) -> Sequence[list[str] | Reject | None]:
        return [None] * len(rows) if self._completion is None else self._completion.render(rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (reward,) = yield from self._judge.rewards(prepared.prompts)
        return reward if isinstance(reward, Reject) else {"reward": reward}


class ListRewarder(Rewarder):
    """Sends one request per completion, all in one round.

    The reward of a completion that is null or rejected is null.
    """

    def __init__(self, encoder: PromptEncoder, judge: RewardJudge, column: str, key: str) -> None:
        super().__init__(encoder, judge)
        self._column = column
        self._key = key

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            contents if isinstance(contents, Reject) else self._prepared(contents, row)
            for contents, row in zip(self._encoder.render(rows), rows, strict=True)
        ]

    def _prepared(self, contents: Sequence[str], row: Row) -> PreparedRow | Reject:
        completions = row[self._column]
        if not isinstance(completions, list | tuple | None):
            raise UserError(f"{self._key}: the column {self._column} is not a list of texts")
        positions = [i for i, text in enumerate(completions or ()) if text is not None]
        if not completions or not positions:
            reason = f"the column {self._column} has no completion"
            return Reject(RejectClass.EMPTY_INPUT, reason)
        escape = self._encoder.tokenizer.control_tokens.escape
        texts = [escape(str(completions[position])) for position in positions]
        prompts = self._judge.encode([self.judged(contents, text) for text in texts])
        readable = [
            (position, prompt)
            for position, prompt in zip(positions, prompts, strict=True)
            if not isinstance(prompt, Reject)
        ]
        if not readable:
            return next(prompt for prompt in prompts if isinstance(prompt, Reject))
        notes = {"positions": [position for position, _ in readable], "count": len(completions)}
        return PreparedRow([prompt for _, prompt in readable], notes)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        answers = yield from self._judge.rewards(prepared.prompts)
        rewards: list[float | None] = [None] * prepared.notes["count"]
        for position, reward in zip(prepared.notes["positions"], answers, strict=True):
            if not isinstance(reward, Reject):
                rewards[position] = reward
        best = best_index(rewards)
        if best is None:
            return next(answer for answer in answers if isinstance(answer, Reject))
        return {"rewards": rewards, "best_index": best}


def best_index(rewards: Sequence[float | None]) -> int | None:
    """The position of the largest reward, the first if several are equal; None if all are None."""
    ranked = [(reward, -i) for i, reward in enumerate(rewards) if reward is not None]
    return -max(ranked)[1] if ranked else None


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


def _reward(answer: Answer) -> float | Reject:
    if isinstance(answer, Reject):
        return answer
    if answer.vector is None or not answer.vector.size:
        raise ValueError("the engine returned no reward")
    return float(answer.vector.reshape(-1)[-1])
