"""Names and types of the columns that every task's output has."""

import pyarrow as pa

from tokenmill.reject import ERROR_TYPE

NUM_INPUT_TOKENS = "num_input_tokens"
NUM_GENERATED_TOKENS = "num_generated_tokens"
ERROR = "error"
SOURCE_FILE = "source_file"
SOURCE_ROW = "source_row"
TRUNCATED_TOKENS = "truncated_tokens"
NUM_CHUNKS = "num_chunks"

#: Sums over all of a row's requests. Each is an attribute of `Completion` with the same name.
TOKEN_FIELDS = (
    pa.field(NUM_INPUT_TOKENS, pa.int32()),
    pa.field(NUM_GENERATED_TOKENS, pa.int32()),
)
#: The last columns of every output file: the tokens of all the row's requests, why it was
#: rejected, and where it comes from.
PROVENANCE_FIELDS = (
    *TOKEN_FIELDS,
    pa.field(ERROR, ERROR_TYPE),
    pa.field(SOURCE_FILE, pa.string(), nullable=False),
    pa.field(SOURCE_ROW, pa.int64(), nullable=False),
)
#: Names of columns that begin like this are tokenmill's own; neither inputs nor outputs have them.
INTERNAL_PREFIX = "__tokenmill_"
#: The row's position in its shard, counted from 0. It accompanies the input's columns in memory and
#: becomes `source_row` in the output.
ROW_COLUMN = f"{INTERNAL_PREFIX}row"
