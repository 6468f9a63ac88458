"""From answers to typed columns. The types follow from the job alone, never from the data.

Today one task: generate, whose columns are the text, why it ended, and what it cost.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.render import ERROR_COLUMN, TOKENS_COLUMN
from pipeline.schema import PROVENANCE_FIELDS, Answer, Completion, Reject, error_array
from pipeline.source import ROW_COLUMN

#: Log-probabilities are natural; `mean_logprob` is per generated token.
GENERATE_FIELDS = (
    pa.field("generated_text", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("num_input_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
    pa.field("cumulative_logprob", pa.float64()),
    pa.field("mean_logprob", pa.float64()),
)

#: What a kept column must not be called.
OUTPUT_NAMES = frozenset(field.name for field in (*GENERATE_FIELDS, *PROVENANCE_FIELDS))


def output_schema(kept: pa.Schema) -> pa.Schema:
    """The columns of every output file of a job: kept, answers, error and where the row is from."""
    return pa.schema([*kept, *GENERATE_FIELDS, *PROVENANCE_FIELDS])


def answer_rows(rendered: pa.Table, answers: Sequence[Answer]) -> pa.Table:
    """A rendered unit with its answers' columns and `error` in place of its tokens."""
    table = rendered.drop_columns([TOKENS_COLUMN, ERROR_COLUMN])
    cells = [_cells(answer) for answer in answers]
    for field in GENERATE_FIELDS:
        values = pa.array([cell.get(field.name) for cell in cells], field.type)
        table = table.append_column(field, values)
    rejects = [answer if isinstance(answer, Reject) else None for answer in answers]
    return table.append_column(PROVENANCE_FIELDS[0], error_array(rejects))


def _cells(answer: Answer) -> dict[str, Any]:
    if not isinstance(answer, Completion):
        return {}
    return {
        "generated_text": answer.text,
        "finish_reason": answer.finish_reason,
        "num_input_tokens": answer.num_input_tokens,
        "num_generated_tokens": answer.num_generated_tokens,
        "cumulative_logprob": answer.cumulative_logprob,
        "mean_logprob": _mean(answer.cumulative_logprob, answer.num_generated_tokens),
    }


def _mean(cumulative: float | None, num_tokens: int) -> float | None:
    return None if cumulative is None or num_tokens == 0 else cumulative / num_tokens


def output_rows(answered: pa.Table, shard: str, schema: pa.Schema) -> pa.Table:
    """An answered unit as it is stored: `output_schema`'s columns, in its order."""
    rows = answered.column(ROW_COLUMN)
    answered = answered.drop_columns([ROW_COLUMN])
    answered = answered.append_column(
        "source_file", pa.array([shard] * answered.num_rows, pa.string())
    )
    answered = answered.append_column("source_row", rows)
    return answered.select(schema.names).cast(schema)
