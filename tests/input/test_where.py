"""`input.where` keeps the rows that a database keeps, and refuses what it does not support."""

import datetime as dt
import itertools
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.errors import UserError
from tokenmill.input.where import where_columns, where_expression

# All combinations of values that comparisons treat differently, including null.
ROWS = list(
    itertools.product(
        [None, -1, 0, 2],
        [None, 0, 2],
        [None, -0.5, 2.0],
        [None, "", "a", "ab", "a.b", "A", "a\nb", "it's", "é"],
        [None, True, False],
    )
)
TABLE = pa.table(
    {
        name: pa.array([row[position] for row in ROWS], kind)
        for position, (name, kind) in enumerate(
            [
                ("a", pa.int64()),
                ("b", pa.int64()),
                ("x", pa.float64()),
                ("s", pa.string()),
                ("flag", pa.bool_()),
            ]
        )
    }
).append_column("row", pa.array(range(len(ROWS))))


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    """A database with the rows, which defines what a condition means."""
    with closing(sqlite3.connect(":memory:")) as connection:
        # LIKE is case-sensitive in standard SQL, but not by default in SQLite.
        connection.execute("PRAGMA case_sensitive_like = ON")
        connection.execute("CREATE TABLE t (a INTEGER, b INTEGER, x REAL, s TEXT, flag BOOLEAN)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", ROWS)
        yield connection


def kept(where: str, table: pa.Table = TABLE) -> list[int]:
    """The positions of the rows that pass the filter."""
    rows: list[int] = table.filter(where_expression(where, table.schema))["row"].to_pylist()
    return rows


def kept_by_database(where: str, database: sqlite3.Connection) -> list[int]:
    """The positions of the rows that a database keeps."""
    rows = database.execute(f"SELECT rowid - 1 FROM t WHERE {where} ORDER BY rowid")  # noqa: S608
    return [row for (row,) in rows]


# Conditions that the property below does not generate.
CONDITIONS = """
a = - -2 | a <> a | a = 2.0 | a > 0.5 | a < 9223372036854775808 | a >= -9223372036854775809
x = 2 | x = a | x < 1e400 | s = 'it''s' | s >= 'a' AND s < 'b' | flag <> TRUE
flag IN (TRUE) | 1 = 1 | 1 = 2.0 | NOT a IS NULL | a ISNULL | a NOTNULL | a IN (0, 0.5)
a BETWEEN 2 AND 0 | s LIKE '%' | s NOT LIKE 'a%' | NOT s NOT LIKE 'a%'
a = 2 OR b = 2 AND s = 'a' | NOT NOT a = 2 | a = 2 OR (b = 2 OR (x = 2 OR flag))
"s" = 'a' -- a comment
"""


@pytest.mark.parametrize("where", re.split(r"[|\n]", CONDITIONS.strip()))
def test_a_condition_keeps_the_rows_that_a_database_keeps(
    where: str, database: sqlite3.Connection
) -> None:
    """As in SQL, a comparison with null is neither true nor false."""
    assert kept(where) == kept_by_database(where, database)


NUMBERS = st.sampled_from(["-1", "0", "1", "2"])
TEXTS = st.text(st.sampled_from("aAb.é\n' "), max_size=3).map(lambda s: s.replace("'", "''"))
PATTERNS = st.text(st.sampled_from("ab._%[(*+^$|\n"), max_size=4)
COMPARISONS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
NOT = st.sampled_from(["", "NOT "])
INTEGERS = st.sampled_from(["a", "b"])


def sql(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The `form` with its placeholders filled."""
    return st.tuples(*parts).map(lambda values: form.format(*values))


LEAVES = st.one_of(
    sql("{} {} {}", INTEGERS, COMPARISONS, NUMBERS | INTEGERS),
    sql("{} {} {}", NUMBERS, COMPARISONS, INTEGERS),
    sql("x {} {}", COMPARISONS, st.sampled_from(["-0.5", "2.0", "1", "1e0"])),
    sql("s {} '{}'", COMPARISONS, TEXTS),
    sql("s {}LIKE '{}'", NOT, PATTERNS),
    sql("{} {}IN ({}, {})", INTEGERS, NOT, NUMBERS, NUMBERS | INTEGERS),
    sql("{} {}BETWEEN {} AND {}", INTEGERS, NOT, NUMBERS | INTEGERS, NUMBERS),
    sql("{} IS {}NULL", st.sampled_from(["a", "b", "x", "s", "flag"]), NOT),
    st.sampled_from(["flag", "flag = FALSE", "TRUE", "FALSE"]),
)
# Mostly without parentheses, so that operator precedence is tested.
WHERES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        sql("{} AND {}", inner, inner),
        sql("{} OR {}", inner, inner),
        sql("NOT {}", inner),
        sql("({})", inner),
        sql("NOT ({})", inner),
    ),
    max_leaves=6,
)


@settings(max_examples=250, deadline=None)
@given(where=WHERES)
@example(where="NOT a IN (1, b) OR s LIKE 'a%' AND NOT flag")
def test_any_condition_keeps_the_rows_that_a_database_keeps(
    where: str, database: sqlite3.Connection
) -> None:
    """The rows are the same for any combination of conditions."""
    assert kept(where) == kept_by_database(where, database)


@pytest.mark.parametrize(
    ("where", "columns"),
    [
        ("a = 1", {"a"}),
        ("a = 1 AND (b > a OR NOT flag)", {"a", "b", "flag"}),
        ("Title LIKE '%x%' OR title IS NULL", {"Title", "title"}),
        ("\"my column\" IN ('a', 'b')", {"my column"}),
        ("s = 'a'", {"s"}),
        ('s = "a"', {"s", "a"}),
        ("5 BETWEEN low AND high", {"low", "high"}),
        ("TRUE", set()),
    ],
)
def test_columns_are_found(where: str, columns: set[str]) -> None:
    """The columns of a condition are found as spelled; string literals are not columns."""
    assert where_columns(where) == columns


USUAL_NAMES = (
    "text date id url user key value type language title row rank year month content source section"
    " label path domain status level index count format timestamp time order group"
)


def test_usual_names_need_no_quotes() -> None:
    """Common column names work without quotes, even those that are SQL keywords."""
    for name in USUAL_NAMES.split():
        table = pa.table({name: ["yes", "no", None], "n": range(3)})
        assert where_columns(f"{name} = 'yes'") == {name}
        expression = where_expression(f"{name} = 'yes'", table.schema)
        assert table.filter(expression)["n"].to_pylist() == [0]


@pytest.mark.parametrize(
    "where",
    [
        "",
        "   ",
        "-- nothing",
        "a =",
        "a = 1 AND",
        "(a = 1",
        "a = 'x",
        "a, b",
        "a = 1 LIMIT 1",
        "a XOR b",
    ],
)
def test_text_that_is_not_a_condition_is_refused(where: str) -> None:
    """The error for text that does not parse names the job key."""
    for parse in (where_columns, lambda text: where_expression(text, TABLE.schema)):
        with pytest.raises(UserError) as refused:
            parse(where)
        assert "input.where" in str(refused.value)
        assert "is not a SQL condition" in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ("lower(s) = 'a'", "LOWER(s)"),
        ("a + 1 = 2", "a + 1"),
        ("s || 'x' = 'ax'", "s || 'x'"),
        ("s ILIKE 'A'", "ILIKE"),
        ("s LIKE 'a!%' ESCAPE '!'", "ESCAPE"),
        ("s LIKE s", "s"),
        ("a = NULL", "NULL"),
        ("a IN (1, NULL)", "NULL"),
        ("a IN (SELECT 1)", "SELECT 1"),
        ("a IN ()", "IN ()"),
        ("a IS TRUE", "IS TRUE"),
        ("a IS DISTINCT FROM 1", "DISTINCT"),
        ("CASE WHEN a = 1 THEN TRUE END", "CASE"),
        ("CAST(a AS TEXT) = '1'", "CAST"),
        ("x >= DATE '2024-01-01'", "DATE"),
        ("EXISTS (SELECT 1)", "EXISTS"),
        ("SELECT 1", "SELECT 1"),
        ("DROP TABLE t", "DROP TABLE t"),
        ("a = 1; b = 2", "a = 1; b = 2"),
        ("a = 1 = flag", "a = 1"),
        ("a AS b", "a AS b"),
        ("other.a = 1", "other.a"),
        ("meta.s = 'a'", "meta.s"),
        ("a BETWEEN SYMMETRIC 2 AND 0", "SYMMETRIC"),
        ("a = ?", "?"),
        ("NULL", "NULL"),
        ("*", "*"),
    ],
)
def test_unsupported_sql_is_refused(where: str, part: str) -> None:
    """The error names the part that is not supported, and lists what is."""
    with pytest.raises(UserError) as refused:
        where_expression(where, TABLE.schema)
    message = str(refused.value)
    assert all(word in message for word in ("input.where", part, "not supported", "BETWEEN"))


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ("a = 'x'", "int64"),
        ("a IN (1, 'x')", "int64"),
        ("x = 'much'", "double"),
        ("flag = 'maybe'", "bool"),
        ("a", "bool"),
        ("a AND flag", "int64"),
        ("NOT a", "int64"),
        ("s OR flag", "string"),
        ("a = s", "int64"),
        ("a LIKE '1%'", "int64"),
        ("s", "string"),
        ("s = 5", "string"),
        ("flag = 2", "bool"),
    ],
)
def test_values_of_another_type_are_refused(where: str, part: str) -> None:
    """A condition that does not fit the columns' types is refused before rows are read."""
    with pytest.raises(UserError, match="column") as refused:
        where_expression(where, TABLE.schema)
    assert part in str(refused.value)
    assert where in str(refused.value)


DAYS = [dt.date(2023, 12, 31), dt.date(2024, 1, 1), dt.date(2024, 6, 30), None]
TIMES = [None if day is None else dt.datetime.combine(day, dt.time(12)) for day in DAYS]


@pytest.mark.parametrize(
    ("values", "where", "rows"),
    [
        (pa.array(DAYS, pa.date32()), "v >= '2024-01-01'", [1, 2]),
        (pa.array(DAYS, pa.date32()), "v BETWEEN '2024-01-01' AND '2024-03-01'", [1]),
        (pa.array(DAYS, pa.date32()), "v IN ('2023-12-31', '2024-06-30')", [0, 2]),
        (pa.array(TIMES, pa.timestamp("us")), "v > '2024-01-01'", [1, 2]),
        (pa.array(TIMES, pa.timestamp("ns")), "v <= '2024-01-01 12:00:00'", [0, 1]),
        (pa.array(TIMES, pa.timestamp("s", "UTC")), "v < '2024-01-01T12:00:00Z'", [0]),
        (pa.array(TIMES, pa.timestamp("s", "UTC")), "v < '2024-01-01T13:00:00+02:00'", [0]),
        (pa.array(["a", "b", "c", None]).dictionary_encode(), "v <> 'b'", [0, 2]),
        (pa.array(["a", "b", "c", None]).dictionary_encode(), "v LIKE 'a%'", [0]),
        (pa.array(["a", "b", "c", None], pa.large_string()), "v LIKE 'b%' OR v = 'a'", [0, 1]),
        (pa.array([1, 2, 3, None], pa.uint8()), "v >= 2", [1, 2]),
        (pa.array([0.1, 0.2, 0.3, None], pa.float32()), "v = 0.1", [0]),
        (pa.array([Decimal("1.10"), Decimal(2), Decimal(3), None]), "v > 1.1", [1, 2]),
        (pa.array([{"k": 1}, None, {"k": 2}, None]), "v IS NOT NULL", [0, 2]),
        (pa.array([["a"], [], None, None]), "v IS NULL", [2, 3]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_a_literal_has_its_columns_type(values: pa.Array, where: str, rows: list[int]) -> None:
    """A literal is converted to its column's type: dates, times, decimals, dictionaries."""
    table = pa.table({"v": values, "row": pa.array(range(4))})
    assert kept(where, table) == rows


@pytest.mark.parametrize(
    ("kind", "literal"),
    [
        (pa.date32(), "'2024-13-01'"),
        (pa.date32(), "'yesterday'"),
        (pa.date32(), "2024"),
        (pa.timestamp("us"), "2024"),
        (pa.timestamp("us"), "'2024-01-01T25:00'"),
        (pa.timestamp("us", "UTC"), "'2024-01-01'"),
        (pa.list_(pa.int64()), "5"),
        (pa.struct([("k", pa.int64())]), "'k'"),
    ],
    ids=str,
)
def test_a_literal_that_does_not_fit_its_column_is_refused(kind: pa.DataType, literal: str) -> None:
    """The error names the literal and the column's type."""
    with pytest.raises(UserError) as refused:
        where_expression(f"v = {literal}", pa.schema([("v", kind)]))
    assert literal in str(refused.value)
    assert str(kind) in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "values", "where", "rows"),
    [
        (pa.int64(), [1, 2], "v > 1.5", [1]),
        (pa.int64(), [2**53, 2**53 + 1], "v > 9007199254740992.5", [1]),
        (pa.uint64(), [1, 2**64 - 1], "v > -1", [0, 1]),
        (pa.uint8(), [1, 200], "v < 300", [0, 1]),
        (pa.int8(), [1, 100], "v BETWEEN 50 AND 1000", [1]),
        (pa.int8(), [1, 100], "v IN (1, 1000)", [0]),
        (pa.decimal128(10, 2), [Decimal(5), Decimal(15)], "v > 10", [1]),
        (pa.decimal128(38, 2), [Decimal(5), Decimal(15)], "v > 10.555", [1]),
    ],
    ids=str,
)
def test_a_number_may_be_outside_of_its_columns_type(
    kind: pa.DataType, values: list[Any], where: str, rows: list[int]
) -> None:
    """Numbers are compared by value, also outside of the column's range or precision."""
    table = pa.table({"v": pa.array(values, kind), "row": pa.array(range(len(values)))})
    assert kept(where, table) == rows


@pytest.mark.parametrize("literal", ["1" * 99, "-" + "1" * 99, "1e400"])
def test_a_number_beyond_all_types_is_refused(literal: str) -> None:
    """A number with a hundred digits is refused."""
    with pytest.raises(UserError, match=literal):
        where_expression(f"a = {literal}", TABLE.schema)


@pytest.mark.parametrize(
    ("values", "rows"),
    [(pa.array([1, 7000, None, -1]), [0, 1]), (pa.array([1, 70, None, -1], pa.int8()), [0, 1])],
    ids=["int64", "int8"],
)
def test_a_list_of_values_may_be_long(values: pa.Array, rows: list[int]) -> None:
    """A list of thousands of ids works like a short one; null is neither in it nor not in it."""
    table = pa.table({"v": values, "row": pa.array(range(4))})
    listed = ", ".join(map(str, range(20_000)))
    assert kept(f"v IN ({listed})", table) == rows
    assert kept(f"v NOT IN ({listed})", table) == [3]


def test_a_long_list_works_on_a_dictionary_column() -> None:
    """The column's values are compared, not their indices."""
    table = pa.table({"v": pa.array(["ab", "b", None]).dictionary_encode(), "row": range(3)})
    listed = ", ".join(f"'{letter}b'" for letter in "abcdefgh" * 20)
    assert kept(f"v IN ({listed})", table) == [0]
    assert kept(f"v NOT IN ({listed})", table) == [1]


def test_the_length_of_a_chain_is_limited() -> None:
    """A chain of 2,000 conditions works; a longer one, which could crash Arrow, is refused."""
    chain = [f"a = {number}" for number in range(2_001)]
    assert kept(" OR ".join(chain[:-1])) == kept("a >= 0")
    with pytest.raises(UserError, match=r"2,001 conditions .* IN"):
        where_expression(" OR ".join(chain), TABLE.schema)


@pytest.mark.parametrize("opening", ["(", "NOT ("])
def test_deep_nesting_is_refused(opening: str) -> None:
    """Thousands of parentheses are a UserError."""
    where = opening * 5_000 + "a = 1" + ")" * 5_000
    with pytest.raises(UserError, match=r"input\.where: .*too deeply"):
        where_expression(where, TABLE.schema)
