"""Committing a unit gives one whole object from one writer, wherever a writer crashes."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.killing import killed_at_line
from helpers.stores import (
    Crash,
    CrashingStore,
    Fault,
    StubS3,
    VanishingStore,
    answers,
    contents,
    keys,
    record,
    refusal,
    unit,
)
from tokenmill.errors import RunFailed, UserError
from tokenmill.output.commit import Commit, commit, encode
from tokenmill.output.record import UnitRecord, body_sha256, read_record
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.open import open_store

UNIT = unit()


def write(store: Store, attempt: str) -> Commit:
    """Commit the unit with rows that name the attempt."""
    return commit(store, UNIT, answers(UNIT, attempt), record(UNIT, attempt=attempt))


def written_by(attempt: str) -> UnitRecord:
    """The record that the attempt's object holds, with its checksum."""
    unit_record = record(UNIT, attempt=attempt)
    data = encode(answers(UNIT, attempt), unit_record)
    return replace(unit_record, body_sha256=body_sha256(data))


def assert_committed_by(store: Store, attempt: str) -> None:
    """The store holds the whole object of this attempt and nothing else."""
    assert keys(store) == [UNIT.key]
    assert pq.read_table(io.BytesIO(store.read(UNIT.key))).equals(answers(UNIT, attempt))
    assert read_record(store, UNIT.key) == written_by(attempt)


# One writer wins.


def test_a_second_writer_gets_the_record_of_the_first(store: Store) -> None:
    """The first commit creates the object; the second discards its rows and changes nothing."""
    assert write(store, "first") == Commit(written_by("first"), is_ours=True)
    before = contents(store)
    assert write(store, "second") == Commit(written_by("first"), is_ours=False)
    assert contents(store) == before
    assert_committed_by(store, "first")


def test_a_writer_recognizes_its_own_object(store: Store) -> None:
    """An attempt that commits again, because it lost the store's reply, learns that it won."""
    assert write(store, "first") == write(store, "first")
    assert_committed_by(store, "first")


def test_one_of_many_concurrent_writers_wins(store: Store, root: str) -> None:
    """If threads commit one unit at the same time, one wins and all get its record."""
    attempts = [f"attempt-{number}" for number in range(5)]
    start = Barrier(len(attempts))

    def race(attempt: str) -> Commit:
        start.wait()
        return write(open_store(root), attempt)

    with ThreadPoolExecutor(len(attempts)) as pool:
        outcomes = list(pool.map(race, attempts))
    winners = [
        attempt for attempt, outcome in zip(attempts, outcomes, strict=True) if outcome.is_ours
    ]
    assert len(winners) == 1
    assert {outcome.record.attempt for outcome in outcomes} == set(winners)
    assert_committed_by(store, winners[0])


# Crashes at any moment.


@pytest.mark.parametrize(
    ("rival", "crash_at", "after", "winner"),
    [
        (False, 0, False, "retry"),
        (False, 0, True, "crashed"),
        (True, 0, False, "rival"),
        (True, 0, True, "rival"),
        (True, 1, False, "rival"),
        (True, 1, True, "rival"),
    ],
    ids=[
        "before its PUT",
        "after its PUT",
        "before a lost PUT",
        "after a lost PUT",
        "before reading the rival's record",
        "while reading the rival's record",
    ],
)
def test_a_retry_after_a_crash_leaves_one_whole_object(
    store: Store, rival: bool, crash_at: int, after: bool, winner: str
) -> None:
    """Wherever a writer crashes between its calls, a retry leaves one object with its rows."""
    if rival:
        write(store, "rival")
    with pytest.raises(Crash):
        write(CrashingStore(store, crash_at, after), "crashed")
    assert set(keys(store)) <= {UNIT.key}
    assert write(store, "retry").record.attempt == winner
    assert_committed_by(store, winner)


def test_a_commit_makes_no_other_calls(store: Store) -> None:
    """A commit calls the store once, and once more if it lost, so the crashes above are all."""
    for rival, calls in ((False, ["put_if_absent"]), (True, ["put_if_absent", "open"])):
        watched = CrashingStore(store)
        write(watched, f"rival: {rival}")
        assert watched.calls == calls


@pytest.mark.parametrize("rival", [False, True], ids=["alone", "second"])
def test_a_kill_at_any_line_leaves_all_or_nothing(tmp_path: Path, rival: bool) -> None:
    """Whichever line a process is killed at, a retry leaves one object with its rows."""
    crashed = record(UNIT, attempt="crashed")
    number, killed = 0, True
    winners = []
    while killed:
        store = open_store(str(tmp_path / str(number)))
        if rival:
            write(store, "rival")
        killed = killed_at_line(number, commit, store, UNIT, answers(UNIT, "crashed"), crashed)
        outcome = write(store, "retry")
        assert_committed_by(store, outcome.record.attempt)
        assert outcome.is_ours is (outcome.record.attempt == "retry")
        winners.append(outcome.record.attempt)
        number += 1
    # Once a kill comes too late to prevent the commit, all later ones do too.
    assert winners == sorted(winners, reverse=True)
    assert set(winners) == ({"rival"} if rival else {"retry", "crashed"})


@pytest.mark.parametrize("fault", Fault)
def test_a_commit_survives_a_network_fault(stub_s3: StubS3, fault: Fault) -> None:
    """If a PUT is refused, cut off or its reply is lost, the commit is ours all the same."""
    stub_s3.faults.append(fault)
    ours = Commit(written_by("first"), is_ours=True)
    assert write(stub_s3.store, "first") == ours
    assert write(stub_s3.store, "second") == replace(ours, is_ours=False)
    assert len(stub_s3.objects) == 1


# Foreign objects are left alone.


def parquet(**metadata: str) -> bytes:
    sink = io.BytesIO()
    pq.write_table(answers(UNIT).replace_schema_metadata(metadata or None), sink)
    return sink.getvalue()


def bad_footer() -> bytes:
    """Our object with a byte that makes Arrow's Thrift decoder raise an OSError."""
    whole = encode(answers(UNIT), record(UNIT))
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    return whole[:start] + b"\xff" + whole[start + 1 :]


FOREIGN = {
    "empty": b"",
    "text": b"id,text\n1,hello\n",
    "cut off": encode(answers(UNIT), record(UNIT))[:-20],
    "first half": encode(answers(UNIT), record(UNIT))[:700],
    "broken footer": bad_footer(),
    "another tool's": parquet(),
    "no JSON": parquet(tokenmill="{"),
    "another JSON": parquet(tokenmill="null"),
    "too little": parquet(tokenmill=json.dumps({"unit": UNIT.key})),
    "too much": parquet(tokenmill=json.dumps(asdict(record(UNIT)) | {"more": 1})),
    "too few rows": encode(answers(UNIT).slice(1), record(UNIT)),
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_object_with_the_units_key_stops_the_run(tmp_path: Path, body: bytes) -> None:
    """An object that is not ours or not whole is a UserError that names it; it is not changed."""
    store = open_store(str(tmp_path))
    store.put_if_absent(UNIT.key, body)
    for operation in (lambda: write(store, "ours"), lambda: read_record(store, UNIT.key)):
        assert f"{tmp_path}/{UNIT.key}" in refusal(UserError, operation)
    assert contents(store) == {UNIT.key: body}


@pytest.mark.parametrize("facts", [{"fingerprint": "another"}, {"unit": unit(1).key}])
def test_an_object_of_another_job_stops_the_run(store: Store, facts: dict[str, str]) -> None:
    """An object of another job or unit is a UserError that names it; it is not changed."""
    commit(store, UNIT, answers(UNIT), record(UNIT, **facts))
    before = contents(store)
    assert f"{store.url}/{UNIT.key}" in refusal(UserError, lambda: write(store, "ours"))
    assert contents(store) == before


def test_an_object_that_is_deleted_during_the_commit_raises_run_failed() -> None:
    """If the object exists at the PUT but not at the read, `RunFailed` names it."""
    store = VanishingStore()
    message = refusal(RunFailed, lambda: write(store, "ours"))
    assert f"{store.url}/{UNIT.key}" in message


class Slow(io.BytesIO):
    """A file whose reads time out."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise TimeoutError(size)


class Unreachable(LocalStore):
    """A store whose objects exist but cannot be read."""

    def open(self, key: str) -> Slow:  # noqa: ARG002
        return Slow(bytes(100))


def test_a_network_error_does_not_make_an_object_foreign(tmp_path: Path) -> None:
    """If a footer cannot be read, the error does not advise to remove the object."""
    with pytest.raises(TimeoutError):
        read_record(Unreachable(str(tmp_path)), UNIT.key)


def test_a_missing_object_has_no_record(store: Store) -> None:
    """Reading the record of a unit that is not committed raises `FileNotFoundError`."""
    with pytest.raises(FileNotFoundError):
        read_record(store, UNIT.key)


# The object.


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"revision": "main", "rejects": {"timeout": 2}, "seconds": 0.1 + 0.2},
        {"model": 's3://models/Ünïcode "quoted"', "input_tokens": 2**53 + 1},
        {"num_rows": 0, "num_filtered": 3},
    ],
)
def test_a_record_reads_back_as_it_was_written(store: Store, facts: dict[str, object]) -> None:
    """Record and rows come back equal, whatever their values."""
    written = record(UNIT, **facts)
    table = answers(UNIT).slice(0, written.num_rows)
    assert commit(store, UNIT, table, written).is_ours
    assert replace(read_record(store, UNIT.key), body_sha256="") == written
    assert pq.read_table(io.BytesIO(store.read(UNIT.key))).equals(table)


def test_equal_rows_and_records_give_equal_bytes() -> None:
    """Encoding depends only on rows and record, not on chunks or schema metadata."""
    table = answers(UNIT)
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    noted = table.replace_schema_metadata({"stage": "facts"})
    encoded = {encode(variant, record(UNIT)) for variant in (table, table, chunked, noted)}
    assert len(encoded) == 1
    assert encode(table, record(UNIT, attempt="another")) not in encoded


def test_objects_are_zstd_in_row_groups_of_16384() -> None:
    """Every column chunk is zstd, and a row group holds at most 16,384 rows."""
    large = unit(num_rows=40_000)
    metadata = pq.read_metadata(io.BytesIO(encode(answers(large), record(large))))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [16_384, 16_384, 7_232]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
