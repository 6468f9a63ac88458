"""Writes rows as a dataset for `datasets`, a Delta Lake table or an Iceberg table.

Each format's own library writes the rows, batch by batch. A type that a format lacks is widened if
that loses nothing; otherwise the export ends with an error.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.errors import TokenmillError, UserError
from tokenmill.storage.base import name_taken
from tokenmill.storage.local import TEMPORARY_PREFIX
from tokenmill.storage.open import disk_path, file_url, is_remote, open_store

Batches = Iterator[pa.RecordBatch]
#: A type that is not nested, as a format stores it. Raises `TypeError` if it cannot.
TypeConversion = Callable[[pa.DataType], pa.DataType]
# Several files, so that readers can share a dataset; of this size, so that each read is long.
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
# Readers without a catalog find the current metadata by this file.
_VERSION_HINT = "metadata/version-hint.text"


def write_dataset(
    batches: Batches, schema: pa.Schema, target: str, *, file_bytes: int = _FILE_BYTES
) -> None:
    """Write a folder of Parquet files that `datasets.load_dataset` reads.

    A new file is begun once one holds `file_bytes`. Raises `UserError`.
    """
    stream = _Stream(batches, schema, _for_datasets)
    with _new_folder(target, "hf-dataset") as folder, stream.own_errors():
        Path(folder, "data").mkdir()
        remaining, number = iter(stream), 0
        while True:
            path = Path(folder, "data", f"train-{number:05d}.parquet")
            if not _write_file(remaining, stream.schema, path, file_bytes):
                break
            number += 1
        Path(folder, "README.md").write_text(_CARD, encoding="utf-8")


def _write_file(batches: Batches, schema: pa.Schema, path: Path, file_bytes: int) -> bool:
    """Write batches until the file holds `file_bytes`; False if there were no more batches."""
    with path.open("xb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            if file.tell() >= file_bytes:
                return True
    return False


def write_delta(batches: Batches, schema: pa.Schema, target: str) -> None:
    """Write a Delta Lake table to a new folder or S3 prefix. Raises `UserError`."""
    with _require_extra("delta"):
        import deltalake  # noqa: PLC0415 - optional

    stream = _Stream(batches, schema, _for_delta)
    configuration = _delta_properties(stream.schema)
    if not is_remote(target):
        # A Delta table holds relative paths, so it can be written elsewhere and renamed.
        with _new_folder(target, "delta") as folder, stream.own_errors():
            deltalake.write_deltalake(folder, stream.reader(), configuration=configuration)
        return
    options = {} if _endpoint() is None else {"AWS_ENDPOINT_URL": _endpoint()}
    if str(options.get("AWS_ENDPOINT_URL")).startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    with _new_prefix(target), stream.own_errors():
        deltalake.write_deltalake(
            target, stream.reader(), storage_options=options, configuration=configuration
        )


def write_iceberg(batches: Batches, schema: pa.Schema, target: str) -> None:
    """Write an Iceberg table to a new folder or S3 prefix. Any catalog can register it.

    Raises `UserError`.
    """
    with _require_extra("iceberg"):
        from pyiceberg.catalog.memory import InMemoryCatalog  # noqa: PLC0415 - optional

    stream = _Stream(batches, schema, _for_iceberg)
    options: dict[str, Any] = {"py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}
    if is_remote(target):
        location, place = target.rstrip("/"), _new_prefix(target)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        named = {"s3.endpoint": _endpoint(), "s3.region": region}
        options |= {name: value for name, value in named.items() if value is not None}
    else:
        # An Iceberg table holds absolute paths, so it is written in its final folder.
        target = os.path.abspath(os.path.expanduser(disk_path(target)))
        location, place = file_url(target), _created_folder(target)
    with place, stream.own_errors():
        # The library needs a catalog; this one exists only while the table is written.
        catalog = InMemoryCatalog("tokenmill", warehouse=location, **options)
        catalog.create_namespace("tokenmill")
        properties = _iceberg_properties(stream.schema)
        table = catalog.create_table(
            "tokenmill.rows", stream.schema, location=location, properties=properties
        )
        table.append(stream.reader())
        version = os.path.basename(table.metadata_location).removesuffix(".metadata.json")
        open_store(target).replace(_VERSION_HINT, version.encode())


def _delta_properties(schema: pa.Schema) -> dict[str, str] | None:
    """Leave dates out of the statistics: those after the year 262,142 would end the export."""
    names = [field.name for field in schema if not _has_leaf(field.type, pa.types.is_date)]
    if len(names) == len(schema):
        return None
    quoted = [f"`{name.replace('`', '``')}`" for name in names]
    return {"delta.dataSkippingStatsColumns": ",".join(quoted)}


def _iceberg_properties(schema: pa.Schema) -> dict[str, str]:
    """Leave out the bounds of what Python may not hold: far dates, text that is not UTF-8."""
    return {
        f"write.metadata.metrics.column.{field.name}": "counts"
        for field in schema
        if any(map(partial(_has_leaf, field.type), (pa.types.is_temporal, pa.types.is_string)))
    }


def _has_leaf(type_: pa.DataType, is_of: Callable[[pa.DataType], bool]) -> bool:
    if not type_.num_fields:
        return is_of(type_)
    return any(_has_leaf(type_.field(index).type, is_of) for index in range(type_.num_fields))


class _Stream:
    """Batches in a format's types. Keeps the error that ended them.

    A library that reads batches through Arrow's C interface passes on only an error's text.
    """

    def __init__(self, batches: Batches, schema: pa.Schema, convert: TypeConversion) -> None:
        fields = [_converted_field(field, convert) for field in schema]
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
        """The batches as a library takes them."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raise the error that ended the batches, instead of what a library made of it."""
        try:
            yield
        finally:
            if self._error is not None:
                raise self._error

    def _cast(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = []
        for column, field in zip(batch.columns, self.schema, strict=True):
            try:
                columns.append(_cast_column(column, field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UserError(f"column {field.name}: {error}; export to parquet") from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _cast_column(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if isinstance(column.type, pa.UuidType) and pa.types.is_string(type_):
        # Arrow casts a UUID to its bytes only.
        return pa.array([cell and str(cell) for cell in column.to_pylist()], type_)
    return column.cast(type_)


def _converted_field(field: pa.Field, convert: TypeConversion) -> pa.Field:
    try:
        return field.with_type(_converted(field.type, convert))
    except TypeError as error:
        raise UserError(
            f"column {field.name}: the format has no type for {error}; export to parquet, or "
            "leave the column out of input.keep"
        ) from error


def _converted(type_: pa.DataType, convert: TypeConversion) -> pa.DataType:
    """The type with its innermost types converted."""
    if pa.types.is_dictionary(type_):
        return _converted(type_.value_type, convert)
    if isinstance(type_, pa.BaseExtensionType) and not isinstance(type_, pa.UuidType):
        return _converted(type_.storage_type, convert)
    if pa.types.is_string_view(type_) or pa.types.is_large_string(type_):
        return pa.string()
    if pa.types.is_binary_view(type_) or pa.types.is_large_binary(type_):
        return pa.binary()
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_converted(field.type, convert)) for field in type_])
    if pa.types.is_map(type_):
        key, value = (_converted(part, convert) for part in (type_.key_type, type_.item_type))
        return convert(pa.map_(key, value))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_converted(type_.value_type, convert), type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(_converted(type_.value_type, convert))
    return convert(type_)


def _for_datasets(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_map(type_):
        # `datasets` has no maps.
        pair = [pa.field("key", type_.key_type), pa.field("value", type_.item_type)]
        return pa.list_(pa.struct(pair))
    return type_


# Types that both table formats lack, with types that hold all their values.
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
        # A cast that would lose nanoseconds fails, and its error names the value.
        return pa.timestamp("us", None if type_.tz is None else "UTC")
    is_wide = pa.types.is_decimal256(type_)
    if is_wide or pa.types.is_duration(type_) or pa.types.is_interval(type_):
        raise TypeError(type_)
    return _WIDER.get(type_, type_)


def _for_delta(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_time(type_):
        raise TypeError(type_)
    return pa.string() if isinstance(type_, pa.UuidType) else _for_tables(type_)


def _for_iceberg(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_time(type_):
        return pa.time64("us")
    if pa.types.is_null(type_):
        raise TypeError(type_)
    return _for_tables(type_)


@contextmanager
def _new_folder(target: str, format_: str) -> Iterator[str]:
    """A temporary folder that is renamed to the target at the end, and removed after an error."""
    if is_remote(target):
        raise UserError(
            f"--to {format_}: cannot be written to {target}; export to a local folder and copy it"
        )
    target = os.path.abspath(os.path.expanduser(disk_path(target)))
    _require_absent(target)
    temporary = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    with _created_folder(temporary):
        yield temporary
        _require_absent(target)
        os.rename(temporary, target)


@contextmanager
def _created_folder(folder: str) -> Iterator[None]:
    """Create a folder, and remove it after an error."""
    _require_absent(folder)
    try:
        os.mkdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; use another path") from error
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _require_absent(target: str) -> None:
    if os.path.lexists(target):
        raise name_taken(target)


@contextmanager
def _new_prefix(target: str) -> Iterator[None]:
    """Require an empty prefix in S3. After an error, report the files that are left in it."""
    store = open_store(target)
    if next(iter(store.list()), None) is not None:
        raise name_taken(store.url)
    try:
        yield
    except Exception as error:
        num_files = sum(1 for _ in store.list())
        if not num_files:
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{reason}; remove the {num_files:,} files of the incomplete table at {store.url}"
        ) from error


def _endpoint() -> str | None:
    """The endpoint of S3; the libraries take it by names of their own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@contextmanager
def _require_extra(format_: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--to {format_} needs {error.name}; run: pip install 'tokenmill[export]'"
        ) from error
