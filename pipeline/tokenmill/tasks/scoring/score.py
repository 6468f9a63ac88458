"""Score: how likely a model finds a text, or a completion given a prompt.

A text that is longer than the context is read in overlapping windows, each token scored once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.length import JoinKind
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import PromptTemplates, compile_prompt, compile_templates
from tokenmill.prompt.tokenizer import TextSpan
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Params, Request, Sampling
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# The one token that an engine writes in any case is dropped.
_SAMPLING = {
    "max_tokens": 1,
    "temperature": 0,
    "prompt_logprobs": 0,
    "logprobs": None,
    "detokenize": False,
}
# Beyond it `exp` has no float.
_MOST_NATS = 700


class Score(TaskSection):
    """`task: {kind: score}`: of the prompt's text, or of `completion` given the prompt."""

    samples: ClassVar[bool] = False
    joins_by_prompt: ClassVar[bool] = False

    kind: Literal["score"]
    completion: str | None = Field(
        default=None, description="A template; by default the prompt's text itself is scored."
    )
    window: int | None = Field(
        default=None, ge=2, description="Tokens of a long text read at once; by default all."
    )
    stride: int | None = Field(
        default=None, ge=1, description="Tokens between windows; by default half of one."
    )

    @model_validator(mode="after")
    def _overlapping(self) -> "Score":
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            raise ValueError(
                f"stride ({self.stride}) must be below window ({self.window}): the first token of "
                "a window has no prediction"
            )
        return self

    def check(self) -> None:
        if self.completion is None and self.own_prompt.text is None:
            raise ValueError(
                f"{self.place}prompt: a text is scored as it is: write prompt.text, or give the "
                "answer to the chat as completion"
            )

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """Natural log-probability per token; bits per byte of UTF-8 of the tokens scored."""
        return (
            pa.field("mean_logprob", pa.float64()),
            pa.field("perplexity", pa.float64()),
            pa.field("bits_per_byte", pa.float64()),
            pa.field("num_scored_tokens", pa.int64()),
        )

    @property
    def join_kind(self) -> JoinKind | None:
        """By token, as if the chunks were one text; chunks of a completion's prompt are none."""
        return "mean" if self.completion is None else None

    @property
    def columns(self) -> Mapping[str, str]:
        prompt = compile_prompt(self.own_prompt, self.place).columns
        return prompt if self.completion is None else {**self._completions.columns, **prompt}

    @property
    def templates(self) -> Mapping[str, str]:
        """The prompt's, and the completion's."""
        return {**self.own_prompt.templates, "completion": self.completion or ""}

    @property
    def params(self) -> tuple[Params, ...]:
        return (Sampling(_SAMPLING),)

    @property
    def _completions(self) -> PromptTemplates:
        return compile_templates({self.place_of("completion"): self.completion or ""})

    def build(self, tools: TaskContext) -> "Scorer":
        # The engine has to have room for the token that it writes.
        most = tools.max_model_len - 1
        window = most if self.window is None else self.window
        if not 1 < window <= most:
            raise UserError(
                f"{self.place_of('window')}: a window of {window} tokens does not fit into the "
                f"context of {tools.max_model_len} with one token to write"
            )
        stride = max(1, window // 2) if self.stride is None else self.stride
        if stride >= window:
            raise UserError(
                f"{self.place_of('stride')}: {stride} must be below the window of {window} tokens"
            )
        if self.completion is None:
            return TextScorer(self.prompter(tools), window, stride)
        completions = PromptEncoder(self._completions, tools.tokenizer)
        return CompletionScorer(self.prompter(tools), completions, window, stride)


class Scorer:
    """One request a window, all in one round. `prepare` is the subclasses' business."""

    def __init__(self, window: int, stride: int) -> None:
        self._window = window
        self._stride = stride
        self._sampling = Sampling(_SAMPLING)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        raise NotImplementedError

    def prepared(self, span: TextSpan) -> PreparedRow | Reject:
        """A row's windows."""
        if span.start >= span.end:
            return Reject(RejectClass.EMPTY_INPUT, "the text has no token that follows another")
        cuts = list(scoring_windows(span.start, span.end, self._window, self._stride))
        return PreparedRow(
            [span.token_ids[cut.begin : cut.end] for cut in cuts],
            {"skip": [cut.first - cut.begin for cut in cuts], "num_bytes": span.num_bytes},
        )

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        answers = yield [Request(prompt, self._sampling) for prompt in prepared.prompts]
        total = 0.0
        count = 0
        for answer, skip in zip(answers, prepared.notes["skip"], strict=True):
            if isinstance(answer, Reject):
                return answer
            if answer.prompt_logprobs is None:
                raise ValueError("the engine gave no log-probabilities of the prompt")
            # The window's first token has none.
            scored = answer.prompt_logprobs[skip - 1 :]
            total += math.fsum(scored)
            count += len(scored)
        return score_cells(total, count, prepared.notes["num_bytes"])

    @staticmethod
    def join(parts: Sequence[Cells]) -> Cells:
        """A row's score from those of its chunks: as if they were one text."""
        total = math.fsum(part["mean_logprob"] * part["num_scored_tokens"] for part in parts)
        num_bytes = math.fsum(_num_bytes(part) for part in parts)
        return score_cells(total, sum(part["num_scored_tokens"] for part in parts), num_bytes)


class TextScorer(Scorer):
    """Scores the prompt's own text."""

    def __init__(self, prompter: PromptEncoder, window: int, stride: int) -> None:
        super().__init__(window, stride)
        self._prompter = prompter

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        contents = self._prompter.render(rows)
        texts = [content[0] for content in contents if not isinstance(content, Reject)]
        spans = iter(self._prompter.tokenizer.encode_spans(texts))
        return [
            content if isinstance(content, Reject) else self.prepared(next(spans))
            for content in contents
        ]


class CompletionScorer(Scorer):
    """Scores a completion's tokens behind the prompt's, which are read and not scored."""

    def __init__(
        self, prompter: PromptEncoder, completions: PromptEncoder, window: int, stride: int
    ) -> None:
        super().__init__(window, stride)
        self._prompter = prompter
        self._completions = completions

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        prompts = self._prompter.encode(rows)
        contents = self._completions.render(rows)
        texts = [content[0] for content in contents if not isinstance(content, Reject)]
        token_ids = self._completions.tokenizer.encode_continuations(texts)
        encoded = iter(zip(texts, token_ids, strict=True))
        entries: list[PreparedRow | Reject] = []
        for prompt, content in zip(prompts, contents, strict=True):
            behind = None if isinstance(content, Reject) else next(encoded)
            if isinstance(prompt, Reject):
                entries.append(prompt)
            elif isinstance(content, Reject):
                entries.append(content)
            elif behind is not None:
                text, tokens = behind
                text = self._completions.tokenizer.controls.literal(text)
                entries.append(self._both(prompt, tokens, len(text.encode())))
        return entries

    def _both(
        self, prompt: Sequence[int], tokens: Sequence[int], num_bytes: int
    ) -> PreparedRow | Reject:
        if not prompt:
            return Reject(RejectClass.EMPTY_INPUT, "no token stands before the completion")
        ids = [*prompt, *tokens]
        return self.prepared(TextSpan(ids, len(prompt), len(ids), num_bytes))


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `begin` to `end` are read; those from `first` on are scored."""

    begin: int
    first: int
    end: int


def scoring_windows(start: int, end: int, length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `length` tokens over a text whose tokens `start` to `end` are scored.

    Each token is scored in one window, behind at least `length - stride` tokens, or behind all that
    there are before it.
    """
    begin = 0 if end <= length else max(0, start - (length - stride))
    first = start
    while first < end:
        stop = min(begin + length, end)
        yield Window(begin, first, stop)
        first = stop
        begin += stride


def score_cells(total: float, count: int, num_bytes: float) -> Cells:
    """The columns, from a sum of natural log-probabilities over tokens that stand for bytes."""
    mean = total / count
    return {
        "mean_logprob": mean,
        "perplexity": math.exp(-mean) if -mean < _MOST_NATS else math.inf,
        "bits_per_byte": -total / math.log(2) / num_bytes if num_bytes else None,
        "num_scored_tokens": count,
    }


def _num_bytes(part: Mapping[str, Any]) -> float:
    """The bytes behind a score, which no column holds."""
    bits = -part["mean_logprob"] * part["num_scored_tokens"] / math.log(2)
    return bits / part["bits_per_byte"] if part["bits_per_byte"] else 0.0
