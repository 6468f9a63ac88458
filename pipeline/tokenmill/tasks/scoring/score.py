"""The `score` task: how likely a model finds a text, or a completion given its prompt.

A text longer than the context is read in overlapping windows, and each token is scored once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.tokenizer import TextSpan
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request, Sampling
from tokenmill.tasks.kind import Join, TaskKind, TaskStep
from tokenmill.tasks.scoring.completion import completion_templates
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# `mean_logprob` is natural, per token. `bits_per_byte` counts the UTF-8 bytes of scored tokens.
_FIELDS = (
    pa.field("mean_logprob", pa.float64()),
    pa.field("perplexity", pa.float64()),
    pa.field("bits_per_byte", pa.float64()),
    pa.field("num_scored_tokens", pa.int64()),
)
# An engine always generates at least one token; it is ignored.
_SAMPLING = {
    "max_tokens": 1,
    "temperature": 0,
    "prompt_logprobs": 0,
    "logprobs": None,
    "detokenize": False,
}
# `math.exp` overflows above about 709.
_MAX_NATS = 700


class Score(TaskSection):
    """`task: {kind: score}`: the likelihood of the prompt's text, or of a completion."""

    kind: Literal["score"]
    completion: str | None = Field(
        default=None,
        description="Template of the text to score, given the prompt. Default: score the prompt.",
    )
    window: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of a long text read at once. Default: as many as fit.",
    )
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Tokens from one window's start to the next. Default: half a window.",
    )

    @model_validator(mode="after")
    def _overlapping(self) -> "Score":
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            raise ValueError(
                f"stride ({self.stride}) must be below window ({self.window}): the first token of "
                "a window has no prediction"
            )
        return self


def _check(step: TaskStep[Score]) -> None:
    if step.section.completion is None and step.prompt.text is None:
        raise ValueError(
            f"{step.key_prefix}prompt: score reads plain text; write prompt.text, or set "
            "completion to score an answer to the chat"
        )


def _build(step: TaskStep[Score], context: TaskContext) -> "Scorer":
    section = step.section
    # The engine needs room for the token that it generates.
    max_window = context.max_model_len - 1
    window = max_window if section.window is None else section.window
    if not 1 < window <= max_window:
        raise UserError(
            f"{step.key_of('window')}: must be between 2 and {max_window}: the context of "
            f"{context.max_model_len} tokens needs room for one generated token"
        )
    stride = max(1, window // 2) if section.stride is None else section.stride
    if stride >= window:
        raise UserError(
            f"{step.key_of('stride')}: {stride} must be below the window of {window} tokens"
        )
    encoder = step.encoder(context)
    if section.completion is None:
        return TextScorer(encoder, window, stride)
    return CompletionScorer(encoder, step.encoder(context, "completion"), window, stride)


def _joined(parts: Sequence[Cells]) -> Cells:
    """Combine the scores of a row's chunks as if they were one text."""
    total = math.fsum(part["mean_logprob"] * part["num_scored_tokens"] for part in parts)
    num_bytes = math.fsum(_num_bytes(part) for part in parts)
    return score_cells(total, sum(part["num_scored_tokens"] for part in parts), num_bytes)


SCORE = TaskKind(
    name="score",
    section=Score,
    fields=lambda _: _FIELDS,
    build=_build,
    writes_text=False,
    joins_by_prompt=False,
    # With a completion, the prompt is what is chunked, and every chunk scores the same answer.
    join=lambda section: Join("mean", _joined) if section.completion is None else None,
    templates=completion_templates,
    params=lambda _: (Sampling(_SAMPLING),),
    check=_check,
    starter=Starter(
        "scores",
        """\
prompt: {text: $text}             # the text to score, as it is
task:
  kind: score
  window: 1024                    # tokens of a long text read at once
  stride: 512
""",
        cuts=False,
    ),
)


class Scorer:
    """Sends one request per window, all in one round. Subclasses implement `prepare`."""

    def __init__(self, window: int, stride: int) -> None:
        self._window = window
        self._stride = stride
        self._sampling = Sampling(_SAMPLING)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        raise NotImplementedError

    def prepared(self, span: TextSpan) -> PreparedRow | Reject:
        """Split a row's span into windows. Rejects a span without a token to score."""
        if span.start >= span.end:
            return Reject(
                RejectClass.EMPTY_INPUT,
                "the text is too short to score: a token needs one before it",
            )
        windows = list(scoring_windows(span.start, span.end, self._window, self._stride))
        return PreparedRow(
            [span.token_ids[window.begin : window.end] for window in windows],
            {
                "skip": [window.first - window.begin for window in windows],
                "num_bytes": span.num_bytes,
            },
        )

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        answers = yield [Request(prompt, self._sampling) for prompt in prepared.prompts]
        total = 0.0
        count = 0
        for answer, skip in zip(answers, prepared.notes["skip"], strict=True):
            if isinstance(answer, Reject):
                return answer
            if answer.prompt_logprobs is None:
                raise ValueError("the engine returned no log-probabilities for the prompt")
            # The window's first token has no log-probability.
            scored = answer.prompt_logprobs[skip - 1 :]
            total += math.fsum(scored)
            count += len(scored)
        return score_cells(total, count, prepared.notes["num_bytes"])


class TextScorer(Scorer):
    """Scores the text of the prompt itself."""

    def __init__(self, encoder: PromptEncoder, window: int, stride: int) -> None:
        super().__init__(window, stride)
        self._encoder = encoder

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        contents = self._encoder.render(rows)
        texts = [content[0] for content in contents if not isinstance(content, Reject)]
        spans = iter(self._encoder.tokenizer.encode_spans(texts))
        return [
            content if isinstance(content, Reject) else self.prepared(next(spans))
            for content in contents
        ]


class CompletionScorer(Scorer):
    """Scores a completion's tokens after those of the prompt, which are read but not scored."""

    def __init__(
        self, encoder: PromptEncoder, completion_encoder: PromptEncoder, window: int, stride: int
    ) -> None:
        super().__init__(window, stride)
        self._encoder = encoder
        self._completion_encoder = completion_encoder

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        prompts = self._encoder.encode(rows)
        contents = self._completion_encoder.render(rows)
        texts = [content[0] for content in contents if not isinstance(content, Reject)]
        token_ids = self._completion_encoder.tokenizer.encode_continuations(texts)
        encoded = iter(zip(texts, token_ids, strict=True))
        entries: list[PreparedRow | Reject] = []
        for prompt, content in zip(prompts, contents, strict=True):
            completion = None if isinstance(content, Reject) else next(encoded)
            if isinstance(prompt, Reject):
                entries.append(prompt)
            elif isinstance(content, Reject):
                entries.append(content)
            elif completion is not None:
                text, tokens = completion
                text = self._completion_encoder.tokenizer.control_tokens.unescape(text)
                entries.append(self._after(prompt, tokens, len(text.encode())))
        return entries

    def _after(
        self, prompt: Sequence[int], tokens: Sequence[int], num_bytes: int
    ) -> PreparedRow | Reject:
        if not prompt:
            return Reject(RejectClass.EMPTY_INPUT, "the prompt before the completion has no tokens")
        ids = [*prompt, *tokens]
        return self.prepared(TextSpan(ids, len(prompt), len(ids), num_bytes))


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `begin` to `end` (exclusive) are read; those from `first` on are scored."""

    begin: int
    first: int
    end: int


def scoring_windows(start: int, end: int, length: int, stride: int) -> Iterator[Window]:
    """Yield windows of at most `length` tokens that score tokens `start` to `end` of a text.

    Each token is scored in exactly one window, with a context of at least `length - stride` tokens,
    or of all preceding tokens if there are fewer.
    """
    begin = 0 if end <= length else max(0, start - (length - stride))
    first = start
    while first < end:
        stop = min(begin + length, end)
        yield Window(begin, first, stop)
        first = stop
        begin += stride


def score_cells(total: float, count: int, num_bytes: float) -> Cells:
    """The cells for `count` tokens of `num_bytes` bytes; `total` sums their natural logprobs."""
    mean = total / count
    return {
        "mean_logprob": mean,
        "perplexity": math.exp(-mean) if -mean < _MAX_NATS else math.inf,
        "bits_per_byte": -total / math.log(2) / num_bytes if num_bytes else None,
        "num_scored_tokens": count,
    }


def _num_bytes(part: Mapping[str, Any]) -> float:
    """The number of scored bytes, which has no column, derived from the cells."""
    bits = -part["mean_logprob"] * part["num_scored_tokens"] / math.log(2)
    return bits / part["bits_per_byte"] if part["bits_per_byte"] else 0.0
