"""Rows as JSON lines: times that Python or Arrow cannot write."""

import pyarrow as pa
import pytest
from tokenmill.output.json_lines import json_rows

_YEAR_S = 31_556_952
ZONED = pa.timestamp("us", "Nowhere/Land")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1_500_000_001], pa.timestamp("ns")), "1970-01-01T00:00:01.500000001"),
        (pa.array([1_500_000_001], pa.time64("ns")), "00:00:01.500000001"),
        (pa.array([1_500_000], ZONED), "1970-01-01T00:00:01.500000Z"),
        (pa.array([8030 * _YEAR_S], pa.timestamp("s")), "10000-01-01T06:36:00"),
        (pa.array([50_030 * _YEAR_S], pa.timestamp("s")), "52000-01-01T06:36:00"),
        (pa.array([-50_000 * _YEAR_S], pa.timestamp("s", "UTC")), "-48030-01-01T00:00:00+00:00"),
        (pa.array([50_030 * _YEAR_S], pa.timestamp("s", "UTC")), "52000-01-01T06:36:00+00:00"),
    ],
)
def test_a_time_is_written_whole(column: pa.Array, expected: str) -> None:
    """Nanoseconds, a zone that is not known here, and years that Python or Arrow cannot write."""
    rows = pa.table({"at": pa.concat_arrays([column, pa.nulls(1, column.type)])})
    assert [row["at"] for row in json_rows(rows)] == [expected, None]
