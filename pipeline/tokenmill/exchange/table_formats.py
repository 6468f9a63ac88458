"""Rows as a table of another format: for `datasets`, Delta Lake, Iceberg.

Each is written by its own library, batch by batch. What a format has no type for is widened where
that loses nothing, and refused otherwise.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import TokenmillError, UserError
from tokenmill.storage.base import name_taken
from tokenmill.storage.local import TEMPORARY_PREFIX
from tokenmill.storage.open import disk_path, file_url, is_remote, open_store

Batches = Iterator[pa.RecordBatch]
# Of a dataset's files; readers share them out.
_FILE_BYTES = 2**29
_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

Made by tokenmill. `datasets.load_dataset` reads this folder.
"""
# Without which a reader that has no catalog must be told the metadata's file.
_VERSION_HINT = "metadata/version-hint.text"


def write_dataset(batches: Batches, schema: pa.Schema, target: str) -> None:
    """A folder of Parquet files that `datasets.load_dataset` reads. Raises `UserError`."""
    stream = _Stream(batches, schema, _for_datasets)
    with _new_folder(target, "hf-dataset") as folder, stream.own_errors():
        Path(folder, "data").mkdir()
        left, number = iter(stream), 0
        while True:
            path = Path(folder, "data", f"train-{number:05d}.parquet")
            if not _write_file(left, stream.schema, path):
                break
            number += 1
        Path(folder, "README.md").write_text(_CARD, encoding="utf-8")


def _write_file(batches: Batches, schema: pa.Schema, path: Path) -> bool:
    """One file of as many batches as it should hold: whether there may be more."""
    with path.open("xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            if file.tell() >= _FILE_BYTES:
                return True
    return False


def write_delta(batches: Batches, schema: pa.Schema, target: str) -> None:
    """A Delta Lake table in a new folder or S3 prefix. Raises `UserError`."""
    with _extra("delta"):
        import deltalake  # noqa: PLC0415 - comes with an extra

    stream = _Stream(batches, schema, _for_delta)
    if not is_remote(target):
        # A table names its files relative to itself, so that it can be moved into its place.
        with _new_folder(target, "delta") as folder, stream.own_errors():
            deltalake.write_deltalake(folder, stream.reader())
        return
    options = {} if _endpoint() is None else {"AWS_ENDPOINT_URL": _endpoint()}
    if str(options.get("AWS_ENDPOINT_URL")).startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    with _new_prefix(target), stream.own_errors():
        deltalake.write_deltalake(target, stream.reader(), storage_options=options)


def write_iceberg(batches: Batches, schema: pa.Schema, target: str) -> None:
    """An Iceberg table in a new folder or S3 prefix, ready for any catalog. Raises `UserError`."""
    with _extra("iceberg"):
        from pyiceberg.catalog.memory import InMemoryCatalog  # noqa: PLC0415 - an extra's

    stream = _Stream(batches, schema, _for_iceberg)
    options: dict[str, Any] = {"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}
    if is_remote(target):
        location, place = target.rstrip("/"), _new_prefix(target)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        named = {"s3.endpoint": _endpoint(), "s3.region": region}
        options |= {name: value for name, value in named.items() if value is not None}
    else:
        # An Iceberg table names its files by their whole paths: it is written where it stays.
        target = os.path.abspath(os.path.expanduser(disk_path(target)))
        location, place = file_url(target), _own_folder(target)
    with place, stream.own_errors():
        # It is this table's catalog while it is written, and gone afterwards.
        catalog = InMemoryCatalog("tokenmill", warehouse=location, **options)
        catalog.create_namespace("tokenmill")
        table = catalog.create_table("tokenmill.rows", stream.schema, location=location)
        table.append(stream.reader())
        version = os.path.basename(table.metadata_location).removesuffix(".metadata.json")
        open_store(target).replace(_VERSION_HINT, version.encode())


class _Stream:
    """Batches in the types of a format, and the error of ours that ended them, if one did.

    A library that reads them through Arrow's C interface gives back but the error's text.
    """

    def __init__(
        self, batches: Batches, schema: pa.Schema, stored: Callable[[pa.DataType], pa.DataType]
    ) -> None:
        fields = [_stored_field(field, stored) for field in schema]
        self.schema = pa.schema(fields)
        self._batches = batches
        self._error: TokenmillError | None = None

    def __iter__(self) -> Batches:
        try:
            for batch in self._batches:
                yield self._cast(batch)
        except TokenmillError as error:
            self._error = error
            raise

    def reader(self) -> pa.RecordBatchReader:
        """The batches for a library."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Let an error of ours through as it was raised, whatever a library made of it."""
        try:
            yield
        finally:
            if self._error is not None:
                raise self._error

    def _cast(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = []
        for column, field in zip(batch.columns, self.schema, strict=True):
            try:
                columns.append(column.cast(field.type))
            except pa.ArrowInvalid as error:
                raise UserError(f"the column {field.name}: {error}; export to parquet") from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _stored_field(field: pa.Field, stored: Callable[[pa.DataType], pa.DataType]) -> pa.Field:
    try:
        return field.with_type(_within(field.type, stored))
    except TypeError as error:
        raise UserError(
            f"the column {field.name}: the form has no type for {error}; export to parquet, or "
            "leave the column out of input.keep"
        ) from error


def _within(type_: pa.DataType, stored: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with those inside of it as the format stores them."""
    if pa.types.is_dictionary(type_):
        return _within(type_.value_type, stored)
    if pa.types.is_string_view(type_) or pa.types.is_large_string(type_):
        return pa.string()
    if pa.types.is_binary_view(type_) or pa.types.is_large_binary(type_):
        return pa.binary()
    if pa.types.is_struct(type_):
        return pa.struct([each.with_type(_within(each.type, stored)) for each in type_])
    if pa.types.is_map(type_):
        key, value = (_within(each, stored) for each in (type_.key_type, type_.item_type))
        return stored(pa.map_(key, value))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_within(type_.value_type, stored), type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(_within(type_.value_type, stored))
    return stored(type_)


def _for_datasets(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_map(type_):
        # It knows no maps.
        pair = [pa.field("key", type_.key_type), pa.field("value", type_.item_type)]
        return pa.list_(pa.struct(pair))
    return type_


# Neither table format has these; the wider ones hold every value.
_WIDER: Mapping[pa.DataType, pa.DataType] = {
    pa.float16(): pa.float32(),
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.date64(): pa.date32(),
}


def _for_tables(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        # A cast that would lose nanoseconds fails, and names the value.
        return pa.timestamp("us", type_.tz)
    is_wide = pa.types.is_decimal256(type_)
    if is_wide or pa.types.is_duration(type_) or pa.types.is_interval(type_):
        raise TypeError(type_)
    return _WIDER.get(type_, type_)


def _for_delta(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_time(type_):
        raise TypeError(type_)
    return _for_tables(type_)


def _for_iceberg(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_time(type_):
        return pa.time64("us")
    if pa.types.is_null(type_):
        raise TypeError(type_)
    return _for_tables(type_)


@contextmanager
def _new_folder(target: str, form: str) -> Iterator[str]:
    """A folder beside the target that takes its name at the end, and is gone after an error."""
    if is_remote(target):
        raise UserError(f"--to {form}: {target} would be made file by file; export to a folder")
    target = os.path.abspath(os.path.expanduser(disk_path(target)))
    _refuse_taken(target)
    beside = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with _own_folder(beside):
        yield beside
        _refuse_taken(target)
        os.rename(beside, target)


@contextmanager
def _own_folder(folder: str) -> Iterator[None]:
    """A new folder, which an error takes away again."""
    _refuse_taken(folder)
    try:
        os.mkdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; use another path") from error
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse_taken(target: str) -> None:
    if os.path.lexists(target):
        raise name_taken(target)


@contextmanager
def _new_prefix(target: str) -> Iterator[None]:
    """An empty prefix in S3; after an error what is left in it is told of."""
    store = open_store(target)
    if next(iter(store.list()), None) is not None:
        raise name_taken(store.url)
    try:
        yield
    except Exception as error:
        left = sum(1 for _ in store.list())
        if not left:
            raise
        raise UserError(
            f"{' '.join(str(error).split())}; {left:,} files of no table are left at {store.url}, "
            "remove them"
        ) from error


def _endpoint() -> str | None:
    """Where S3 is; the libraries have names of their own for it."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@contextmanager
def _extra(form: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--to {form} needs {error.name}: pip install 'tokenmill[export]'"
        ) from error
