"""Builders that several test files share: whole, small values, in which a test changes one fact."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.job import Job
from pipeline.plan import RowGroup, Shard
from pipeline.render import ERROR_COLUMN, TOKENS_COLUMN
from pipeline.schema import Completion, Reject, error_array
from pipeline.source import ROW_COLUMN

_JOB: dict[str, Any] = {
    "name": "summaries",
    "input": {"path": "corpus/*.parquet"},
    "model": {"source": "fake"},
    "prompt": {"user": "{{ text }}"},
    "sampling": {"max_tokens": 16},
    "output": {"path": "out/summaries"},
}


def job_data(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A valid job's keys, with other values at dotted names: `{"input.limit": 5}`."""
    data = copy.deepcopy(_JOB)
    for name, value in (changes or {}).items():
        *parents, last = name.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return data


def job(changes: Mapping[str, Any] | None = None) -> Job:
    """A valid job, with other values at dotted names."""
    return Job.model_validate(job_data(changes))


def shard(path: str, *rows: int, num_bytes: int = 0) -> Shard:
    """A shard whose row groups hold so many rows, and `num_bytes` of text each."""
    return Shard(path, 1000, "v1", tuple(RowGroup(count, num_bytes) for count in rows))


def rendered(prompts: Iterable[Sequence[int] | Reject]) -> pa.Table:
    """A rendered unit without kept columns: each row a prompt's token ids, or a reject."""
    rows = list(prompts)
    tokens = [None if isinstance(row, Reject) else list(row) for row in rows]
    rejects = [row if isinstance(row, Reject) else None for row in rows]
    return pa.table(
        {
            ROW_COLUMN: pa.array(range(len(rows)), pa.int64()),
            TOKENS_COLUMN: pa.array(tokens, pa.list_(pa.int32())),
            ERROR_COLUMN: error_array(rejects),
        }
    )


def completion(
    text: str = "an answer", tokens: int = 4, logprob: float | None = -2.0
) -> Completion:
    """An answer of so many tokens, with the sum of their log-probabilities."""
    return Completion(0, text, "stop", 7, tokens, logprob)


def strings_of_bytes(cells: Sequence[bytes]) -> pa.Array:
    """An Arrow string column that holds these bytes, UTF-8 or not, as broken files do."""
    ends = [0]
    for cell in cells:
        ends.append(ends[-1] + len(cell))
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(
        pa.string(), len(cells), [None, offsets, pa.py_buffer(b"".join(cells))]
    )


def text_of(tokens: Sequence[int]) -> str:
    """The text behind token ids of the fake tokenizer."""
    return b"".join(token.to_bytes(3) for token in tokens).rstrip(b"\xff").decode()
