"""Repair: newly answered rows replace rejected ones, and no answer is ever lost."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.killing import killed_at_line
from helpers.stores import (
    Crash,
    CrashingStore,
    Fault,
    RacingStore,
    StubS3,
    keys,
    record,
    refusal,
    unit,
)
from tokenmill.errors import RunFailed
from tokenmill.output.commit import Commit, Repair, commit, commit_repair
from tokenmill.output.record import UnitRecord, read_record
from tokenmill.reject import Reject, RejectClass, error_array
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

UNIT = unit(num_rows=4)
FAILED = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)
LATE = Reject(RejectClass.TIMEOUT, "no answer within 5 s", attempts=1)
CHANGES = {"sampling.max_tokens": 200}


def rows_of(cells: Mapping[int, str | Reject]) -> pa.Table:
    """Output rows by their position in the shard: answers or rejects, of 10 and 3 tokens each."""
    return pa.table(
        {
            "answer": pa.array(
                [None if isinstance(cell, Reject) else cell for cell in cells.values()], pa.string()
            ),
            "num_input_tokens": pa.array([10] * len(cells), pa.int32()),
            "num_generated_tokens": pa.array([3] * len(cells), pa.int32()),
            "error": error_array(
                [cell if isinstance(cell, Reject) else None for cell in cells.values()]
            ),
            "source_row": pa.array(cells.keys(), pa.int64()),
        }
    )


COMMITTED = {0: "zero", 1: FAILED, 2: LATE, 3: FAILED}


def committed(store: Store) -> Store:
    """The store, after committing the unit with one answer and three rejects."""
    rejects = {"engine_error": 2, "timeout": 1}
    first = record(UNIT, attempt="first", rejects=rejects, input_tokens=40, generated_tokens=12)
    assert commit(store, UNIT, rows_of(COMMITTED), first).is_ours
    return store


def repair(
    store: Store, cells: Mapping[int, str | Reject], attempt: str = "second", run: str = "retry"
) -> Commit:
    """Repair the unit's object with these rows."""
    return commit_repair(store, UNIT, rows_of(cells), Repair(run, attempt, CHANGES))


def cells_of(store: Store) -> list[Any]:
    """The answer or the reject class of each row, in the order of the object."""
    rows = pq.read_table(io.BytesIO(store.read(UNIT.key))).to_pylist()
    assert [row["source_row"] for row in rows] == [0, 1, 2, 3]
    return [row["answer"] if row["error"] is None else row["error"]["class"] for row in rows]


def repairs_of(store: Store) -> list[str]:
    return [entry["attempt"] for entry in read_record(store, UNIT.key).repairs]


# Rows and record.


def test_answers_replace_rejects(store: Store) -> None:
    """New answers and new rejects replace old rejects; other rows are not changed."""
    committed(store)
    outcome = repair(store, {3: "three", 1: LATE})
    assert outcome.is_ours
    assert cells_of(store) == ["zero", "timeout", "timeout", "three"]
    assert keys(store) == [UNIT.key]


def test_an_answer_is_replaced_only_by_an_answer(store: Store) -> None:
    """A failed retry removes no answer; a successful one replaces it."""
    committed(store)
    repair(store, {0: FAILED, 1: "one"})
    assert cells_of(store) == ["zero", "one", "timeout", "engine_error"]
    repair(store, {0: "a longer zero", 1: LATE}, attempt="third")
    assert cells_of(store) == ["a longer zero", "one", "timeout", "engine_error"]


def test_the_record_describes_the_repair(store: Store) -> None:
    """Rejects are counted again, tokens are added, and each repair is listed."""
    before = read_record(committed(store), UNIT.key)
    outcome = repair(store, {1: "one", 2: FAILED})
    entry = {"run": "retry", "attempt": "second", "changes": CHANGES, "num_rows": 2}
    assert outcome.record == replace(
        before,
        attempt="second",
        rejects={"engine_error": 2},
        input_tokens=60,
        generated_tokens=18,
        body_sha256=outcome.record.body_sha256,
        repairs=(entry,),
    )
    assert read_record(store, UNIT.key) == outcome.record
    repair(store, {2: "two", 3: "three"}, attempt="third", run="another")
    again = read_record(store, UNIT.key)
    assert again.rejects == {}
    assert again.repairs == (entry, {**entry, "run": "another", "attempt": "third"})


# Concurrent repairs.


def test_a_repair_between_reading_and_writing_is_kept(store: Store) -> None:
    """A repair that finds the object changed applies its rows to the new object."""
    committed(store)

    def other(number: int) -> None:
        if number == 1:
            repair(store, {1: "other one", 2: "other two", 3: LATE}, attempt="other")

    assert repair(RacingStore(store, other), {2: FAILED, 3: "three"}).is_ours
    assert cells_of(store) == ["zero", "other one", "other two", "three"]
    assert repairs_of(store) == ["other", "second"]
    assert read_record(store, UNIT.key).rejects == {}


def test_concurrent_repairs_lose_nothing(store: Store, root: str) -> None:
    """The answers and the records of three repairs at the same time are all kept."""
    committed(store)
    start = Barrier(3)

    def race(row: int) -> Commit:
        other = open_store(root)
        failing = {position: LATE for position in (1, 2, 3) if position != row}
        start.wait()
        return repair(other, {row: f"row {row}", **failing}, attempt=f"attempt {row}")

    with ThreadPoolExecutor(3) as pool:
        assert all(outcome.is_ours for outcome in pool.map(race, (1, 2, 3)))
    assert cells_of(store) == ["zero", "row 1", "row 2", "row 3"]
    assert sorted(repairs_of(store)) == ["attempt 1", "attempt 2", "attempt 3"]
    repaired = read_record(store, UNIT.key)
    assert repaired.rejects == {}
    # Three rows of each repair, in addition to four of the first run.
    assert (repaired.input_tokens, repaired.generated_tokens) == (130, 39)


def test_a_repair_gives_up_if_others_keep_changing_the_object(tmp_path: Path) -> None:
    """After a few lost races, `RunFailed` names the object, which holds the others' rows."""
    store = committed(open_store(str(tmp_path)))

    def other(number: int) -> None:
        repair(store, {1: f"other {number}"}, attempt=f"other {number}")

    message = refusal(RunFailed, lambda: repair(RacingStore(store, other), {2: "two"}))
    assert f"{tmp_path}/{UNIT.key}" in message
    assert "keep changing it" in message
    assert "second" not in repairs_of(store)


def test_a_late_commit_of_a_repaired_unit_changes_nothing(store: Store) -> None:
    """A leftover process of the first run finds the unit committed."""
    committed(store)
    repair(store, {1: "one"})
    before = store.read(UNIT.key)
    late = commit(store, UNIT, rows_of(COMMITTED), record(UNIT, attempt="late"))
    assert not late.is_ours
    assert late.record.attempt == "second"
    assert store.read(UNIT.key) == before


# Lost replies and crashes.


@pytest.mark.parametrize("fault", Fault)
def test_a_repair_survives_a_network_fault(stub_s3: StubS3, fault: Fault) -> None:
    """If the write is refused, cut off or its reply is lost, the repair is made once, as ours."""
    committed(stub_s3.store)
    stub_s3.faults.append(fault)
    outcome = repair(stub_s3.store, {1: "one"})
    assert outcome == Commit(read_record(stub_s3.store, UNIT.key), is_ours=True)
    assert cells_of(stub_s3.store) == ["zero", "one", "timeout", "engine_error"]
    assert repairs_of(stub_s3.store) == ["second"]


def test_a_repair_with_a_lost_reply_is_found_below_a_later_one(store: Store) -> None:
    """A repair whose reply was lost is not made twice, even if another one followed."""
    committed(store)
    ours = {1: "one"}

    def lost(number: int) -> None:
        if number == 1:
            repair(store, ours, attempt="second")
            repair(store, {1: "a later one"}, attempt="other")

    outcome = repair(RacingStore(store, lost), ours, attempt="second")
    assert outcome.is_ours
    assert repairs_of(store) == ["second", "other"]
    assert cells_of(store)[1] == "a later one"
    assert read_record(store, UNIT.key).input_tokens == 60


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash_at", range(3))
def test_a_retry_after_a_crash_repairs_the_rest(store: Store, crash_at: int, after: bool) -> None:
    """Wherever a repair crashes between its three calls, the next one ends with all answers."""
    committed(store)
    with pytest.raises(Crash):
        repair(CrashingStore(store, crash_at, after), {1: "one"}, attempt="crashed")
    was_made = (crash_at, after) == (2, True)
    assert cells_of(store)[1] == ("one" if was_made else "engine_error")
    repair(store, {1: LATE, 2: "two"}, attempt="next")
    assert cells_of(store) == ["zero", "one" if was_made else "timeout", "two", "engine_error"]
    assert repairs_of(store) == (["crashed", "next"] if was_made else ["next"])


def test_a_repair_makes_no_other_calls(store: Store) -> None:
    """A repair calls the store three times, so the crashes above are all."""
    watched = CrashingStore(committed(store))
    repair(watched, {1: "one"})
    assert watched.calls == ["info", "read", "put_if_match"]


def test_a_kill_at_any_line_leaves_the_old_or_the_new_object(tmp_path: Path) -> None:
    """Whichever line a process is killed at, the unit is whole and the next repair succeeds."""
    number, killed, seen = 0, True, []
    while killed:
        store = committed(open_store(str(tmp_path / str(number))))
        crashed = Repair("retry", "crashed", CHANGES)
        killed = killed_at_line(number, commit_repair, store, UNIT, rows_of({1: "one"}), crashed)
        seen.append(cells_of(store)[1])
        assert repair(store, {1: LATE, 3: "three"}).is_ours
        expected = "timeout" if seen[-1] == "engine_error" else "one"
        assert cells_of(store) == ["zero", expected, "timeout", "three"]
        assert keys(store) == [UNIT.key]
        number += 1
    # Once a kill comes too late to prevent the repair, all later ones do too.
    assert seen == sorted(seen)
    assert set(seen) == {"engine_error", "one"}


def test_a_missing_unit_cannot_be_repaired(store: Store) -> None:
    """A missing object is not created."""
    store.put_if_absent("data/other", b"")
    with pytest.raises(FileNotFoundError):
        repair(store, {1: "one"})
    assert keys(store) == ["data/other"]


def test_repairs_read_back_as_they_were_written(store: Store) -> None:
    """The repairs in a footer come back equal, whatever they changed."""
    written: UnitRecord = record(
        UNIT, repairs=({"run": "r", "attempt": "a", "changes": {"x": [1, None]}, "num_rows": 1},)
    )
    commit(store, UNIT, rows_of(COMMITTED), written)
    assert read_record(store, UNIT.key).repairs == written.repairs
