"""Prove, from an output's objects alone, that every input row has exactly one output row.

The check uses no state of a driver: the plan says what must exist, and the objects show what does.
Anyone with a Parquet reader and SHA-256 can recompute the resulting certificate.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill import __version__
from tokenmill.errors import RunFailed, TokenmillError, UserError
from tokenmill.formatting import plural
from tokenmill.input.reader import Source
from tokenmill.output.commit import count_rejects
from tokenmill.output.counts import Counts, sum_counts
from tokenmill.output.output import OpenedOutput, missing_units
from tokenmill.output.record import UnitRecord, body_sha256, record_from
from tokenmill.output.schema import output_schema
from tokenmill.plan.keys import UNIT_KEY, is_stray
from tokenmill.plan.plan import Plan, Unit
from tokenmill.row_columns import ROW_COLUMN, SOURCE_FILE, SOURCE_ROW
from tokenmill.storage.base import Store

# Reading footers is mostly waiting for the store; whole objects are held in memory.
_FOOTER_THREADS = 32
_OBJECT_THREADS = 4
# What Arrow and `record_from` raise for bytes that are not an object of ours.
_UNREADABLE = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)


class Level(IntEnum):
    """How thorough a check is. Each level includes the ones before it."""

    LISTING = 0
    FOOTERS = 1
    ROWS = 2
    INPUT = 3


class Damage(StrEnum):
    """What can be wrong with an output. The names are stable, because scripts match them."""

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

    @property
    def remedy(self) -> str:
        """What the user can do about it; empty if the error's message already says so.

        A run does nothing for an output that has `_SUCCESS`, even if a unit is missing.
        """
        match self:
            case Damage.MISSING:
                return "delete _SUCCESS if it exists, then run the job again"
            case Damage.FOREIGN:
                return "move it out of data/, or use another output"
            case Damage.INPUT_UNREADABLE:
                return ""
            case _:
                return "delete it, and _SUCCESS if it exists, then run the job again"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of an output: its kind, the object's key, and what is wrong in words."""

    damage: Damage
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of a check: its level, what the output holds, and the findings.

    `units` maps each committed unit's key to its rows, rejects and body checksum. They are what its
    footer says; from `Level.ROWS` on they have also been compared with its bytes. `ignored` are the
    keys of files that other programs added and that readers skip.
    """

    tokenmill: str
    output: str
    input: str
    fingerprint: str
    level: Level
    totals: Counts
    units: dict[str, dict[str, object]]
    findings: tuple[Finding, ...]
    ignored: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def to_json(self) -> str:
        data = {**asdict(self), "level": self.level.name.lower(), "is_whole": self.is_whole}
        return json.dumps(data, indent=2) + "\n"


@dataclass(frozen=True, slots=True)
class ExpectedOutput:
    """What an output must hold: its plan, its columns, and the input it was made from."""

    plan: Plan
    schema: pa.Schema
    kept: Sequence[str]
    source: Source


def expected_output(opened: OpenedOutput) -> ExpectedOutput:
    """What the output of a job must hold."""
    kept = opened.kept_schema
    return ExpectedOutput(opened.plan, output_schema(opened.job, kept), kept.names, opened.source)


def verify(store: Store, expected: ExpectedOutput, level: Level) -> Certificate:
    """Compare an output's objects with its plan, as thoroughly as `level` says."""
    plan = expected.plan
    listed = [item.key for item in store.list("data")]
    ignored = tuple(filter(is_stray, listed))
    keys = set(listed).difference(ignored)
    findings = list(_check_listing(keys, plan))
    present = [unit for unit in plan.units if unit.key in keys]
    records: dict[str, UnitRecord] = {}
    if level >= Level.FOOTERS:
        check = _check_footer if level == Level.FOOTERS else _check_object
        threads = _FOOTER_THREADS if level == Level.FOOTERS else _OBJECT_THREADS
        for unit, (record, problems) in zip(
            present,
            _check_all(present, lambda unit: check(store, expected, unit, level), threads),
            strict=True,
        ):
            findings += problems
            if record is not None:
                records[unit.key] = record
    return Certificate(
        tokenmill=__version__,
        output=store.url,
        input=plan.input_url,
        fingerprint=plan.fingerprint,
        level=level,
        totals=sum_counts(record.counts for record in records.values()),
        units={key: _proof(record) for key, record in records.items()},
        findings=tuple(findings),
        ignored=ignored,
    )


def require_whole(certificate: Certificate) -> Counts:
    """The totals of an output without findings.

    Otherwise raises for the first finding: `RunFailed` if units are missing, which another run
    would add, and `UserError` for anything else.
    """
    if certificate.is_whole:
        return certificate.totals
    missing = [item.key for item in certificate.findings if item.damage == Damage.MISSING]
    if len(missing) == len(certificate.findings):
        verb = "is" if len(missing) == 1 else "are"
        raise RunFailed(
            f"{certificate.output}: {plural(len(missing), 'unit')} {verb} missing, first "
            f"{missing[0]}; {Damage.MISSING.remedy}"
        )
    first = next(item for item in certificate.findings if item.damage != Damage.MISSING)
    others = len(certificate.findings) - 1
    more = f" ({plural(others, 'more problem')}: tokenmill verify lists them)" if others else ""
    raise UserError(f"{certificate.output}/{first.key}: {first.message}{more}")


_Checked = tuple[UnitRecord | None, list[Finding]]


def _check_all(
    units: Sequence[Unit], check: Callable[[Unit], _Checked], threads: int
) -> Iterator[_Checked]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(check, units)


def _proof(record: UnitRecord) -> dict[str, object]:
    return {
        "num_rows": record.num_rows,
        "num_filtered": record.num_filtered,
        "rejects": dict(record.rejects),
        "body_sha256": record.body_sha256,
    }


def _finding(damage: Damage, key: str, problem: str) -> Finding:
    return Finding(damage, key, f"{problem}; {damage.remedy}" if damage.remedy else problem)


def _check_listing(keys: set[str], plan: Plan) -> Iterator[Finding]:
    for unit in missing_units(plan, keys):
        yield _finding(Damage.MISSING, unit.key, "the unit is not committed")
    for key in sorted(keys - {unit.key for unit in plan.units}):
        is_unit = UNIT_KEY.fullmatch(key) is not None
        problem = "belongs to another plan" if is_unit else "was not written by tokenmill"
        yield _finding(Damage.FOREIGN, key, problem)


def _check_footer(store: Store, expected: ExpectedOutput, unit: Unit, _level: Level) -> _Checked:
    try:
        with store.open(unit.key) as file:
            metadata = pq.read_metadata(file)
        record = record_from(metadata)
    except FileNotFoundError:
        return None, [_deleted(unit)]
    except _UNREADABLE as error:
        return None, [_unreadable(unit, error)]
    return record, list(_check_record(expected, unit, metadata, record))


def _deleted(unit: Unit) -> Finding:
    return _finding(Damage.MISSING, unit.key, "the object was deleted during the check")


def _unreadable(unit: Unit, error: Exception) -> Finding:
    reason = " ".join(str(error).split()) or type(error).__name__
    problem = f"the object is damaged or was not written by tokenmill ({reason})"
    return _finding(Damage.UNREADABLE, unit.key, problem)


def _check_record(
    expected: ExpectedOutput, unit: Unit, metadata: pq.FileMetaData, record: UnitRecord
) -> Iterator[Finding]:
    plan = expected.plan
    if record.unit != unit.key:
        problem = f"the object was written as unit {record.unit}"
        yield _finding(Damage.OTHER_UNIT, unit.key, problem)
    if record.fingerprint != plan.fingerprint:
        yield _finding(Damage.OTHER_JOB, unit.key, "the object was written by another job")
    if record.shard_version != unit.version:
        problem = f"the object was made from another version of {unit.shard}"
        yield _finding(Damage.OTHER_INPUT, unit.key, problem)
    schema = metadata.schema.to_arrow_schema()
    if not schema.equals(expected.schema):
        problem = f"the columns are {_described(schema)}, not {_described(expected.schema)}"
        yield _finding(Damage.SCHEMA, unit.key, problem)
    if metadata.num_rows != record.num_rows or record.counts.input_rows != unit.num_rows:
        problem = (
            f"the object holds {metadata.num_rows:,} rows, its record says {record.num_rows:,} and "
            f"{record.num_filtered:,} filtered out, and the unit has {unit.num_rows:,}"
        )
        yield _finding(Damage.COUNTS, unit.key, problem)


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _check_object(store: Store, expected: ExpectedOutput, unit: Unit, level: Level) -> _Checked:
    try:
        data = store.read(unit.key)
        metadata = pq.read_metadata(io.BytesIO(data))
        record = record_from(metadata)
    except FileNotFoundError:
        return None, [_deleted(unit)]
    except _UNREADABLE as error:
        return None, [_unreadable(unit, error)]
    findings = list(_check_record(expected, unit, metadata, record))
    if body_sha256(data) != record.body_sha256:
        problem = "the bytes do not match the checksum in the footer"
        return record, [*findings, _finding(Damage.CHECKSUM, unit.key, problem)]
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
    positions = rows.column(SOURCE_ROW).to_pylist()
    problem = _row_problem(unit, record, positions)
    if problem is not None:
        yield _finding(Damage.ROW_ORDER, unit.key, problem)
    others = set(rows.column(SOURCE_FILE).to_pylist()) - {unit.shard}
    if others:
        problem = f"some rows are from {min(others)}, not from {unit.shard}"
        yield _finding(Damage.ROW_ORDER, unit.key, problem)
    rejects = count_rejects(rows)
    if rejects != dict(record.rejects):
        problem = f"the rows have the rejects {rejects}, but the record says {record.rejects}"
        yield _finding(Damage.ROW_ERROR, unit.key, problem)


def _row_problem(unit: Unit, record: UnitRecord, positions: Sequence[int]) -> str | None:
    """The first reason why these are not the unit's rows, each once and in order; None if none."""
    for position in positions:
        if not unit.first_row <= position < unit.end_row:
            return f"row {position:,} is not in the unit"
    for one, other in pairwise(positions):
        if one == other:
            return f"row {one:,} occurs twice"
        if one > other:
            return f"row {other:,} comes after row {one:,}"
    if len(positions) + record.num_filtered == unit.num_rows:
        return None
    if not record.num_filtered:
        missing = min(set(range(unit.first_row, unit.end_row)) - set(positions))
        return f"row {missing:,} is missing"
    return (
        f"there are {len(positions):,} rows and {record.num_filtered:,} filtered out; the unit has "
        f"{unit.num_rows:,}"
    )


def _check_input(expected: ExpectedOutput, unit: Unit, rows: pa.Table) -> Iterator[Finding]:
    try:
        source = expected.source.read(unit)
    except TokenmillError as error:
        yield _finding(Damage.INPUT_UNREADABLE, unit.key, str(error))
        return
    expected_rows = source.column(ROW_COLUMN).to_pylist()
    present_rows = rows.column(SOURCE_ROW).to_pylist()
    if expected_rows != present_rows:
        yield _finding(Damage.ROW_ORDER, unit.key, _row_difference(expected_rows, present_rows))
        return
    for name in expected.kept:
        if not _same_values(source.column(name), rows.column(name)):
            problem = f"the values of column {name} differ from the input"
            yield _finding(Damage.KEPT_COLUMNS, unit.key, problem)


def _row_difference(expected: Sequence[int], present: Sequence[int]) -> str:
    """How the rows differ from those of the input that pass the job's filter."""
    missing, extra = set(expected) - set(present), set(present) - set(expected)
    if missing:
        return f"row {min(missing):,} is missing"
    if extra:
        return f"row {min(extra):,} does not pass input.where"
    return "the rows are not in the order of the input"


def _same_values(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether the values are equal. NaN equals NaN here, which Arrow's `equals` denies."""
    if one.type != other.type:
        return False
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())
