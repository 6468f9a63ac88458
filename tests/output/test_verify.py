"""Verification finds nothing in a whole output, and finds and names every kind of damage."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.factories import job
from helpers.inprocess import drive, invoke, job_over, write_corpus
from helpers.stores import record, refusal
from tokenmill.errors import ExitCode, UserError
from tokenmill.input.footers import read_footers
from tokenmill.input.listing import list_input
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.commit import commit, encode
from tokenmill.output.output import open_output
from tokenmill.output.record import UnitRecord, record_from
from tokenmill.output.schema import output_schema
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.output.verify import (
    Certificate,
    Damage,
    ExpectedOutput,
    Level,
    expected_output,
    verify,
)
from tokenmill.plan.plan import Plan, Unit
from tokenmill.plan.units import UnitSize, plan_units
from tokenmill.reject import Reject, RejectClass, error_array
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.storage.local import LocalStore

JOB = job({"input.keep": ("doc_id", "weight"), "input.where": "NOT doc_id = 'out'"})
REJECT = Reject(RejectClass.EMPTY_INPUT, "the column text is empty")
SHARDS = {
    # Values that are hard to compare: duplicates, nulls, NaN.
    "a.parquet": [("one", 1.0), ("one", None), ("out", 2.0), (None, float("nan")), ("five", 5.0)],
    "b/c.parquet": [("six", 6.0), ("seven", 7.0)],
}


class World:
    """A small corpus and its finished output, to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.corpus = folder / "corpus"
        for name, rows in SHARDS.items():
            self.write_shard(name, rows)
        listing = list_input(str(self.corpus), None)
        footers = read_footers(
            listing, {"doc_id": "input.keep", "weight": "input.keep"}, frozenset()
        )
        self.plan = Plan(
            input_url=listing.store.url,
            fingerprint=JOB.fingerprint,
            answer_fields=JOB.answer_fields,
            schema=footers.schema,
            units=plan_units(footers.shards, UnitSize(rows=3), 0),
        )
        self.source = Source(listing.store, self.plan.schema, JOB.input.where)
        self.schema = output_schema(JOB, footers.schema)
        self.store = LocalStore(str(folder / "out"))
        for unit in self.plan.units:
            commit(self.store, unit, self.rows(unit), self.record(unit))

    def write_shard(self, name: str, rows: list[tuple[str | None, float | None]]) -> None:
        path = self.corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = zip(*rows, strict=True)
        pq.write_table(
            pa.table(dict(zip(["doc_id", "weight"], map(list, columns), strict=True))), path
        )

    def rows(self, unit: Unit) -> pa.Table:
        """The unit's output rows; every second one is rejected."""
        table = self.source.read(unit)
        rejects = [REJECT if row % 2 else None for row in range(table.num_rows)]
        columns = {name: table.column(name) for name in ("doc_id", "weight")}
        columns |= {"error": error_array(rejects), "source_row": table.column(ROW_COLUMN)}
        columns["source_file"] = pa.array([unit.shard] * table.num_rows)
        nulls = {
            field.name: pa.nulls(table.num_rows, field.type)
            for field in self.schema
            if field.name not in columns
        }
        return pa.table(columns | nulls).select(self.schema.names).cast(self.schema)

    def record(self, unit: Unit) -> UnitRecord:
        rows = self.rows(unit)
        num_rejected = rows.num_rows - rows.column("error").null_count
        return record(
            unit,
            fingerprint=JOB.fingerprint,
            num_rows=rows.num_rows,
            num_filtered=unit.num_rows - rows.num_rows,
            rejects={"empty_input": num_rejected} if num_rejected else {},
        )

    @property
    def unit(self) -> Unit:
        """The unit that is damaged: rows 0 to 2, of which row 2 is filtered out."""
        return self.plan.units[0]

    def put(self, rows: pa.Table | None = None, **facts: Any) -> None:
        """Overwrite the unit's object with other rows or fields, and a matching checksum."""
        table = self.rows(self.unit) if rows is None else rows
        record = replace(self.record(self.unit), **facts)
        self.store.replace(self.unit.key, encode(table, record))

    def change_bytes(self, change: Callable[[bytes], bytes]) -> None:
        self.store.replace(self.unit.key, change(self.store.read(self.unit.key)))

    def verify(self, level: Level) -> Certificate:
        expected = ExpectedOutput(self.plan, self.schema, JOB.input.keep, self.source)
        return verify(self.store, expected, level)

    def damages(self, level: Level) -> set[Damage]:
        return {finding.damage for finding in self.verify(level).findings}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A whole output."""
    return World(tmp_path)


STRAYS = pytest.mark.parametrize(
    "key",
    [
        "data/.DS_Store",
        "data/a/._rows-000000000000-000000000003.parquet",
        "data/b/Thumbs.db",
        "data/a/.rows-000000000000-000000000003.parquet.crc",
        "data/a/rows.parquet.crc",
        "data/_metadata",
        "data/.ipynb_checkpoints/a.parquet",
        "data/_temporary/0/part.parquet",
        "data/a_$folder$",
    ],
)


@pytest.mark.parametrize("level", Level)
def test_a_whole_output_has_no_findings(world: World, level: Level) -> None:
    """Filtered rows, rejects, duplicate ids, nulls and NaN are no damage at any level."""
    certificate = world.verify(level)
    assert certificate.findings == ()
    if level >= Level.FOOTERS:
        totals = certificate.totals
        assert (totals.rows, totals.filtered, totals.rejected) == (5, 2, 2)
        assert set(certificate.units) == {unit.key for unit in world.plan.units}


def lose_unit(world: World) -> None:
    Path(world.store.url, world.unit.key).unlink()


def add_unit_of_another_plan(world: World) -> None:
    world.store.put_if_absent(world.unit.key.replace("0003.parquet", "0004.parquet"), b"PAR1")


def add_foreign_file(world: World) -> None:
    world.store.put_if_absent("data/notes.txt", b"hello")


def empty(world: World) -> None:
    world.change_bytes(lambda _: b"")


def cut_end(world: World) -> None:
    world.change_bytes(lambda data: data[:-5])


def cut_beginning(world: World) -> None:
    world.change_bytes(lambda data: data[4:])


def flip_bit_in_body(world: World) -> None:
    world.change_bytes(lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:])


def copy_another_unit(world: World) -> None:
    world.store.replace(world.unit.key, world.store.read(world.plan.units[1].key))


def write_by_another_job(world: World) -> None:
    world.put(fingerprint="0" * 64)


def write_from_another_shard_version(world: World) -> None:
    world.put(shard_version="yesterday")


def drop_column(world: World) -> None:
    world.put(world.rows(world.unit).drop_columns(["weight"]))


def change_type(world: World) -> None:
    rows = world.rows(world.unit)
    position = rows.schema.names.index("weight")
    world.put(rows.set_column(position, "weight", rows.column("weight").cast(pa.float32())))


def lose_row(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1))


def lose_row_and_record_it(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1), num_rows=1)


def lose_row_as_if_filtered(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1), num_rows=1, num_filtered=2, rejects={})


def double_row(world: World) -> None:
    world.put(world.rows(world.unit).take([0, 0]), rejects={})


def swap_rows(world: World) -> None:
    world.put(world.rows(world.unit).take([1, 0]))


def add_row_of_another_unit(world: World) -> None:
    rows = world.rows(world.unit)
    position = rows.schema.names.index("source_row")
    world.put(rows.set_column(position, world.schema.field("source_row"), pa.array([0, 4])))


def change_shard_name(world: World) -> None:
    rows = world.rows(world.unit)
    position = rows.schema.names.index("source_file")
    field = world.schema.field("source_file")
    world.put(rows.set_column(position, field, pa.array(["b/c.parquet"] * 2)))


def drop_error(world: World) -> None:
    rows = world.rows(world.unit)
    position = rows.schema.names.index("error")
    world.put(rows.set_column(position, world.schema.field("error"), error_array([None, None])))


def change_kept_value(world: World) -> None:
    rows = world.rows(world.unit)
    position = rows.schema.names.index("doc_id")
    world.put(rows.set_column(position, world.schema.field("doc_id"), pa.array(["one", "two"])))


def change_input(world: World) -> None:
    world.write_shard("a.parquet", [("other", 0.0)] * 5)


@pytest.mark.parametrize(
    ("damage_it", "level", "damage"),
    [
        (lose_unit, Level.LISTING, Damage.MISSING),
        (add_unit_of_another_plan, Level.LISTING, Damage.FOREIGN),
        (add_foreign_file, Level.LISTING, Damage.FOREIGN),
        (empty, Level.FOOTERS, Damage.UNREADABLE),
        (cut_end, Level.FOOTERS, Damage.UNREADABLE),
        (cut_beginning, Level.ROWS, Damage.CHECKSUM),
        (flip_bit_in_body, Level.ROWS, Damage.CHECKSUM),
        (copy_another_unit, Level.FOOTERS, Damage.OTHER_UNIT),
        (write_by_another_job, Level.FOOTERS, Damage.OTHER_JOB),
        (write_from_another_shard_version, Level.FOOTERS, Damage.OTHER_INPUT),
        (drop_column, Level.FOOTERS, Damage.SCHEMA),
        (change_type, Level.FOOTERS, Damage.SCHEMA),
        (lose_row, Level.FOOTERS, Damage.COUNTS),
        (lose_row_and_record_it, Level.FOOTERS, Damage.COUNTS),
        (lose_row_as_if_filtered, Level.INPUT, Damage.ROW_ORDER),
        (double_row, Level.ROWS, Damage.ROW_ORDER),
        (swap_rows, Level.ROWS, Damage.ROW_ORDER),
        (add_row_of_another_unit, Level.ROWS, Damage.ROW_ORDER),
        (change_shard_name, Level.ROWS, Damage.ROW_ORDER),
        (drop_error, Level.ROWS, Damage.ROW_ERROR),
        (change_kept_value, Level.INPUT, Damage.KEPT_COLUMNS),
        (change_input, Level.INPUT, Damage.INPUT_UNREADABLE),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_damage_is_found_at_its_level(
    world: World, damage_it: Callable[[World], None], level: Level, damage: Damage
) -> None:
    """Each kind of damage is named at its level, and the deepest level finds all of them."""
    damage_it(world)
    assert damage in world.damages(level)
    assert world.damages(Level.INPUT)


@STRAYS
def test_files_that_other_programs_add_are_no_damage(world: World, key: str) -> None:
    """They are listed in the certificate; a unit that is missing is still found."""
    world.store.put_if_absent(key, b"")
    certificate = world.verify(Level.INPUT)
    assert (certificate.is_whole, certificate.ignored) == (True, (key,))
    assert certificate.totals.rows == 5
    lose_unit(world)
    assert world.damages(Level.FOOTERS) == {Damage.MISSING}


@STRAYS
def test_commands_work_on_an_output_with_such_files(tmp_path: Path, key: str) -> None:
    """A run resumes it, `verify` names the file in one line, and `export` leaves it out."""
    job = Job.model_validate(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out"))
    store = LocalStore(str(tmp_path / "out"))
    # As if a file manager had shown the empty folder.
    store.put_if_absent(".DS_Store", b"")
    drive(job, store)
    store.put_if_absent(key, b"")
    store.delete(SUCCESS_KEY)
    store.delete(open_output(store).plan.units[0].key)
    summary = drive(job, store)
    assert summary is not None and (summary.units, summary.exit_code) == (1, ExitCode.FINISHED)
    proof = invoke("verify", store.url)
    assert proof.exit_code == ExitCode.FINISHED
    assert [line for line in proof.stdout.splitlines() if key in line] != []
    exported = invoke("export", store.url, tmp_path / "all.jsonl")
    assert exported.exit_code == ExitCode.FINISHED, exported.stderr


@pytest.mark.parametrize("name", [".git/config", "_delta_log/0.json", "x.crc"])
def test_a_folder_with_files_of_other_programs_is_not_empty(tmp_path: Path, name: str) -> None:
    """Only the files of file managers do not count before the first run."""
    job = Job.model_validate(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out"))
    store = LocalStore(str(tmp_path / "out"))
    store.put_if_absent(name, b"")
    assert name in refusal(UserError, lambda: drive(job, store))


@pytest.mark.parametrize(
    ("damage_it", "level", "parts"),
    [
        (double_row, Level.ROWS, ("row 0 occurs twice", "_SUCCESS")),
        (swap_rows, Level.ROWS, ("row 0 comes after row 1",)),
        (add_row_of_another_unit, Level.ROWS, ("row 4 is not in the unit",)),
        (change_shard_name, Level.ROWS, ("b/c.parquet", "a.parquet")),
        (lose_row_as_if_filtered, Level.INPUT, ("row 1 is missing",)),
        (change_kept_value, Level.INPUT, ("doc_id",)),
        (add_foreign_file, Level.LISTING, ("data/",)),
        (lose_unit, Level.LISTING, ("run the job again",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_finding_says_what_is_wrong_and_what_to_do(
    world: World, damage_it: Callable[[World], None], level: Level, parts: tuple[str, ...]
) -> None:
    """The message names the row, column or file, and the way out."""
    damage_it(world)
    messages = " ".join(finding.message for finding in world.verify(level).findings)
    for part in parts:
        assert part in messages


def test_a_missing_row_is_named(world: World) -> None:
    """In a unit without filtered rows the first missing row is known without the input."""
    unit = world.plan.units[-1]
    rows = world.rows(unit)
    record = replace(world.record(unit), num_rows=1)
    world.store.replace(unit.key, encode(rows.slice(0, 1), record))
    messages = [finding.message for finding in world.verify(Level.ROWS).findings]
    assert any(f"row {unit.first_row + 1} is missing" in message for message in messages)


def test_following_the_advice_makes_the_output_whole(tmp_path: Path) -> None:
    """After the damaged object and `_SUCCESS` are deleted, a run restores the unit."""
    job = Job.model_validate(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out"))
    store = LocalStore(str(tmp_path / "out"))
    drive(job, store)
    opened = open_output(store)
    key = opened.plan.units[0].key
    store.replace(key, b"damaged")
    (finding,) = verify(store, expected_output(opened), Level.FOOTERS).findings
    assert "delete it, and _SUCCESS" in finding.message
    store.delete(key)
    assert drive(job, store) is None
    store.delete(SUCCESS_KEY)
    assert drive(job, store) is not None
    assert verify(store, expected_output(opened), Level.INPUT).is_whole


def test_a_certificate_can_be_recomputed_with_a_parquet_reader(world: World) -> None:
    """Rows, rejects and checksum of each unit are what pyarrow and SHA-256 compute."""
    certificate = json.loads(world.verify(Level.ROWS).to_json())
    assert certificate["is_whole"]
    for key, facts in certificate["units"].items():
        data = world.store.read(key)
        rows = pq.read_table(io.BytesIO(data))
        footer = int.from_bytes(data[-8:-4], "little")
        assert facts["body_sha256"] == hashlib.sha256(data[: -8 - footer]).hexdigest()
        assert facts["num_rows"] == rows.num_rows
        assert sum(facts["rejects"].values()) == rows.num_rows - rows.column("error").null_count


def test_a_record_survives_the_round_trip_through_a_footer(world: World) -> None:
    """The record in a footer equals the written one, apart from the checksum."""
    stored = record_from(pq.read_metadata(io.BytesIO(world.store.read(world.unit.key))))
    assert asdict(replace(stored, body_sha256="")) == asdict(world.record(world.unit))
