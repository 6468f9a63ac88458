"""verify: a whole output is proved whole, and every kind of damage is seen and named."""

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
from helpers.stores import record
from tokenmill.input.footers import read_footers
from tokenmill.input.listing import list_input
from tokenmill.input.reader import Source
from tokenmill.output.commit import commit, encode
from tokenmill.output.record import UnitRecord, record_from
from tokenmill.output.schema import output_schema
from tokenmill.output.verify import Damage, Expected, Level, verify
from tokenmill.plan.plan import Plan, Unit
from tokenmill.plan.units import UnitSize, plan_units
from tokenmill.reject import Reject, RejectClass, error_array
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.storage.local import LocalStore
from tokenmill.tasks.row_tasks import answer_fields

JOB = job({"input.keep": ("doc_id", "weight"), "input.where": "NOT doc_id = 'out'"})
REJECT = Reject(RejectClass.EMPTY_INPUT, "the column text is empty")
SHARDS = {
    # Names and numbers that are hard to compare: doubled, null, not a number.
    "a.parquet": [("one", 1.0), ("one", None), ("out", 2.0), (None, float("nan")), ("five", 5.0)],
    "b/c.parquet": [("six", 6.0), ("seven", 7.0)],
}
#: What verify may read of an object when it does not read its rows.
FOOTER_ONLY = Level.FOOTERS


class World:
    """A small corpus with its finished output, to be damaged."""

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
        self.schema = output_schema(footers.schema, answer_fields(JOB.steps))
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
        """The unit's output: every second row is rejected."""
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
        """The one that is damaged: rows 0 to 2, of which row 2 is filtered out."""
        return self.plan.units[0]

    def put(self, rows: pa.Table | None = None, **facts: Any) -> None:
        """Write the unit's object anew, with other rows or facts and a checksum that fits."""
        table = self.rows(self.unit) if rows is None else rows
        whole = replace(self.record(self.unit), **facts)
        self.store.replace(self.unit.key, encode(table, whole))

    def change_bytes(self, change: Callable[[bytes], bytes]) -> None:
        self.store.replace(self.unit.key, change(self.store.read(self.unit.key)))

    def damages(self, level: Level) -> set[Damage]:
        expected = Expected(self.plan, self.schema, JOB.input.keep, self.source)
        return {finding.damage for finding in verify(self.store, expected, level).findings}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A whole output."""
    return World(tmp_path)


@pytest.mark.parametrize("level", Level)
def test_a_whole_output_is_whole_at_every_level(world: World, level: Level) -> None:
    """Filtered rows, rejects, doubled ids, nulls and NaN are no damage."""
    expected = Expected(world.plan, world.schema, JOB.input.keep, world.source)
    proof = verify(world.store, expected, level)
    assert proof.findings == ()
    if level >= Level.FOOTERS:
        assert (proof.totals.rows, proof.totals.filtered, proof.totals.rejected) == (5, 2, 2)
        assert set(proof.units) == {unit.key for unit in world.plan.units}


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


def copy_of_another_unit(world: World) -> None:
    world.store.replace(world.unit.key, world.store.read(world.plan.units[1].key))


def of_another_job(world: World) -> None:
    world.put(fingerprint="0" * 64)


def of_another_shard_version(world: World) -> None:
    world.put(shard_version="yesterday")


def without_a_column(world: World) -> None:
    world.put(world.rows(world.unit).drop_columns(["weight"]))


def with_another_type(world: World) -> None:
    rows = world.rows(world.unit)
    place = rows.schema.names.index("weight")
    world.put(rows.set_column(place, "weight", rows.column("weight").cast(pa.float32())))


def lose_row(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1))


def lose_row_and_say_so(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1), num_rows=1)


def lose_row_as_if_filtered(world: World) -> None:
    world.put(world.rows(world.unit).slice(0, 1), num_rows=1, num_filtered=2, rejects={})


def double_row(world: World) -> None:
    world.put(world.rows(world.unit).take([0, 0]), rejects={})


def swap_rows(world: World) -> None:
    world.put(world.rows(world.unit).take([1, 0]))


def row_of_another_unit(world: World) -> None:
    rows = world.rows(world.unit)
    place = rows.schema.names.index("source_row")
    world.put(rows.set_column(place, world.schema.field("source_row"), pa.array([0, 4])))


def of_another_shard(world: World) -> None:
    rows = world.rows(world.unit)
    place = rows.schema.names.index("source_file")
    field = world.schema.field("source_file")
    world.put(rows.set_column(place, field, pa.array(["b/c.parquet"] * 2)))


def drop_error(world: World) -> None:
    rows = world.rows(world.unit)
    place = rows.schema.names.index("error")
    world.put(rows.set_column(place, world.schema.field("error"), error_array([None, None])))


def change_kept_value(world: World) -> None:
    rows = world.rows(world.unit)
    place = rows.schema.names.index("doc_id")
    world.put(rows.set_column(place, world.schema.field("doc_id"), pa.array(["one", "two"])))


def change_input(world: World) -> None:
    world.write_shard("a.parquet", [("other", 0.0)] * 5)


@pytest.mark.parametrize(
    ("harm", "level", "damage"),
    [
        (lose_unit, Level.LISTING, Damage.MISSING),
        (add_unit_of_another_plan, Level.LISTING, Damage.FOREIGN),
        (add_foreign_file, Level.LISTING, Damage.FOREIGN),
        (empty, FOOTER_ONLY, Damage.UNREADABLE),
        (cut_end, FOOTER_ONLY, Damage.UNREADABLE),
        (cut_beginning, Level.ROWS, Damage.CHECKSUM),
        (flip_bit_in_body, Level.ROWS, Damage.CHECKSUM),
        (copy_of_another_unit, FOOTER_ONLY, Damage.OTHER_UNIT),
        (of_another_job, FOOTER_ONLY, Damage.OTHER_JOB),
        (of_another_shard_version, FOOTER_ONLY, Damage.OTHER_INPUT),
        (without_a_column, FOOTER_ONLY, Damage.SCHEMA),
        (with_another_type, FOOTER_ONLY, Damage.SCHEMA),
        (lose_row, FOOTER_ONLY, Damage.COUNTS),
        (lose_row_and_say_so, FOOTER_ONLY, Damage.COUNTS),
        (lose_row_as_if_filtered, Level.INPUT, Damage.ROW_ORDER),
        (double_row, Level.ROWS, Damage.ROW_ORDER),
        (swap_rows, Level.ROWS, Damage.ROW_ORDER),
        (row_of_another_unit, Level.ROWS, Damage.ROW_ORDER),
        (of_another_shard, Level.ROWS, Damage.ROW_ORDER),
        (drop_error, Level.ROWS, Damage.ROW_ERROR),
        (change_kept_value, Level.INPUT, Damage.KEPT_COLUMNS),
        (change_input, Level.INPUT, Damage.INPUT_UNREADABLE),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_damage_is_seen_at_its_level(
    world: World, harm: Callable[[World], None], level: Level, damage: Damage
) -> None:
    """Each kind of damage is named from its level on, and in no case taken for a whole output."""
    harm(world)
    assert damage in world.damages(level)
    assert world.damages(Level.INPUT)


def test_a_certificate_can_be_recomputed_with_a_parquet_reader(world: World) -> None:
    """Rows, rejects and checksum of each unit are what pyarrow and SHA-256 say of its bytes."""
    expected = Expected(world.plan, world.schema, JOB.input.keep, world.source)
    proof = json.loads(verify(world.store, expected, Level.ROWS).to_json())
    assert proof["is_whole"]
    for key, facts in proof["units"].items():
        data = world.store.read(key)
        rows = pq.read_table(io.BytesIO(data))
        footer = int.from_bytes(data[-8:-4], "little")
        assert facts["body_sha256"] == hashlib.sha256(data[: -8 - footer]).hexdigest()
        assert facts["num_rows"] == rows.num_rows
        assert sum(facts["rejects"].values()) == rows.num_rows - rows.column("error").null_count


def test_a_record_survives_its_way_through_a_footer(world: World) -> None:
    """What a unit's object says of itself is what was written, with its checksum."""
    read = record_from(pq.read_metadata(io.BytesIO(world.store.read(world.unit.key))))
    assert asdict(replace(read, body_sha256="")) == asdict(world.record(world.unit))
