"""Names of the columns that say where a row comes from."""

import pyarrow as pa

from tokenmill.reject import ERROR_TYPE

#: Stand behind the task's columns in every output file: what the row cost in all its requests,
#: why it has no answer, where it is from.
PROVENANCE_FIELDS = (
    pa.field("num_input_tokens", pa.int32()),
    pa.field("num_generated_tokens", pa.int32()),
    pa.field("error", ERROR_TYPE),
    pa.field("source_file", pa.string(), nullable=False),
    pa.field("source_row", pa.int64(), nullable=False),
)
#: The row's position in its shard, counted from 0; stands beside the input's columns in memory.
ROW_COLUMN = "__tokenmill_row"
