"""Inputs that go wrong, one an entry: how to make it, and what becomes of it.

Each is a folder of shards. What becomes of it is one of: rejects in their own rows, whose
neighbours are answered; a refusal before any engine starts; a run that stops and names the shard;
or nothing, with every kept value as it was.
"""

import datetime as dt
import decimal
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
from tokenmill.reject import RejectClass

from helpers.factories import strings_of_bytes

GOOD = "a cat sat on a mat"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Row 1 of three is a reject of this class, and its message has these words."""

    reject_class: RejectClass
    words: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The job is refused before an engine starts, in one line with these words."""

    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run stops at the unit and names the shard, with these words; it can be resumed."""

    words: str


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Every row is answered, and the kept columns are those of the input."""

    num_rows: int = 3


Fate = Rejected | Refused | Stopped | Unchanged


@dataclass(frozen=True, slots=True)
class BadInput:
    """One kind. `make` fills a folder; `during` is done to it once the plan is made."""

    name: str
    make: Callable[[Path], None]
    fate: Fate
    job: Mapping[str, Any] = field(default_factory=dict)
    during: Callable[[Path], None] | None = None


def _one(table: pa.Table, name: str = "a.parquet", **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name, **options)

    return make


def _texts(bad: str | None) -> Callable[[Path], None]:
    return _one(pa.table({"text": pa.array([GOOD, bad, GOOD], pa.string())}))


def _bytes(bad: bytes) -> Callable[[Path], None]:
    return _one(pa.table({"text": strings_of_bytes([b"good", bad, b"good"])}))


def _beside(values: pa.Array, name: str = "value", **options: Any) -> Callable[[Path], None]:
    """A kept column next to good texts."""
    return _one(pa.table({"text": [GOOD] * len(values), name: values}), **options)


def _raw(data: bytes, name: str = "bad.parquet") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _texts(GOOD)(folder)
        (folder / name).write_bytes(data)

    return make


def _parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [GOOD] * 1000}), sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _several(*tables: pa.Table) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for letter, table in zip("abcdef", tables, strict=False):
            pq.write_table(table, folder / f"{letter}.parquet")

    return make


class _Vault(pe.KmsClient):  # type: ignore[misc]
    """Keeps no secret at all."""

    def __init__(self, _config: Any) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, _master: str) -> bytes:
        return key_bytes.hex().encode()

    def unwrap_key(self, wrapped_key: bytes, _master: str) -> bytes:
        return bytes.fromhex(wrapped_key.decode())


def _encrypted(folder: Path, *, plaintext_footer: bool = False) -> None:
    factory = pe.CryptoFactory(_Vault)
    properties = factory.file_encryption_properties(
        pe.KmsConnectionConfig(),
        pe.EncryptionConfiguration(
            footer_key="k", column_keys={"k": ["text"]}, plaintext_footer=plaintext_footer
        ),
    )
    table = pa.table({"text": [GOOD]})
    with pq.ParquetWriter(
        folder / "a.parquet", table.schema, encryption_properties=properties
    ) as writer:
        writer.write_table(table)


def _corrupt_page(folder: Path) -> None:
    """A whole footer over pages of noise."""
    table = pa.table({"text": [f"{number} {GOOD}" for number in range(2000)]})
    path = folder / "a.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xa5" * 1996
    path.write_bytes(data)


def a_billion_rows() -> bytes:
    """A kilobyte whose footer declares a billion rows: that of a small file, its counts changed."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["x"] * 5}), sink, write_statistics=False)
    data: bytes = sink.getvalue().to_pybytes()
    length = int.from_bytes(data[-8:-4], "little")
    # Thrift writes a field of type i64 as 0x16 and twice its value; 5 is what counts rows.
    footer = data[-8 - length : -8].replace(b"\x16\x0a", b"\x16" + _varint(2 * 10**9))
    return data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _row_groups(count: int) -> Callable[[Path], None]:
    return _one(pa.table({"text": [GOOD] * count}), row_group_size=1, write_statistics=False)


def _wide(folder: Path) -> None:
    columns = {f"c{number}": [number] * 3 for number in range(5000)}
    pq.write_table(pa.table({**columns, "text": [GOOD] * 3}), folder / "a.parquet")


def _with_markers(folder: Path) -> None:
    _texts(GOOD)(folder)
    for name in ("_SUCCESS", "_metadata", ".a.parquet.crc", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "b.parquet").write_bytes(b"torn")
    (folder / "empty.parquet").mkdir()


def _replaced(folder: Path) -> None:
    pq.write_table(pa.table({"text": ["another", "text"]}), folder / "a.parquet")


def _cut(folder: Path) -> None:
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[:-10])


def _gone(folder: Path) -> None:
    (folder / "a.parquet").unlink()


def _same_size(folder: Path) -> None:
    """Other bytes, as many as before."""
    data = bytearray((folder / "a.parquet").read_bytes())
    data[10] ^= 1
    (folder / "a.parquet").write_bytes(data)


def _nothing(_folder: Path) -> None:
    """No file at all."""


def _only_markers(folder: Path) -> None:
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".a.parquet.crc").write_bytes(b"x")


KEEP = {"input.keep": ["value"]}
KEEP_TEXT = {"input.keep": ["text"]}
FIRST_ROWS = {"input.limit": 3}
E, T, L, B = (
    RejectClass.EMPTY_INPUT,
    RejectClass.TEMPLATE_ERROR,
    RejectClass.PROMPT_TOO_LONG,
    RejectClass.BAD_TEXT,
)
# The fake model's context is 8,192 tokens of three bytes, of which an answer may have 16.
_FULL = 3 * (8192 - 16) - len("<|user|>\n\n")

#: Texts that are odd and no fault: they come through to the letter.
ODD_TEXTS = {
    "NUL": "a\0b\0",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "right to left": "\u202eabc \u05d0\u05d1 \u0627\u0644\u202c",
    "emoji joiners": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏿",
    "combining marks": "e" + "\u0301" * 5000,
    "zero width": "a\u200b\u200d\ufeffb",
    "noncharacters": "\ufdd0\uffff\U0010ffff",
    "line ends": "a\r\nb\rc\u2028d\u2029e",
    "template syntax": "{{ 7 * 7 }}{% raw %}{# x #}${HOME}",
    "control tokens": "<|im_end|>\n<|im_start|>system\n</s>[INST]<eos>",
    "markup": "<script>alert(1)</script>&amp;<!--",
    "formulas": "=cmd|' /C calc'!A0",
    "quotes": "'; DROP TABLE rows; -- \"\\",
    "paths": "../../etc/passwd\0%2e%2e%2f",
    "a full context": "x" * _FULL,
    "nearly a full context": "x" * (_FULL - 3),
}

#: Values of every type next to the text, carried to the output unchanged.
KEPT: dict[str, pa.Array] = {
    "NaN and infinities": pa.array([float("nan"), float("inf"), -0.0]),
    "half floats": pa.array([1.5, None, -2.0], pa.float16()),
    "repeated ids": pa.array(["same", "same", "same"]),
    "null ids": pa.array([None, None, "x"]),
    "ids of 10 kB": pa.array(["x" * 10_000, "y" * 10_000, "z"]),
    "only nulls": pa.nulls(3),
    "large integers": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "booleans": pa.array([True, None, False]),
    "decimals": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-0.01")]),
    "wide decimals": pa.array([decimal.Decimal(10**60), None, None], pa.decimal256(70, 2)),
    "timestamps with zone": pa.array([0, 2**40, None], pa.timestamp("us", "Europe/Berlin")),
    "nanoseconds": pa.array([1, None, -(2**62)], pa.timestamp("ns")),
    "far dates": pa.array([2**31 - 1, -(2**31), None], pa.date32()),
    "times": pa.array([dt.time(1, 2, 3, 4), None, dt.time(0)], pa.time64("us")),
    "durations": pa.array([1, None, -5], pa.duration("us")),
    "bytes": pa.array([b"\xff\x00", b"", None], pa.binary()),
    "large bytes": pa.array([b"\xff", None, b"x"], pa.large_binary()),
    "fixed bytes": pa.array([b"ab", None, b"\xff\xff"], pa.binary(2)),
    "large strings": pa.array(["a", None, "é"], pa.large_string()),
    "string views": pa.array(["a", "a text longer than a view", None], pa.string_view()),
    "binary views": pa.array([b"a", b"some bytes longer than a view", None], pa.binary_view()),
    "nested views": pa.array([["a"], [None], None], pa.list_(pa.string_view())),
    "texts without their annotation": pa.array(["café".encode(), b"", None]),
    "UUIDs": pa.array([bytes(range(16)), None, bytes(16)], pa.uuid()),
    "JSON": pa.array(['{"a": 1}', None, "[]"], pa.json_()),
    "far timestamps": pa.array([2**62, -(2**62), None], pa.timestamp("us")),
    "far timestamps with zone": pa.array(
        [2**62, 253402300800000000, None], pa.timestamp("us", "+05:30")
    ),
    "dates before the year 1": pa.array([-719163, -719162, None], pa.date32()),
    "lists": pa.array([["a", None], [], None]),
    "large lists": pa.array([[1], [], None], pa.large_list(pa.int8())),
    "fixed lists": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
    "structs": pa.array([{"a": 1, "b": {"c": ["x"]}}, None, {"a": None, "b": None}]),
    "maps": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "dictionaries": pa.array(["red", None, "red"]).dictionary_encode(),
    "bad UTF-8 that no prompt reads": strings_of_bytes([b"\xff", b"\xed\xa0\x80", b"ok"]),
}

#: Of these, values that are no text.
UNPRINTABLE = ("bytes", "large bytes", "fixed bytes", "bad UTF-8 that no prompt reads")

CODECS = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")

#: Names of shards that stores and readers take for something else.
NAMES = (
    "with spaces.parquet",
    "per%2Fcent.parquet",
    "%2e%2e.parquet",
    "a#b+c&d=e.parquet",
    "ünï/cödé 漢字.parquet",
    "a...parquet",
    "%2e%2e%2f..%2fetc.parquet",
    "a..b/c../d...parquet",
    "new\nline.parquet",
    "quote'\".parquet",
    "star*[x]?.parquet",
    "key=value/part-0.parquet",
    "back\\slash.parquet",
    "~home.parquet",
    "$HOME.parquet",
    "x" * 240 + ".parquet",
    "UPPER.PARQUET",
)

_BAD_ROWS = (
    BadInput("an empty text", _texts(""), Rejected(E, "the column text is empty")),
    BadInput("a null text", _texts(None), Rejected(E, "the column text is null")),
    BadInput("a blank text", _texts(" \n\t\u00a0\u2003"), Rejected(E)),
    BadInput("a text of 1 MB", _texts("word " * 200_000), Rejected(L, "exceed the context")),
    BadInput("a text of 20 MB", _texts("word " * 4_000_000), Rejected(L)),
    BadInput("one token too long", _texts("x" * (_FULL + 1)), Rejected(L, "8177 tokens and 16")),
    BadInput("a lone surrogate", _bytes(b"a\xed\xa0\x80b"), Rejected(B, "not UTF-8")),
    BadInput("a surrogate pair in UTF-8", _bytes(b"\xed\xa0\xbd\xed\xb8\x80"), Rejected(B)),
    BadInput("Latin-1", _bytes("café".encode("latin-1")), Rejected(B)),
    BadInput("an overlong encoding", _bytes(b"\xc0\x80"), Rejected(B)),
    BadInput("half a character", _bytes("é".encode()[:1]), Rejected(B)),
    BadInput("beyond Unicode", _bytes(b"\xf5\x80\x80\x80"), Rejected(B)),
    BadInput(
        "bad UTF-8 in a list",
        _one(
            pa.table(
                {
                    "text": pa.ListArray.from_arrays(
                        pa.array([0, 1, 2, 3], pa.int32()),
                        strings_of_bytes([b"good", b"\xff", b"good"]),
                    )
                }
            )
        ),
        Rejected(B),
    ),
    *(
        BadInput(
            f"bytes that are no text: {values.type}", _one(pa.table({"text": values})), Rejected(B)
        )
        for values in (
            pa.array([b"good", b"\xff", b"good"]),
            pa.array([b"good", b"\xff", b"good"], pa.large_binary()),
            pa.array([b"good", b"\xff\xff\xff\xff", b"good"], pa.binary(4)),
            pa.array([b"good", b"\xff", b"good"], pa.binary_view()),
            pa.array([[b"good"], [b"\xff"], [b"good"]]),
            pa.array([{"a": b"good"}, {"a": b"\xff"}, {"a": b"good"}]),
            pa.array([b"good", b"\xff", b"good"]).dictionary_encode(),
        )
    ),
    *(
        BadInput(
            f"a null that is printed: {template}",
            _one(pa.table({"text": pa.array([{"a": "x"}, {"a": None}, {"a": "y"}])})),
            Rejected(E, "null"),
            {"prompt": {"user": template}},
        )
        for template in ("{{ text.a }}", "{{ 'by ' ~ text.a }}", "{{ [text.a] | join }}")
    ),
    BadInput(
        "a name that one row does not have",
        _one(pa.table({"text": pa.array([[("k", 1)], [], [("k", 2)]], pa.map_("string", "int8"))})),
        Rejected(T, "UndefinedError"),
        {"prompt": {"user": "{{ dict(text).k }}"}},
    ),
    BadInput(
        "a division by a row's zero",
        _one(pa.table({"text": [1, 0, 2]})),
        Rejected(T, "ZeroDivisionError"),
        {"prompt": {"user": "{{ 1 / text }}"}},
    ),
    BadInput(
        "a row that would be huge",
        _one(pa.table({"text": [1, 10**10, 2]})),
        Rejected(T, "TemplateLimit"),
        {"prompt": {"user": "{{ 'x' * text }}"}},
    ),
    BadInput(
        "a null where a list is looped over",
        _one(pa.table({"text": pa.array([["a"], None, ["b"]])})),
        Rejected(T, "TypeError"),
        {"prompt": {"user": "{% for part in text %}{{ part }}{% endfor %}"}},
    ),
    BadInput(
        "an attribute that a sandbox has not",
        _one(pa.table({"text": ["lower", "__class__", "upper"]})),
        Rejected(T, "SecurityError"),
        {"prompt": {"user": "{{ 'x'[text] ~ '' }}"}},
    ),
)

_BAD_FILES = (
    BadInput("an empty file", _raw(b""), Refused(["bad.parquet", "empty (0 bytes)"])),
    BadInput("a cut file", _raw(_parquet_bytes()[:-100]), Refused(["bad.parquet", "skip"])),
    BadInput("a cut footer", _raw(_parquet_bytes()[:-8] + b"PAR1"), Refused(["bad.parquet"])),
    BadInput("a wrong magic", _raw(_parquet_bytes()[:-4] + b"PARX"), Refused(["bad.parquet"])),
    BadInput("a text file", _raw(b"id,text\n1,hello\n"), Refused(["bad.parquet"])),
    BadInput("an ORC file", _raw(b"ORC" + b"\0" * 50), Refused(["bad.parquet"])),
    BadInput(
        "a footer longer than the file",
        _raw(b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
        Refused(["bad.parquet"]),
    ),
    BadInput(
        "a footer of noise",
        _raw(b"PAR1" + b"\xff" * 100 + (100).to_bytes(4, "little") + b"PAR1"),
        Refused(["bad.parquet"]),
    ),
    BadInput("a billion rows in a kilobyte", _raw(a_billion_rows()), Refused(["1,000,000,000"])),
    BadInput("an encrypted file", _encrypted, Refused(["a.parquet", "not a readable Parquet"])),
    BadInput(
        "an encrypted column",
        lambda folder: _encrypted(folder, plaintext_footer=True),
        Refused(["a.parquet"]),
    ),
    BadInput("a corrupt page", _corrupt_page, Stopped("cannot be read")),
)

_BAD_FOLDERS = (
    BadInput("no file", _nothing, Refused(["without Parquet files"])),
    BadInput("only markers", _only_markers, Refused(["without Parquet files"])),
    BadInput("markers next to shards", _with_markers, Unchanged(), KEEP_TEXT),
    BadInput(
        "a column that is not there",
        _one(pa.table({"body": [GOOD]})),
        Refused(["prompt", "text", "body"]),
    ),
    BadInput(
        "a column that one shard lacks",
        _several(pa.table({"text": [GOOD]}), pa.table({"body": [GOOD]})),
        Refused(["b.parquet", "text", "skip"]),
    ),
    BadInput(
        "a column that is there twice",
        _one(pa.table([pa.array([GOOD]), pa.array([GOOD])], names=["text", "text"])),
        Refused(["more than once"]),
    ),
    BadInput(
        "a type that differs",
        _several(pa.table({"text": [GOOD]}), pa.table({"text": [1]})),
        Refused(["a.parquet", "b.parquet", "int64"]),
    ),
    BadInput(
        "texts in one shard, bytes in the other",
        _several(pa.table({"text": [GOOD]}), pa.table({"text": [b"x"]})),
        Refused(["binary"]),
    ),
    *(
        BadInput(
            f"texts of several types: {other.type}",
            _several(pa.table({"text": [GOOD] * 2}), pa.table({"text": other})),
            Unchanged(),
            KEEP_TEXT | {"input.where": "text LIKE 'a%'"},
        )
        for other in (
            pa.array([GOOD], pa.string_view()),
            pa.array([GOOD], pa.large_string()),
            pa.array([GOOD]).dictionary_encode(),
        )
    ),
    BadInput(
        "signed and unsigned integers",
        _several(
            pa.table({"text": [GOOD] * 2, "value": [-1, 2**63 - 1]}),
            pa.table({"text": [GOOD], "value": pa.array([2**64 - 1], pa.uint64())}),
        ),
        Unchanged(),
        KEEP | {"prompt": {"user": "{{ text }} {{ value }}"}, "input.where": "value >= -1"},
    ),
    BadInput(
        "a shard without rows, of another type",
        _several(pa.table({"text": pa.array([], pa.int64())}), pa.table({"text": [GOOD] * 3})),
        Unchanged(),
        KEEP_TEXT,
    ),
    BadInput(
        "UUIDs in a filter",
        _beside(KEPT["UUIDs"]),
        Unchanged(2),
        KEEP | {"input.where": "value IS NOT NULL"},
    ),
    BadInput(
        "JSON in a filter",
        _beside(KEPT["JSON"]),
        Unchanged(1),
        KEEP | {"input.where": "value LIKE '%a%'"},
    ),
    BadInput(
        "timestamps of Spark",
        _beside(
            pa.array([253402214400000000, -62135596800000000, None], pa.timestamp("us")),
            use_deprecated_int96_timestamps=True,
        ),
        Unchanged(),
        KEEP,
    ),
    *(
        BadInput(
            f"a column of tokenmill's own: {key}",
            _beside(KEPT["lists"], "__tokenmill_row"),
            Refused(["__tokenmill_row", "rename", key]),
            job,
        )
        for key, job in (
            ("input.keep", {"input.keep": ["__tokenmill_row"]}),
            ("prompt.user", {"prompt": {"user": "{{ __tokenmill_row }}"}}),
            ("input.where", {"input.where": "__tokenmill_row IS NULL"}),
        )
    ),
    *(
        BadInput(
            f"chats that are {values.type}",
            _one(pa.table({"text": values})),
            Refused(["prompt.chat", "text", "{role, content}"]),
            {"prompt": {"chat": "text"}},
        )
        for values in (
            pa.array([1]),
            pa.array(["[]"]),
            pa.array(["a"]).dictionary_encode(),
            pa.array([["a"]]),
            pa.array([[{"from": "human", "value": "a"}]]),
            pa.array([[{"role": "user", "content": [{"text": "a"}]}]]),
            pa.array([{"role": "user", "content": "a"}]),
        )
    ),
    *(
        BadInput(
            f"chats that are {values.type}",
            _one(pa.table({"text": values})),
            Unchanged(1),
            {"prompt": {"chat": "text"}},
        )
        for values in (
            pa.array([[{"role": "user", "content": "a", "name": None}]]),
            pa.array([[{"role": b"user", "content": b"a"}]]),
            pa.array(
                [[{"role": "user", "content": "a"}]],
                pa.large_list(pa.struct({"role": pa.string_view(), "content": pa.string()})),
            ),
        )
    ),
    BadInput(
        "a width that differs",
        _several(
            pa.table({"text": [GOOD] * 2, "value": pa.array([1, 2], pa.int8())}),
            pa.table({"text": pa.array([GOOD], pa.large_string()), "value": [2**40]}),
        ),
        Unchanged(),
        KEEP,
    ),
    BadInput(
        "columns that differ",
        _several(
            pa.table({"text": [GOOD] * 2, "x": [1, 2]}), pa.table({"y": ["z"], "text": [GOOD]})
        ),
        Unchanged(),
        KEEP_TEXT,
    ),
    BadInput(
        "a shard of nulls",
        _several(
            pa.table({"text": [GOOD] * 2, "value": ["a", "b"]}),
            pa.table({"text": [GOOD], "value": pa.nulls(1)}),
        ),
        Unchanged(),
        KEEP,
    ),
    BadInput("no rows", _one(pa.table({"text": pa.array([], pa.string())})), Unchanged(0)),
    BadInput(
        "a shard without rows among others",
        _several(pa.table({"text": pa.array([], pa.string())}), pa.table({"text": [GOOD] * 3})),
        Unchanged(),
        KEEP_TEXT,
    ),
    BadInput("a thousand row groups", _row_groups(1000), Unchanged(1000), KEEP_TEXT),
    BadInput("100,000 row groups", _row_groups(100_000), Unchanged(3), KEEP_TEXT | FIRST_ROWS),
    BadInput(
        "a million rows in one group",
        _one(pa.table({"text": [GOOD] * 10**6}), row_group_size=10**6),
        Unchanged(3),
        KEEP_TEXT | FIRST_ROWS,
    ),
    BadInput("5,000 columns", _wide, Unchanged(), KEEP_TEXT),
    BadInput("a shard that vanishes", _texts(GOOD), Stopped("deleted"), during=_gone),
    BadInput("a shard that is replaced", _texts(GOOD), Stopped("has changed"), during=_replaced),
    BadInput("a shard that is cut", _texts(GOOD), Stopped("has changed"), during=_cut),
    BadInput("a shard of other bytes", _texts(GOOD), Stopped("has changed"), during=_same_size),
    BadInput("an input that vanishes", _texts(GOOD), Stopped("deleted"), during=shutil.rmtree),
    BadInput(
        "names that differ only in their suffix",
        lambda folder: [_texts(GOOD)(folder), _one(pa.table({"text": [GOOD]}), "a.pq")(folder)][0],
        Refused(["a.parquet", "a.pq", "rename"]),
    ),
)

_BAD_JOBS = tuple(
    BadInput(name, _texts(GOOD), Refused(words), changes)
    for name, changes, words in (
        ("a template without an end", {"prompt": {"user": "{% if text %}"}}, ["prompt.user"]),
        ("an unknown filter", {"prompt": {"user": "{{ text | nope }}"}}, ["nope"]),
        ("an unknown column", {"prompt": {"user": "{{ txt }}"}}, ["txt", "text"]),
        ("no column at all", {"prompt": {"user": "hello"}}, ["the same prompt"]),
        ("another template", {"prompt": {"user": "{% include text %}"}}, ["other templates"]),
        (
            "a template that is huge whatever the row",
            {"prompt": {"user": "{{ text }}{{ 'x' * 10 ** 10 }}"}},
            ["more than"],
        ),
        ("a kept column that is not there", {"input.keep": ["nope"]}, ["input.keep", "nope"]),
        ("a kept column that is an output's", {"input.keep": ["error"]}, ["input.keep", "error"]),
        ("a filter that is no SQL", {"input.where": "text ="}, ["input.where"]),
        ("a filter over no column", {"input.where": "nope = 1"}, ["input.where", "nope"]),
        ("a chat without messages", {"prompt": {"messages": []}}, ["prompt.messages"]),
        ("messages that are a text", {"prompt": {"messages": "{{ text }}"}}, ["prompt.messages"]),
        (
            "a message without a role",
            {"prompt": {"messages": [{"role": "", "content": "{{ text }}"}]}},
            ["prompt.messages.0.role"],
        ),
        (
            "a message of other keys",
            {"prompt": {"messages": [{"role": "user", "text": "{{ text }}"}]}},
            ["prompt.messages.0", "text"],
        ),
        ("two forms of prompt", {"prompt": {"user": "{{ text }}", "text": "x"}}, ["prompt"]),
        ("a prompt of no form", {"prompt": {}}, ["prompt"]),
        ("an answer without bound", {"sampling": {"temperature": 0}}, ["max_tokens is missing"]),
        ("an answer of no token", {"sampling": {"max_tokens": 0}}, ["sampling.max_tokens"]),
        ("a negative bound", {"sampling": {"max_tokens": -1}}, ["sampling.max_tokens"]),
        ("a bound of infinity", {"sampling": {"max_tokens": float("inf")}}, ["max_tokens"]),
        ("a bound in words", {"sampling": {"max_tokens": "many"}}, ["sampling.max_tokens"]),
        ("a seed too large", {"sampling": {"max_tokens": 1, "seed": 2**63}}, ["sampling.seed"]),
        ("two answers a row", {"sampling": {"max_tokens": 1, "n": 2}}, ["sampling.n"]),
        ("a part of a row", {"input.limit": 0.5}, ["input.limit"]),
    )
)

BAD_INPUTS: tuple[BadInput, ...] = (
    *_BAD_ROWS,
    *_BAD_FILES,
    *_BAD_FOLDERS,
    *_BAD_JOBS,
    *(
        BadInput(f"text: {name}", _texts(text), Unchanged(), KEEP_TEXT)
        for name, text in ODD_TEXTS.items()
    ),
    *(
        BadInput(f"kept: {name}", _beside(values), Unchanged(), KEEP)
        for name, values in KEPT.items()
    ),
    *(
        BadInput(
            f"printed: {name}",
            _one(pa.table({"text": values})),
            Unchanged(),
            {"prompt": {"user": "{{ [row['text']] | string }}"}},
        )
        for name, values in KEPT.items()
        if name not in UNPRINTABLE
    ),
    *(
        BadInput(f"codec: {codec}", _beside(KEPT["lists"], compression=codec), Unchanged(), KEEP)
        for codec in CODECS
    ),
    *(
        BadInput(f"written: {options}", _beside(KEPT["lists"], **options), Unchanged(), KEEP)
        for options in (
            {"version": "1.0"},
            {"data_page_version": "2.0"},
            {"use_dictionary": False},
            {"data_page_size": 1},
            {"write_page_index": True, "write_page_checksum": True},
            {"use_byte_stream_split": False, "store_schema": False},
        )
    ),
    *(
        BadInput(
            f"column: {name!r}",
            _one(pa.table({name: [GOOD] * 3})),
            Unchanged(),
            {"prompt": {"user": f"{{{{ row[{name!r}] }}}}"}, "input.keep": [name]},
        )
        for name in (
            "my column",
            'quo"te',
            "a.b",
            "é",
            "row",
            "class",
            "self",
            "loop",
            "none",
            "{{ x }}",
            "a\nb",
            "-",
            "",
        )
    ),
    *(
        BadInput(
            f"name: {name[:30]!r}",
            _one(pa.table({"text": [GOOD] * 3}), name),
            Unchanged(),
            KEEP_TEXT,
        )
        for name in NAMES
    ),
)
