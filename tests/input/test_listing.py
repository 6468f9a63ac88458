"""The shards of an input, and the content of their footers."""

import bz2
import gzip
import lzma
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.stores import StubS3
from tokenmill.errors import UserError
from tokenmill.input.footers import Footers, read_footers
from tokenmill.input.listing import check_output_outside, list_input
from tokenmill.storage.base import Store


def write(path: Path, columns: Mapping[str, Any] | None = None, group: int = 100) -> Path:
    """Write a Parquet file with these columns, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": ["a", "bc"]} if columns is None else dict(columns))
    pq.write_table(table, path, row_group_size=group)
    return path


def keys(path: str | Path) -> list[str]:
    return [item.key for item in list_input(str(path), None).objects]


def footers(
    path: Path, columns: Mapping[str, str] | None = None, measured: frozenset[str] = frozenset()
) -> Footers:
    """The footers of a folder. By default, the job needs the column `text`."""
    listing = list_input(str(path), None)
    return read_footers(listing, {"text": "prompt.user"} if columns is None else columns, measured)


def refusal(path: Path, columns: Mapping[str, str] | None = None) -> str:
    """The message of the error when a folder's footers are read."""
    with pytest.raises(UserError) as refused:
        footers(path, columns)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with shards at several depths, and other files."""
    root = tmp_path / "corpus"
    for name in (
        "b.parquet",
        "a.parquet",
        "day=1/c.PQ",
        "day=1/deep/d.parq",
        "_old/e.parquet",
        ".cache/f.parquet",
        "day=1/_g.parquet",
        "day=1/.h.parquet",
    ):
        write(root / name)
    for name in ("_SUCCESS", "README.md", "day=1/.c.PQ.crc", "x.parquet.tmp"):
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("path", "shards"),
    [
        ("", ["a.parquet", "b.parquet", "day=1/c.PQ", "day=1/deep/d.parq"]),
        ("/", ["a.parquet", "b.parquet", "day=1/c.PQ", "day=1/deep/d.parq"]),
        ("/day=1", ["c.PQ", "deep/d.parq"]),
        ("/_old", ["e.parquet"]),
        ("/a.parquet", ["a.parquet"]),
        ("/_old/e.parquet", ["e.parquet"]),
        ("/*.parquet", ["a.parquet", "b.parquet"]),
        ("/[!a].parquet", ["b.parquet"]),
        ("/?.parquet", ["a.parquet", "b.parquet"]),
        ("/*/*.PQ", ["day=1/c.PQ"]),
        ("/day=*/deep/*", ["day=1/deep/d.parq"]),
        ("/**/*.par*[qt]", ["a.parquet", "b.parquet", "day=1/deep/d.parq"]),
        ("/day=1/**", ["c.PQ", "deep/d.parq"]),
    ],
)
def test_a_path_names_its_shards(corpus: Path, path: str, shards: list[str]) -> None:
    """A file, folder or glob lists its shards by key, without names that begin with `_` or `.`."""
    assert keys(f"{corpus}{path}") == shards
    assert keys(f"file://{corpus}{path}") == shards


@pytest.mark.parametrize("path", ["a.parquet", "*.parquet", ".", "day=1", "./day=1/*", "../corpus"])
def test_paths_may_be_relative(corpus: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A relative path starts at the working folder."""
    monkeypatch.chdir(corpus)
    assert keys(path) == keys(corpus / path)


def test_a_folder_may_be_named_like_a_file(tmp_path: Path) -> None:
    """A folder `corpus.parquet`, as Spark writes them, is a folder of shards."""
    write(tmp_path / "corpus.parquet" / "part-0.parquet")
    assert keys(tmp_path / "corpus.parquet") == ["part-0.parquet"]


def test_an_s3_url_names_a_file_or_a_folder(stub_s3: StubS3) -> None:
    """A URL lists the objects below it, or else the object itself, whatever the names end with."""
    for key in ("corpus.parquet/a.parquet", "corpus.parquet/b/c.parquet", "corpus.parquet-2"):
        stub_s3.store.put_if_absent(key, b"")
    url = f"{stub_s3.store.url}/corpus.parquet"
    endpoint_url = stub_s3.endpoint_url
    listed = [item.key for item in list_input(url, endpoint_url).objects]
    assert listed == ["a.parquet", "b/c.parquet"]
    (single,) = list_input(f"{url}/a.parquet", endpoint_url).objects
    assert single.key == "a.parquet"
    with pytest.raises(UserError, match="no such file"):
        list_input(f"{url}/d.parquet", endpoint_url)


@pytest.mark.parametrize("url", ["s3://", "memory://"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    """A scheme alone names no input."""
    with pytest.raises(UserError, match=url):
        list_input(url, None)


@pytest.mark.parametrize("path", ["nope", "nope.parquet", "nope/", "empty", "corpus/a.parquet/b"])
def test_a_path_without_shards_is_refused(corpus: Path, path: str) -> None:
    """The error names a path that does not exist, or a folder without shards."""
    (corpus.parent / "empty").mkdir()
    with pytest.raises(UserError, match=path):
        list_input(f"{corpus.parent}/{path}", None)


@pytest.mark.parametrize("pattern", ["*.csv", "nope/*", "**/_*.parquet", "*/e.parquet"])
def test_a_pattern_without_shards_is_refused(corpus: Path, pattern: str) -> None:
    """The error names a glob that matches nothing, or only hidden files."""
    with pytest.raises(UserError) as refused:
        list_input(f"{corpus}/{pattern}", None)
    assert pattern in str(refused.value)
    assert "no file matches" in str(refused.value)


@pytest.mark.parametrize("name", ["a[1].parquet", "a*.parquet", "a?.parquet", "{date}.parquet"])
@pytest.mark.parametrize("folder", ["corpus", "corpus[x]*"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, folder: str, name: str) -> None:
    """Wildcards in the name of a file or a folder are taken literally if it exists."""
    write(tmp_path / folder / name)
    write(tmp_path / folder / "a1.parquet")
    write(tmp_path / "corpusx" / "b.parquet")
    assert keys(tmp_path / folder / name) == [name]
    assert keys(tmp_path / folder) == sorted([name, "a1.parquet"])
    escaped = "".join(f"[{char}]" if char in "*?[{" else char for char in f"{folder}/{name}")
    assert keys(f"{tmp_path}/{escaped}") in ([name], [f"{folder}/{name}"])


@pytest.fixture
def with_outputs(memory_store: Store, tmp_path: Path) -> str:
    """The URL of an input with two shards, and with outputs at two depths below it."""
    data = write(tmp_path / "one.parquet").read_bytes()
    for key in (
        "a.parquet",
        "day=1/b.parquet",
        "out/_tokenmill/plan.parquet",
        "out/data/a/rows-000000000000-000000000002.parquet",
        "out/data/b/rows-000000000000-000000000002.parquet",
        "out/other.parquet",
        "old/deep/out/_tokenmill/plan.parquet",
        "old/deep/out/data/a/rows-000000000000-000000000002.parquet",
        # A folder of the same name that is no output's.
        "outer/data/c.parquet",
    ):
        memory_store.put_if_absent(f"in/{key}", data)
    return f"{memory_store.url}/in"


@pytest.mark.parametrize("pattern", ["", "/", "/**", "/**/*.parquet", "/*/**"])
def test_outputs_below_the_input_are_not_read(with_outputs: str, pattern: str) -> None:
    """Their units are left out at any depth, and one note says so; other files are read."""
    listing = list_input(f"{with_outputs}{pattern}", None)
    shards = {item.key for item in listing.objects}
    assert shards - {"a.parquet"} == {
        "day=1/b.parquet",
        "out/other.parquet",
        "outer/data/c.parquet",
    }
    (note,) = listing.notes
    assert "3 files" in note and f"{with_outputs}/old/deep/out" in note and "1 other" in note


@pytest.mark.parametrize(
    ("path", "shards"),
    [
        ("/out", 3),
        ("/out/data", 2),
        ("/out/data/**", 2),
        ("/out/data/a", 1),
        ("/out/data/a/rows-000000000000-000000000002.parquet", 1),
        ("/*/data/**/*.parquet", 3),
        ("/old/deep/out", 1),
    ],
)
def test_an_output_that_the_path_names_is_read(with_outputs: str, path: str, shards: int) -> None:
    """Reading the rows of an output is a matter of its path."""
    listing = list_input(f"{with_outputs}{path}", None)
    assert (len(listing.objects), listing.notes) == (shards, ())


def test_a_folder_of_outputs_only_is_refused(with_outputs: str) -> None:
    """The error names one, and what to do."""
    with pytest.raises(UserError, match=f"{with_outputs}/old/deep/out") as refused:
        list_input(f"{with_outputs}/old", None)
    assert "\n" not in str(refused.value)


def test_an_object_with_the_name_of_a_folder_is_noted(memory_store: Store, tmp_path: Path) -> None:
    """In an object store both may exist; the folder is read. An empty object is only a marker."""
    data = write(tmp_path / "one.parquet").read_bytes()
    for key in ("corpus.parquet/a.parquet", "other/a.parquet", "corpus.parquet"):
        memory_store.put_if_absent(key, data)
    memory_store.put_if_absent("other", b"")
    url = memory_store.url
    listing = list_input(f"{url}/corpus.parquet", None)
    assert [item.key for item in listing.objects] == ["a.parquet"]
    (note,) = listing.notes
    assert f"{url}/corpus.parquet," in note
    assert list_input(f"{url}/other", None).notes == ()


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """A name that is not UTF-8 is refused, since no output can be named after it."""
    write(tmp_path / "cafe.parquet").rename(tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    with pytest.raises(UserError) as refused:
        list_input(str(tmp_path), None)
    assert "caf\\udce9.parquet" in str(refused.value)
    assert "rename" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "output", "refused"),
    [
        ("/in", "/in", True),
        ("/in", "/in/out", True),
        ("/in/**/*.parquet", "/in/out", True),
        ("/in/*.parquet", "/in/out", False),
        ("/in", "/inner", False),
        ("/in", "/out", False),
        ("/in/a.parquet", "/in/out", False),
    ],
)
def test_an_output_inside_the_input_is_refused(
    tmp_path: Path, path: str, output: str, *, refused: bool
) -> None:
    """An output that a later listing of the input would include is refused."""
    write(tmp_path / "in" / "a.parquet")
    listing = list_input(f"{tmp_path}{path}", None)
    if refused:
        with pytest.raises(UserError, match=r"^output\.path: .*choose a path outside"):
            check_output_outside(listing, f"{tmp_path}{output}")
    else:
        check_output_outside(listing, f"{tmp_path}{output}")


def test_a_footer_has_rows_bytes_and_types(tmp_path: Path) -> None:
    """A shard has its size, its rows by row group, and the bytes of the measured columns."""
    columns = {"text": ["abcd" * 100, "b", "c"], "n": [1, 2, 3], "x.y": ["z" * 999] * 3}
    path = write(tmp_path / "a.parquet", columns, group=2)
    read = footers(tmp_path, measured=frozenset({"text"}))
    (shard,) = read.shards
    assert (shard.path, shard.size) == ("a.parquet", path.stat().st_size)
    assert [group.num_rows for group in shard.row_groups] == [2, 1]
    assert shard.row_groups[0].num_bytes > 400
    assert shard.row_groups[1].num_bytes < 200
    assert read.schema == pa.schema([("text", pa.string())])
    (dotted,) = footers(tmp_path, measured=frozenset({"x.y"})).shards
    assert dotted.row_groups[0].num_bytes > 999


def test_a_long_footer_is_read_whole(tmp_path: Path) -> None:
    """A footer that is longer than the first read is read again."""
    columns = {f"a column whose name is long {number}": [number] for number in range(700)}
    path = write(tmp_path / "a.parquet", {"text": ["abc"], **columns})
    assert pq.read_metadata(path).serialized_size > 2**16
    (shard,) = footers(tmp_path, measured=frozenset({"text"})).shards
    assert shard.row_groups[0].num_rows == 1


def test_thousands_of_shards_stay_in_order(tmp_path: Path, memory_store: Store) -> None:
    """More shards than are read at a time are in the order of their keys, without bad ones."""
    for rows in (1, 2):
        data = write(tmp_path / f"{rows}.parquet", {"text": ["a"] * rows}).read_bytes()
        for number in range(rows, 1_201, 2):
            memory_store.put_if_absent(f"{number:04}.parquet", data)
    memory_store.replace("0600.parquet", b"PAR1")
    read = read_footers(list_input(memory_store.url, None), {}, frozenset())
    assert [(shard.path, shard.row_groups[0].num_rows) for shard in read.shards] == [
        (f"{number:04}.parquet", 2 - number % 2) for number in range(1, 1_201) if number != 600
    ]
    assert [shard.path for shard in read.bad] == ["0600.parquet"]


def test_a_shard_may_have_no_rows(tmp_path: Path) -> None:
    """A Parquet file with zero rows is a shard."""
    write(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})
    assert sum(group.num_rows for group in footers(tmp_path).shards[0].row_groups) == 0


BROKEN: dict[str, bytes] = {
    "0 bytes": b"",
    "PAR1": b"PAR1",
    "other text": b"id,text\n1,hello\n" * 9,
    "wrong magic": b"PAR1" + b"\0" * 60 + b"PARX",
    "wrong length": b"PAR1" + b"\xff" * 60 + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_not_parquet_is_a_bad_shard(tmp_path: Path, data: bytes) -> None:
    """An unreadable file is a bad shard; an input with no other file is refused."""
    (tmp_path / "bad.parquet").write_bytes(data)
    assert str(tmp_path / "bad.parquet") in refusal(tmp_path)
    write(tmp_path / "good.parquet")
    read = footers(tmp_path)
    assert [shard.path for shard in read.shards] == ["good.parquet"]
    assert [shard.path for shard in read.bad] == ["bad.parquet"]
    assert "not a readable Parquet file" in read.bad[0].reason
    assert data or "0 bytes" in read.bad[0].reason


TEXT = b"id,text\n1,caf\xc3\xa9\n" * 9


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (gzip.compress(TEXT), "gzip"),
        (bz2.compress(TEXT), "bzip2"),
        (lzma.compress(TEXT), "xz"),
        (TEXT, "text, such as CSV"),
        (b"\xef\xbb\xbf" + TEXT, "text, such as CSV"),
        (b'{"text": "a"}\n', "JSON"),
        (b"\n  [1]", "JSON"),
        (b"<!doctype html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"ORC" + bytes(range(64)), "ORC"),
        (b"PAR1" + bytes(range(64)), "end is missing"),
        (bytes(range(128, 256)), "no format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reason_says_what_another_file_looks_like(
    tmp_path: Path, data: bytes, kind: str
) -> None:
    """A file that does not end in PAR1 is recognized by its beginning, however long it is."""
    for length in (1, 2_000):
        (tmp_path / "bad.parquet").write_bytes(data * length)
        message = refusal(tmp_path)
        assert "PAR1" in message and kind in message
        assert "longer than the file" not in message


def test_a_column_of_thousands_is_measured_by_its_name(tmp_path: Path) -> None:
    """The bytes of a column are found among the leaves of all others, nested ones included."""
    columns: dict[str, Any] = {f"c{number}": [number] for number in range(500)}
    columns |= {"s": [{"text": "x" * 999, "y": 1}], "text": ["abc"]}
    write(tmp_path / "a.parquet", columns)
    sizes = {
        name: footers(tmp_path, {}, frozenset({name})).shards[0].row_groups[0].num_bytes
        for name in ("s", "text", "c7")
    }
    assert sizes["text"] < 200 and sizes["c7"] < 200 < sizes["s"]


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_truncated_shard_is_a_bad_shard(tmp_path: Path, kept: float) -> None:
    """A file whose end is missing is not read as a shorter one."""
    data = write(tmp_path / "a.parquet", {"text": [str(n) for n in range(999)]}).read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: int(len(data) * kept)])
    write(tmp_path / "b.parquet")
    assert [shard.path for shard in footers(tmp_path).bad] == ["a.parquet"]


def test_a_shard_without_a_column_is_a_bad_shard(tmp_path: Path) -> None:
    """The reason names the job key, the missing column, and the columns that exist."""
    write(tmp_path / "a.parquet", {"body": ["x"], "id": [1]})
    message = refusal(tmp_path)
    assert str(tmp_path / "a.parquet") in message
    assert (
        "prompt.user names the column text, which does not exist; the shard has: body, id"
        in message
    )
    write(tmp_path / "b.parquet")
    assert [shard.path for shard in footers(tmp_path).bad] == ["a.parquet"]


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    """A needed column must be unique in the shard; other columns may occur twice."""
    table = pa.table([["a"], ["b"], [1]], names=["text", "text", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "prompt.user names the column text, which occurs more than once" in refusal(tmp_path)
    assert footers(tmp_path, {"id": "input.keep"}).schema.names == ["id"]


STRUCT = pa.struct([("k", pa.int32())])
TYPES: list[tuple[pa.DataType, pa.DataType, pa.DataType | None]] = [
    (pa.int32(), pa.int64(), pa.int64()),
    (pa.int64(), pa.uint8(), pa.int64()),
    (pa.float32(), pa.float64(), pa.float64()),
    (pa.string(), pa.large_string(), pa.large_string()),
    (pa.null(), pa.string(), pa.string()),
    (pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("us")),
    (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
    (STRUCT, STRUCT, STRUCT),
    (pa.int64(), pa.float64(), None),
    (pa.int64(), pa.string(), None),
    (pa.int64(), pa.decimal128(10, 2), None),
    (pa.string(), pa.binary(), None),
    (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
    (pa.string(), pa.bool_(), None),
    (pa.string(), STRUCT, None),
]


@pytest.mark.parametrize(("one", "other", "common"), TYPES, ids=str)
def test_types_of_a_column_may_differ_in_width_only(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, common: pa.DataType | None
) -> None:
    """Types of different widths are widened; the error for other types names both shards."""
    for order in ((one, other), (other, one)):
        for name, kind in zip("ab", order, strict=True):
            write(tmp_path / f"{name}.parquet", {"text": pa.array([None], kind)})
        if common is None:
            message = refusal(tmp_path)
            assert f"text is {order[0]} in a.parquet and {order[1]} in b.parquet" in message
        else:
            assert footers(tmp_path).schema.field("text").type == common


def test_a_shard_of_nulls_is_not_blamed(tmp_path: Path) -> None:
    """The error names the two shards whose types differ, not the first shard."""
    for name, kind in (("a", pa.null()), ("b", pa.string()), ("c", pa.int64())):
        write(tmp_path / f"{name}.parquet", {"text": pa.array([None], kind)})
    assert "string in b.parquet and int64 in c.parquet" in refusal(tmp_path)


def test_types_of_other_columns_do_not_matter(tmp_path: Path) -> None:
    """Only the columns that the job reads need a common type, and only they are in the schema."""
    write(tmp_path / "a.parquet", {"text": ["a"], "id": [1]})
    write(tmp_path / "b.parquet", {"id": ["one"], "text": ["b"]})
    assert footers(tmp_path).schema.names == ["text"]
