"""Prove, from an output's objects alone, that every input row has exactly one output row.

Nothing is taken from a driver's memory: the plan says what must be there, the objects what is.
The result is a certificate that anyone can recompute with a Parquet reader and SHA-256.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenmill import __version__
from tokenmill.errors import RunFailed, TokenmillError, UserError
from tokenmill.input.reader import Source
from tokenmill.output.output import Opened, missing_units
from tokenmill.output.record import UnitRecord, body_sha256, record_from
from tokenmill.output.schema import added_fields, output_schema
from tokenmill.output.totals import Totals, totals_of
from tokenmill.plan.keys import UNIT_KEY
from tokenmill.plan.plan import Plan, Unit
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.storage.base import Store

# Reading footers is waiting for the store; whole objects are held in memory.
_FOOTER_THREADS = 32
_OBJECT_THREADS = 4
# What Arrow and a record that is none raise for bytes that are not ours.
_UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)


class Level(IntEnum):
    """How deep a proof goes; each level holds those above it."""

    LISTING = 0
    FOOTERS = 1
    ROWS = 2
    INPUT = 3


class Damage(StrEnum):
    """What can be wrong with an output. Stable names: scripts look for them."""

    MISSING = "missing"
    FOREIGN = "foreign"
    UNREADABLE = "unreadable"
    OTHER_UNIT = "other_unit"
    OTHER_JOB = "other_job"
    OTHER_INPUT = "other_input"
    SCHEMA = "schema"
    COUNTS = "counts"
    CHECKSUM = "checksum"
    ROW_ORDER = "row_order"
    ROW_ERROR = "row_error"
    KEPT_COLUMNS = "kept_columns"
    INPUT_UNREADABLE = "input_unreadable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, with which object, and in words."""

    damage: Damage
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was proved of an output, to which level, and what was found wrong with it.

    `units` maps each committed unit's key to its rows, rejects and body checksum, as its footer
    says and, from `Level.ROWS` on, as its bytes are.
    """

    tokenmill: str
    output: str
    input: str
    fingerprint: str
    level: Level
    totals: Totals
    units: dict[str, dict[str, object]]
    findings: tuple[Finding, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def to_json(self) -> str:
        data = {**asdict(self), "level": self.level.name.lower(), "is_whole": self.is_whole}
        return json.dumps(data, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class Expected:
    """What an output must hold: its plan, its columns, and what it was made of."""

    plan: Plan
    schema: pa.Schema
    kept: Sequence[str]
    source: Source


def expected_of(opened: Opened) -> Expected:
    """What the output of a job must hold."""
    schema = output_schema(opened.kept_schema, added_fields(opened.job))
    return Expected(opened.plan, schema, opened.job.input.keep, opened.source)


def verify(store: Store, expected: Expected, level: Level) -> Certificate:
    """Hold an output's objects against its plan, to a level."""
    plan = expected.plan
    found = {item.key for item in store.list("data")}
    findings = list(_check_listing(found, plan))
    present = [unit for unit in plan.units if unit.key in found]
    records: dict[str, UnitRecord] = {}
    if level >= Level.FOOTERS:
        check = _check_footer if level == Level.FOOTERS else _check_object
        threads = _FOOTER_THREADS if level == Level.FOOTERS else _OBJECT_THREADS
        for unit, (record, wrong) in zip(
            present,
            _each(present, lambda unit: check(store, expected, unit, level), threads),
            strict=True,
        ):
            findings += wrong
            if record is not None:
                records[unit.key] = record
    return Certificate(
        tokenmill=__version__,
        output=store.url,
        input=plan.input_url,
        fingerprint=plan.fingerprint,
        level=level,
        totals=totals_of(list(records.values())),
        units={key: _proof(record) for key, record in records.items()},
        findings=tuple(findings),
    )


def require_whole(certificate: Certificate) -> Totals:
    """The totals of an output that is whole.

    Raises for the first thing that is wrong with it: `RunFailed` for a unit that is missing, which
    another run would add, `UserError` otherwise.
    """
    if certificate.is_whole:
        return certificate.totals
    missing = [item.key for item in certificate.findings if item.damage == Damage.MISSING]
    if len(missing) == len(certificate.findings):
        raise RunFailed(
            f"{certificate.output}: {len(missing):,} units are missing, first {missing[0]}; "
            "run the command again"
        )
    first = next(item for item in certificate.findings if item.damage != Damage.MISSING)
    more = f" (and {len(certificate.findings) - 1:,} more)" if certificate.findings[1:] else ""
    raise UserError(
        f"{certificate.output}/{first.key}: {first.message}{more}; remove it and run again, or use "
        "another output"
    )


Checked = tuple[UnitRecord | None, list[Finding]]


def _each(
    units: Sequence[Unit], check: Callable[[Unit], Checked], threads: int
) -> Iterator[Checked]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(check, units)


def _proof(record: UnitRecord) -> dict[str, object]:
    return {
        "num_rows": record.num_rows,
        "num_filtered": record.num_filtered,
        "rejects": dict(record.rejects),
        "body_sha256": record.body_sha256,
    }


def _check_listing(found: set[str], plan: Plan) -> Iterator[Finding]:
    for unit in missing_units(plan, found):
        yield Finding(Damage.MISSING, unit.key, "the unit is not committed")
    for key in sorted(found - {unit.key for unit in plan.units}):
        what = "a unit of another plan" if UNIT_KEY.fullmatch(key) else "not written by tokenmill"
        yield Finding(Damage.FOREIGN, key, what)


def _check_footer(store: Store, expected: Expected, unit: Unit, _level: Level) -> Checked:
    try:
        with store.open(unit.key) as file:
            metadata = pq.read_metadata(file)
        record = record_from(metadata)
    except FileNotFoundError:
        return None, [Finding(Damage.MISSING, unit.key, "the object is gone")]
    except _UNREADABLE as error:
        return None, [_unreadable(unit, error)]
    return record, list(_check_record(expected, unit, metadata, record))


def _unreadable(unit: Unit, error: Exception) -> Finding:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Finding(Damage.UNREADABLE, unit.key, f"no whole object of tokenmill: {reason}")


def _check_record(
    expected: Expected, unit: Unit, metadata: pq.FileMetaData, record: UnitRecord
) -> Iterator[Finding]:
    plan = expected.plan
    if record.unit != unit.key:
        yield Finding(Damage.OTHER_UNIT, unit.key, f"its footer names the unit {record.unit}")
    if record.fingerprint != plan.fingerprint:
        yield Finding(Damage.OTHER_JOB, unit.key, "its footer names another job")
    if record.shard_version != unit.version:
        yield Finding(Damage.OTHER_INPUT, unit.key, "it was made of another version of its shard")
    schema = metadata.schema.to_arrow_schema()
    if not schema.equals(expected.schema):
        yield Finding(Damage.SCHEMA, unit.key, f"its columns are {_named(schema)}")
    accounted = record.num_rows + record.num_filtered
    if metadata.num_rows != record.num_rows or accounted != unit.num_rows:
        yield Finding(
            Damage.COUNTS,
            unit.key,
            f"it holds {metadata.num_rows:,} rows; its record says {record.num_rows:,} and "
            f"{record.num_filtered:,} filtered out; the plan says {unit.num_rows:,}",
        )


def _named(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _check_object(store: Store, expected: Expected, unit: Unit, level: Level) -> Checked:
    try:
        data = store.read(unit.key)
        metadata = pq.read_metadata(io.BytesIO(data))
        record = record_from(metadata)
    except FileNotFoundError:
        return None, [Finding(Damage.MISSING, unit.key, "the object is gone")]
    except _UNREADABLE as error:
        return None, [_unreadable(unit, error)]
    findings = list(_check_record(expected, unit, metadata, record))
    if body_sha256(data) != record.body_sha256:
        message = "its bytes are not those whose checksum it bears"
        return record, [*findings, Finding(Damage.CHECKSUM, unit.key, message)]
    if any(finding.damage == Damage.SCHEMA for finding in findings):
        return record, findings
    try:
        rows = pq.read_table(io.BytesIO(data))
    except _UNREADABLE as error:
        return record, [*findings, _unreadable(unit, error)]
    findings += _check_rows(unit, record, rows)
    if level >= Level.INPUT:
        findings += _check_input(expected, unit, rows)
    return record, findings


def _check_rows(unit: Unit, record: UnitRecord, rows: pa.Table) -> Iterator[Finding]:
    positions = rows.column("source_row").to_pylist()
    inside = all(unit.first_row <= position < unit.end_row for position in positions)
    rising = all(one < other for one, other in pairwise(positions))
    if not (inside and rising) or len(positions) + record.num_filtered != unit.num_rows:
        yield Finding(
            Damage.ROW_ORDER,
            unit.key,
            f"its rows are not {unit.first_row:,} to {unit.end_row - 1:,}, each once and in order",
        )
    if set(rows.column("source_file").to_pylist()) - {unit.shard}:
        yield Finding(Damage.ROW_ORDER, unit.key, f"its rows are not all of {unit.shard}")
    classes = pc.struct_field(rows.column("error"), "class").drop_null()
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(classes).to_pylist()}
    if counts != dict(record.rejects):
        yield Finding(
            Damage.ROW_ERROR,
            unit.key,
            f"its rejects are {counts}; its record says {record.rejects}",
        )


def _check_input(expected: Expected, unit: Unit, rows: pa.Table) -> Iterator[Finding]:
    try:
        wanted = expected.source.read(unit)
    except TokenmillError as error:
        yield Finding(Damage.INPUT_UNREADABLE, unit.key, str(error))
        return
    if wanted.column(ROW_COLUMN).to_pylist() != rows.column("source_row").to_pylist():
        yield Finding(Damage.ROW_ORDER, unit.key, "its rows are not those of the input")
        return
    for name in expected.kept:
        if not _same_values(wanted.column(name), rows.column(name)):
            yield Finding(Damage.KEPT_COLUMNS, unit.key, f"the column {name} is not the input's")


def _same_values(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Equal, and NaN to NaN, which Arrow calls different."""
    if one.type != other.type:
        return False
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
