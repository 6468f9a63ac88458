"""Score: how likely a model finds a text, or a completion given a prompt.

A text that is longer than the context is read in overlapping windows, each token scored once.
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

# Natural log-probability per token; bits per byte of UTF-8 of the tokens scored.
_FIELDS = (
    pa.field("mean_logprob", pa.float64()),
    pa.field("perplexity", pa.float64()),
    pa.field("bits_per_byte", pa.float64()),
    pa.field("num_scored_tokens", pa.int64()),
)
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


def _check(step: TaskStep[Score]) -> None:
    if step.section.completion is None and step.prompt.text is None:
        raise ValueError(
            f"{step.key_prefix}prompt: a text is scored as it is: write prompt.text, or give the "
            "answer to the chat as completion"
        )


def _build(step: TaskStep[Score], context: TaskContext) -> "Scorer":
    section = step.section
    # The engine needs room for the token that it writes.
    longest = context.max_model_len - 1
    window = longest if section.window is None else section.window
    if not 1 < window <= longest:
        raise UserError(
            f"{step.key_of('window')}: a window of {window} tokens does not fit into the "
            f"context of {context.max_model_len} with one token to write"
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
    """A row's score from those of its chunks: as if they were one text."""
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
    # Chunks of a completion's prompt are not one text.
    join=lambda section: Join("mean", _joined) if section.completion is None else None,
    templates=completion_templates,
    params=lambda _: (Sampling(_SAMPLING),),
    check=_check,
    starter=Starter(
        "scores",
        """\
prompt: {text: $text}             # how likely the model finds the text, as it is
task:
  kind: score
  window: 1024                    # tokens of a long text that are read at once
  stride: 512
""",
        cuts=False,
    ),
)


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
                text = self._completions.tokenizer.control_tokens.unescape(text)
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
