"""Surveys an input before there is a job: its size, its columns and some of their values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.errors import UserError
from tokenmill.input.footers import read_shared_columns
from tokenmill.input.listing import list_input
from tokenmill.input.reader import Source
from tokenmill.plan.plan import Shard, Unit
from tokenmill.row_columns import PROVENANCE_FIELDS
from tokenmill.storage.base import Store

_MAX_ROWS = 100
# Rows in which the values of a column of labels are looked for.
_MAX_LABEL_ROWS = 5_000
_MAX_LABELS = 100
_MAX_LABEL_CHARACTERS = 40
# A column with such a name is chosen over another with texts up to _PREFERENCE times as long.
_TEXT_NAME = re.compile(r"(?i)(.*_)?(text|content|body|document|article|abstract|message|review)s?")
_PREFERENCE = 4.0
_KEY_NAME = re.compile(r"(?i)(.*[_-])?(id|key|uuid|guid|url|uri)|.*[a-z]I[dD]")
_MAX_KEYS = 3
_IMAGE_NAME = re.compile(r"(?i)(.*_)?(image|img|photo|picture)s?(_.*)?")
_AUDIO_NAME = re.compile(r"(?i)(.*_)?(audio|recording|speech|sound)s?(_.*)?")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the input, and its values in the first rows, without nulls.

    `labels` are the distinct values of more rows, the most frequent first, if they are few, short
    and recur; otherwise it is empty.
    """

    name: str
    type: pa.DataType
    values: Sequence[Any]
    labels: Sequence[str] = ()

    @property
    def is_text(self) -> bool:
        """Whether the column holds strings."""
        return self.type in (pa.string(), pa.large_string())

    @property
    def is_binary(self) -> bool:
        """Whether the column holds bytes, such as images."""
        return self.type in (pa.binary(), pa.large_binary())

    @property
    def mean_length(self) -> float:
        """The mean length of the column's texts in characters."""
        return mean(map(len, self.values)) if self.is_text and self.values else 0.0

    @property
    def is_key(self) -> bool:
        """Whether the column's name and values look like those of a key."""
        is_simple = self.is_text or pa.types.is_integer(self.type)
        is_distinct = is_simple and len(set(self.values)) == len(self.values)
        return bool(is_distinct and self.values and _KEY_NAME.fullmatch(self.name))


@dataclass(frozen=True, slots=True)
class Survey:
    """What an input holds.

    `root` is the folder of its shards. `shards` counts the shards with rows, as a plan does, and
    `bad_shards` those that cannot be read. `recursive` is true if the input includes the files in
    folders below the root.
    """

    path: str
    root: str
    recursive: bool
    rows: int
    shards: int
    bad_shards: int
    columns: tuple[Column, ...]

    @property
    def text(self) -> Column | None:
        """The column that is most likely the text to process."""
        texts = [column for column in self.columns if column.mean_length]
        return max(texts, key=_likelihood, default=None)

    @property
    def keys(self) -> tuple[Column, ...]:
        """Columns that identify a row."""
        reserved = {field.name for field in PROVENANCE_FIELDS}
        keys = [column for column in self.columns if column.is_key and column.name not in reserved]
        return tuple(keys[:_MAX_KEYS])

    @property
    def labels(self) -> tuple[Column, ...]:
        """The columns that hold labels."""
        return tuple(column for column in self.columns if column.labels)

    @property
    def image(self) -> Column | None:
        """The first column that looks like images, as bytes or paths."""
        return _media(self.columns, _IMAGE_NAME)

    @property
    def audio(self) -> Column | None:
        """The first column that looks like recordings, as bytes or paths."""
        return _media(self.columns, _AUDIO_NAME)


def _likelihood(column: Column) -> float:
    by_name = _PREFERENCE if _TEXT_NAME.fullmatch(column.name) else 1.0
    return column.mean_length * by_name


def _media(columns: Sequence[Column], names: re.Pattern[str]) -> Column | None:
    media = (column for column in columns if column.is_binary or column.is_text)
    return next((column for column in media if names.fullmatch(column.name)), None)


def survey(path: str) -> Survey:
    """Read all footers of an input and its first rows. Raises `UserError`."""
    listing = list_input(path, None)
    footers = read_shared_columns(listing)
    if not footers.schema.names:
        raise UserError(
            f"{listing.store.url}: its shards have no column in common; choose one file"
        )
    filled = [shard for shard in footers.shards if _num_rows(shard)]
    sample, labels = None, {}
    if filled:
        sample = _first_rows(listing.store, filled[0], footers.schema, _MAX_ROWS)
        short = [field for field in footers.schema if _is_short(field, sample)]
        rows = _first_rows(listing.store, filled[0], pa.schema(short), _MAX_LABEL_ROWS)
        labels = {field.name: _labels(rows.column(field.name)) for field in short}
    return Survey(
        path=path,
        root=listing.store.url,
        recursive=listing.recursive,
        rows=sum(map(_num_rows, footers.shards)),
        shards=len(filled),
        bad_shards=len(footers.bad),
        columns=tuple(
            _column(field, sample, labels.get(field.name, ())) for field in footers.schema
        ),
    )


def _num_rows(shard: Shard) -> int:
    return sum(group.num_rows for group in shard.row_groups)


def _is_short(field: pa.Field, sample: pa.Table) -> bool:
    """Whether the column holds short texts, some of which recur."""
    if field.type not in (pa.string(), pa.large_string()):
        return False
    texts = sample.column(field.name).drop_null()
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    return 0 < longest <= _MAX_LABEL_CHARACTERS and len(texts.unique()) < len(texts)


def _labels(column: pa.ChunkedArray) -> Sequence[str]:
    """The column's values, the most frequent first, if there are few; otherwise none."""
    counts = {item["values"]: item["counts"] for item in _value_counts(column)}
    is_few = 1 < len(counts) <= _MAX_LABELS and sum(counts.values()) >= 2 * len(counts)
    fits = all(value.strip() and len(value) <= _MAX_LABEL_CHARACTERS for value in counts)
    return sorted(counts, key=lambda value: -counts[value]) if is_few and fits else ()


def _value_counts(column: pa.ChunkedArray) -> list[dict[str, Any]]:
    try:
        return list(pc.value_counts(column.drop_null()).to_pylist())
    except UnicodeDecodeError:
        return []


def _first_rows(store: Store, shard: Shard, schema: pa.Schema, max_rows: int) -> pa.Table:
    rows = min(_num_rows(shard), max_rows)
    unit = Unit(shard.path, shard.size, shard.version, 0, rows, 0)
    return Source(store, schema, None).read(unit)


def _column(field: pa.Field, sample: pa.Table | None, labels: Sequence[str]) -> Column:
    values: list[Any] = []
    if sample is not None:
        try:
            values = sample.column(field.name).drop_null().to_pylist()
        except (ValueError, OverflowError):
            # Text that is not UTF-8, or dates outside of the calendar: a run rejects such rows.
            values = []
    return Column(field.name, field.type, values, labels)
