"""The columns of a generated answer, and how the cells of chunks are joined."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.request import Completion, TokenLogprob, joined_reason
from tokenmill.tasks.generation.reasoning import Thought
from tokenmill.tasks.task import Cells

_TOP_TYPE = pa.list_(pa.struct([pa.field("token", pa.string()), pa.field("logprob", pa.float64())]))
_TOKENS_TYPE = pa.list_(
    pa.struct(
        [
            pa.field("token", pa.string()),
            pa.field("logprob", pa.float64()),
            pa.field("top", _TOP_TYPE),
        ]
    )
)


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One completion, with its reasoning split off."""

    completion: Completion
    thought: Thought
    stop_reason: str | None


@dataclass(frozen=True, slots=True)
class AnswerColumn:
    """One property of an answer.

    `name` is its column if a row has one answer, `list_name` the column of lists if it has several.
    """

    name: str
    list_name: str
    type: pa.DataType
    cell: Callable[[SampledAnswer], Any]


#: All columns that an answer can have, in the order of the output.
COLUMNS = (
    AnswerColumn(
        "generated_text", "generated_texts", pa.string(), lambda sample: sample.thought.answer
    ),
    AnswerColumn(
        "reasoning_text", "reasoning_texts", pa.string(), lambda sample: sample.thought.reasoning
    ),
    AnswerColumn(
        "finish_reason",
        "finish_reasons",
        pa.string(),
        lambda sample: sample.completion.finish_reason,
    ),
    AnswerColumn("stop_reason", "stop_reasons", pa.string(), lambda sample: sample.stop_reason),
    AnswerColumn(
        "cumulative_logprob",
        "cumulative_logprobs",
        pa.float64(),
        lambda sample: sample.completion.cumulative_logprob,
    ),
    AnswerColumn(
        "mean_logprob",
        "mean_logprobs",
        pa.float64(),
        lambda sample: mean_logprob(sample.completion),
    ),
    AnswerColumn(
        "tokens", "tokens", _TOKENS_TYPE, lambda sample: _token_cells(sample.completion.tokens)
    ),
)


def mean_logprob(completion: Completion) -> float | None:
    """Natural log-probability per generated token; None without tokens or log-probabilities."""
    cumulative, num_tokens = completion.cumulative_logprob, completion.num_generated_tokens
    return None if cumulative is None or num_tokens == 0 else cumulative / num_tokens


def _token_cells(tokens: Sequence[TokenLogprob] | None) -> list[dict[str, Any]] | None:
    if tokens is None:
        return None
    return [
        {
            "token": token.token,
            "logprob": token.logprob,
            "top": [{"token": text, "logprob": logprob} for text, logprob in token.top],
        }
        for token in tokens
    ]


def joined_cells(parts: Sequence[Cells]) -> Cells:
    """Join the cells of a long text's chunks into one row's. Each chunk has one answer.

    Texts and tokens are concatenated. The finish reason is `length` if any chunk's is.
    """
    cells = {name: _JOINS[name]([part[name] for part in parts]) for name in parts[0]}
    return {**cells, "mean_logprob": _joined_mean(parts)}


def _joined_mean(parts: Sequence[Cells]) -> float | None:
    """The mean over all tokens. A chunk's number of tokens is its sum divided by its mean."""
    sums_and_means: list[tuple[float | None, float | None]] = [
        (part["cumulative_logprob"], part["mean_logprob"]) for part in parts
    ]
    total = _sum_of_all([cumulative for cumulative, _ in sums_and_means])
    num_tokens = sum(
        cumulative / mean for cumulative, mean in sums_and_means if cumulative and mean
    )
    return total / num_tokens if total and num_tokens else total


def _sum_of_all(numbers: Sequence[float | None]) -> float | None:
    present = [number for number in numbers if number is not None]
    return sum(present) if len(present) == len(numbers) else None


def _concatenated(lists: Sequence[list[Any] | None]) -> list[Any] | None:
    present = [items for items in lists if items is not None]
    return [item for items in present for item in items] if len(present) == len(lists) else None


# Joins the cells of chunks, by column.
_JOINS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "generated_text": "".join,
    "reasoning_text": lambda texts: "\n\n".join(filter(None, texts)) or None,
    "finish_reason": joined_reason,
    "stop_reason": lambda reasons: reasons[-1],
    "cumulative_logprob": _sum_of_all,
    "mean_logprob": lambda _: None,
    "tokens": _concatenated,
    "num_samples": min,
    "reward": statistics.fmean,
}
