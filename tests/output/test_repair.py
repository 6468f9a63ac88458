"""Repair: rows that were answered again stand in their places, and no answer is ever lost."""

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
    Meddling,
    StubS3,
    keys,
    record,
    refusal,
    unit,
)
from tokenmill.errors import RunFailed
from tokenmill.output.commit import Commit, Repair, commit, repair
from tokenmill.output.record import UnitRecord, read_record
from tokenmill.reject import Reject, RejectClass, error_array
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

UNIT = unit(num_rows=4)
FAILED = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)
LATE = Reject(RejectClass.TIMEOUT, "no answer within 5 s", attempts=1)
CHANGES = {"sampling.max_tokens": 200}


def rows_of(cells: Mapping[int, str | Reject]) -> pa.Table:
    """Output rows at these positions of the shard: an answer or a reject; 10 and 3 tokens each."""
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


STANDING = {0: "zero", 1: FAILED, 2: LATE, 3: FAILED}


def committed(store: Store) -> Store:
    """A store in which the unit stands with one answer and three rejects."""
    rejects = {"engine_error": 2, "timeout": 1}
    made = record(UNIT, attempt="first", rejects=rejects, input_tokens=40, generated_tokens=12)
    assert commit(store, UNIT, rows_of(STANDING), made).is_ours
    return store


def mend(
    store: Store, cells: Mapping[int, str | Reject], attempt: str = "second", run: str = "retry"
) -> Commit:
    """Put these rows into the unit's object."""
    return repair(store, UNIT, rows_of(cells), Repair(run, attempt, CHANGES))


def cells_of(store: Store) -> list[Any]:
    """Each row's answer, or the class of its error, in the order of the object."""
    rows = pq.read_table(io.BytesIO(store.read(UNIT.key))).to_pylist()
    assert [row["source_row"] for row in rows] == [0, 1, 2, 3]
    return [row["answer"] if row["error"] is None else row["error"]["class"] for row in rows]


def repairs_of(store: Store) -> list[str]:
    return [made["attempt"] for made in read_record(store, UNIT.key).repairs]


# What becomes of rows and record.


def test_answers_take_the_places_of_rejects(store: Store) -> None:
    """New answers stand where the rejects stood, new rejects too; the others stay."""
    committed(store)
    outcome = mend(store, {3: "three", 1: LATE})
    assert outcome.is_ours
    assert cells_of(store) == ["zero", "timeout", "timeout", "three"]
    assert keys(store) == [UNIT.key]


def test_a_row_with_an_answer_keeps_it_unless_there_is_a_new_one(store: Store) -> None:
    """A second try that fails takes no answer away; one that succeeds takes its place."""
    committed(store)
    mend(store, {0: FAILED, 1: "one"})
    assert cells_of(store) == ["zero", "one", "timeout", "engine_error"]
    mend(store, {0: "a longer zero", 1: LATE}, attempt="third")
    assert cells_of(store) == ["a longer zero", "one", "timeout", "engine_error"]


def test_the_record_tells_what_was_done(store: Store) -> None:
    """Rejects are counted anew, tokens added, and each repair named with what it changed."""
    before = read_record(committed(store), UNIT.key)
    outcome = mend(store, {1: "one", 2: FAILED})
    made = {"run": "retry", "attempt": "second", "changes": CHANGES, "num_rows": 2}
    assert outcome.record == replace(
        before,
        attempt="second",
        rejects={"engine_error": 2},
        input_tokens=60,
        generated_tokens=18,
        body_sha256=outcome.record.body_sha256,
        repairs=(made,),
    )
    assert read_record(store, UNIT.key) == outcome.record
    mend(store, {2: "two", 3: "three"}, attempt="third", run="another")
    again = read_record(store, UNIT.key)
    assert again.rejects == {}
    assert again.repairs == (made, {**made, "run": "another", "attempt": "third"})


# Others at the same time.


def test_a_repair_between_reading_and_writing_is_kept(store: Store) -> None:
    """A repairer that finds the object changed puts its rows into what stands now."""
    committed(store)

    def other(number: int) -> None:
        if number == 1:
            mend(store, {1: "other one", 2: "other two", 3: LATE}, attempt="other")

    assert mend(Meddling(store, other), {2: FAILED, 3: "three"}).is_ours
    assert cells_of(store) == ["zero", "other one", "other two", "three"]
    assert repairs_of(store) == ["other", "second"]
    assert read_record(store, UNIT.key).rejects == {}


def test_repairers_at_once_lose_nothing(store: Store, root: str) -> None:
    """Of three that repair one unit at once each has its answer in it, and its repair recorded."""
    committed(store)
    together = Barrier(3)

    def race(row: int) -> Commit:
        other = open_store(root)
        failing = {position: LATE for position in (1, 2, 3) if position != row}
        together.wait()
        return mend(other, {row: f"row {row}", **failing}, attempt=f"attempt {row}")

    with ThreadPoolExecutor(3) as pool:
        assert all(outcome.is_ours for outcome in pool.map(race, (1, 2, 3)))
    assert cells_of(store) == ["zero", "row 1", "row 2", "row 3"]
    assert sorted(repairs_of(store)) == ["attempt 1", "attempt 2", "attempt 3"]
    made = read_record(store, UNIT.key)
    assert made.rejects == {}
    # Each repair's three rows, beside the four of the first run.
    assert (made.input_tokens, made.generated_tokens) == (130, 39)


def test_others_that_keep_changing_it_stop_the_repair(tmp_path: Path) -> None:
    """After some lost exchanges it is a RunFailed that names the object, which is theirs."""
    store = committed(open_store(str(tmp_path)))

    def other(number: int) -> None:
        mend(store, {1: f"other {number}"}, attempt=f"other {number}")

    message = refusal(RunFailed, lambda: mend(Meddling(store, other), {2: "two"}))
    assert f"{tmp_path}/{UNIT.key}" in message
    assert "keep changing it" in message
    assert "second" not in repairs_of(store)


def test_a_late_commit_of_a_repaired_unit_changes_nothing(store: Store) -> None:
    """A zombie of the first run that wakes after a repair finds the unit done."""
    committed(store)
    mend(store, {1: "one"})
    before = store.read(UNIT.key)
    zombie = commit(store, UNIT, rows_of(STANDING), record(UNIT, attempt="zombie"))
    assert not zombie.is_ours
    assert zombie.record.attempt == "second"
    assert store.read(UNIT.key) == before


# Lost replies and death.


@pytest.mark.parametrize("fault", Fault)
def test_a_repair_outlives_a_fault_of_the_network(stub_s3: StubS3, fault: Fault) -> None:
    """An exchange that is refused, cut or whose answer is lost is made once and known as ours."""
    committed(stub_s3.store)
    stub_s3.faults.append(fault)
    outcome = mend(stub_s3.store, {1: "one"})
    assert outcome == Commit(read_record(stub_s3.store, UNIT.key), is_ours=True)
    assert cells_of(stub_s3.store) == ["zero", "one", "timeout", "engine_error"]
    assert repairs_of(stub_s3.store) == ["second"]


def test_a_lost_reply_is_known_as_ours_below_a_later_repair(store: Store) -> None:
    """A repair whose answer was lost, and on which another was built, is not made twice."""
    committed(store)
    ours = {1: "one"}

    def lost(number: int) -> None:
        if number == 1:
            mend(store, ours, attempt="second")
            mend(store, {1: "a later one"}, attempt="other")

    outcome = mend(Meddling(store, lost), ours, attempt="second")
    assert outcome.is_ours
    assert repairs_of(store) == ["second", "other"]
    assert cells_of(store)[1] == "a later one"
    assert read_record(store, UNIT.key).input_tokens == 60


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash_at", range(3))
def test_a_retry_after_a_crash_repairs_the_rest(store: Store, crash_at: int, after: bool) -> None:
    """Wherever between its three steps a repairer dies, the next one ends with all answers."""
    committed(store)
    with pytest.raises(Crash):
        mend(CrashingStore(store, crash_at, after), {1: "one"}, attempt="dead")
    was_made = (crash_at, after) == (2, True)
    assert cells_of(store)[1] == ("one" if was_made else "engine_error")
    mend(store, {1: LATE, 2: "two"}, attempt="next")
    assert cells_of(store) == ["zero", "one" if was_made else "timeout", "two", "engine_error"]
    assert repairs_of(store) == (["dead", "next"] if was_made else ["next"])


def test_a_repair_has_no_other_steps(store: Store) -> None:
    """A repair calls the store three times: there is nowhere else to die."""
    watched = CrashingStore(committed(store))
    mend(watched, {1: "one"})
    assert watched.calls == ["info", "read", "put_if_match"]


def test_a_kill_at_any_line_leaves_the_old_or_the_new_object(tmp_path: Path) -> None:
    """Wherever a repairing process is killed the unit is whole, and the next repairer goes on."""
    number, killed, seen = 0, True, []
    while killed:
        store = committed(open_store(str(tmp_path / str(number))))
        dead = Repair("retry", "dead", CHANGES)
        killed = killed_at_line(number, repair, store, UNIT, rows_of({1: "one"}), dead)
        seen.append(cells_of(store)[1])
        assert mend(store, {1: LATE, 3: "three"}).is_ours
        expected = "timeout" if seen[-1] == "engine_error" else "one"
        assert cells_of(store) == ["zero", expected, "timeout", "three"]
        assert keys(store) == [UNIT.key]
        number += 1
    # Once a kill comes too late to undo the repair, so does every later one.
    assert seen == sorted(seen)
    assert set(seen) == {"engine_error", "one"}


def test_a_unit_that_is_gone_cannot_be_repaired(store: Store) -> None:
    """Where the object is not, nothing is made."""
    store.put_if_absent("data/other", b"")
    with pytest.raises(FileNotFoundError):
        mend(store, {1: "one"})
    assert keys(store) == ["data/other"]


def test_repairs_read_back_as_they_were_written(store: Store) -> None:
    """What a footer tells of repairs comes back equal, whatever they changed."""
    facts: UnitRecord = record(
        UNIT, repairs=({"run": "r", "attempt": "a", "changes": {"x": [1, None]}, "num_rows": 1},)
    )
    commit(store, UNIT, rows_of(STANDING), facts)
    assert read_record(store, UNIT.key).repairs == facts.repairs
