"""An output: which job it belongs to, which units are committed, and whether it is whole."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest
import yaml
from helpers.factories import job, shard
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
)
from tokenmill.errors import RunFailed, UserError
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.commit import Commit, commit
from tokenmill.output.counts import Counts
from tokenmill.output.output import committed_keys, has_results, missing_units
from tokenmill.output.plan_file import (
    JOB_KEY,
    check_no_foreign_files,
    check_same_job,
    publish_plan,
    read_plan,
    replace_plan,
)
from tokenmill.output.success import SUCCESS_KEY, read_success, write_success
from tokenmill.output.verify import ExpectedOutput, Level, require_whole, verify
from tokenmill.plan.keys import PLAN_KEY
from tokenmill.plan.plan import Plan, Unit, plan_to_bytes
from tokenmill.plan.units import UnitSize, plan_units
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

JOB = job()
OTHER_JOB = job({"sampling.max_tokens": 17, "prompt.user": "Sum up: {{ text }}"})
TOTALS = Counts(
    4, rows=10, filtered=1, rejects={"timeout": 1}, input_tokens=99, generated_tokens=40
)


def planned(of: Job = JOB, rows: int = 3) -> Plan:
    """A plan of two shards with 7 and 4 rows, not sorted by name."""
    shards = [shard("b/c.parquet", 7), shard("a.parquet", 4)]
    return Plan(
        input_url="corpus",
        fingerprint=of.fingerprint,
        answer_fields=of.answer_fields,
        schema=pa.schema([("text", pa.string())]),
        units=plan_units(shards, UnitSize(rows=rows), 10),
    )


PLAN = planned()


def commit_unit(store: Store, of: Unit, **facts: Any) -> Commit:
    """Commit a unit of the plan, with some fields of its record changed."""
    written = record(of, **{"fingerprint": PLAN.fingerprint} | facts)
    return commit(store, of, answers(of).slice(0, written.num_rows), written)


def verified(store: Store, plan: Plan = PLAN) -> Counts:
    """Verify the output by its footers and return its totals."""
    source = Source(store, plan.schema, None)
    expected = ExpectedOutput(plan, answers(PLAN.units[0]).schema, (), source)
    return require_whole(verify(store, expected, Level.FOOTERS))


def commit_all(store: Store) -> None:
    for unit in PLAN.units:
        commit_unit(store, unit)


# Which job an output belongs to.


def test_a_new_output_has_no_plan(store: Store) -> None:
    """An empty folder has no plan and no results, and nothing in it prevents a run."""
    assert read_plan(store) is None
    assert not has_results(store)
    assert read_success(store) is None
    check_no_foreign_files(store)


def test_a_published_plan_can_be_read_by_others(store: Store, root: str) -> None:
    """Later drivers read the plan and the resolved job as they were written."""
    assert publish_plan(store, PLAN, JOB) == (PLAN, True)
    assert read_plan(open_store(root)) == PLAN
    assert keys(store) == [JOB_KEY, PLAN_KEY]
    text = store.read(JOB_KEY).decode()
    assert JOB.fingerprint in text.splitlines()[0]
    assert Job.model_validate(yaml.safe_load(text)).fingerprint == JOB.fingerprint


def test_a_second_driver_uses_the_existing_plan(store: Store) -> None:
    """If a plan of the same job exists, another one with other units is discarded."""
    publish_plan(store, PLAN, JOB)
    assert publish_plan(store, planned(rows=2), JOB) == (PLAN, False)
    assert read_plan(store) == PLAN


def test_concurrent_drivers_use_one_plan(store: Store, root: str) -> None:
    """If drivers publish different plans at the same time, one wins and all use its plan."""
    plans = [planned(rows=rows) for rows in (1, 2, 3, 4)]
    start = Barrier(len(plans))

    def drive(plan: Plan) -> Plan:
        start.wait()
        return publish_plan(open_store(root), plan, JOB)[0]

    with ThreadPoolExecutor(len(plans)) as pool:
        outcomes = list(pool.map(drive, plans))
    existing = read_plan(store)
    assert existing in plans
    assert outcomes == [existing] * len(plans)


def test_a_driver_of_another_job_changes_nothing(store: Store) -> None:
    """A job that finds the plan of another job is refused; plan and job are not changed."""
    publish_plan(store, PLAN, JOB)
    before = contents(store)
    message = refusal(UserError, lambda: publish_plan(store, planned(OTHER_JOB), OTHER_JOB))
    assert store.url in message
    assert contents(store) == before


@pytest.mark.parametrize("crash_at", [0, 1])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crashed_driver_leaves_a_whole_plan_or_none(
    store: Store, crash_at: int, after: bool
) -> None:
    """Wherever a driver crashes while it publishes, the next one ends with a plan and the job."""
    with pytest.raises(Crash):
        publish_plan(CrashingStore(store, crash_at, after), PLAN, JOB)
    existing = read_plan(store)
    assert existing in (None, PLAN)
    retried = planned(rows=2)
    assert publish_plan(store, retried, JOB)[0] == (existing or retried)
    assert keys(store) == [JOB_KEY, PLAN_KEY]


@pytest.mark.parametrize("fault", Fault)
def test_publishing_a_plan_survives_a_network_fault(stub_s3: StubS3, fault: Fault) -> None:
    """If the plan's PUT is refused, cut off or its reply is lost, the plan is still written."""
    stub_s3.faults.append(fault)
    assert publish_plan(stub_s3.store, PLAN, JOB)[0] == PLAN
    assert read_plan(stub_s3.store) == PLAN


def test_a_plan_that_is_deleted_while_it_is_published_raises_run_failed() -> None:
    """If the plan exists at the PUT but not at the read, `RunFailed` names it."""
    store = VanishingStore()
    message = refusal(RunFailed, lambda: publish_plan(store, PLAN, JOB))
    assert f"{store.url}/{PLAN_KEY}" in message


@pytest.mark.parametrize("body", [b"", b"PAR1", plan_to_bytes(PLAN)[:-20]])
def test_a_damaged_plan_is_a_user_error(tmp_path: Path, body: bytes) -> None:
    """An object at the plan's key that is no plan is a UserError; it is not changed."""
    store = open_store(str(tmp_path))
    store.put_if_absent(PLAN_KEY, body)
    for operation in (lambda: read_plan(store), lambda: publish_plan(store, PLAN, JOB)):
        assert f"{tmp_path}/{PLAN_KEY}" in refusal(UserError, operation)
    assert contents(store) == {PLAN_KEY: body}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"sampling.max_tokens": 17}, "sampling.max_tokens"),
        ({"prompt.system": "Be brief."}, "prompt.system"),
        (
            {"prompt.user": "{{ title }}", "input.limit": 5, "sampling.max_tokens": 17},
            "input.limit, prompt.user, sampling.max_tokens",
        ),
    ],
)
def test_the_error_for_another_job_names_what_differs(
    tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    """The error names the output and exactly the fields that differ."""
    store = open_store(str(tmp_path))
    message = refusal(UserError, lambda: check_same_job(store, PLAN, job(changes)))
    assert str(tmp_path) in message
    assert f"these fields differ: {names}. " in message


@pytest.mark.parametrize(
    "changes", [{}, {"name": "another"}, {"units": {"rows": 5}}, {"model.replicas": 4}]
)
def test_a_field_that_changes_no_answer_may_differ(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The job may change its name, its unit size and its replicas."""
    check_same_job(open_store(str(tmp_path)), PLAN, job(changes))


@pytest.mark.parametrize("key", ["notes.txt", "deep/down/part-0.parquet", SUCCESS_KEY])
def test_a_folder_with_other_files_is_refused(store: Store, key: str) -> None:
    """A folder with files but without a plan is a UserError that names folder and file."""
    store.put_if_absent(key, b"1")
    message = refusal(UserError, lambda: check_no_foreign_files(store))
    assert store.url in message and key in message


def test_a_plan_without_results_may_be_replaced(store: Store) -> None:
    """Before anything is committed, a changed job may replace plan and job."""
    publish_plan(store, PLAN, JOB)
    assert not has_results(store)
    other = planned(OTHER_JOB)
    assert replace_plan(store, other, OTHER_JOB) == read_plan(store) == other
    assert OTHER_JOB.fingerprint in store.read(JOB_KEY).decode()


def test_one_committed_unit_is_a_result(store: Store) -> None:
    """An output has results as soon as any unit is committed."""
    publish_plan(store, PLAN, JOB)
    commit_unit(store, PLAN.units[-1])
    assert has_results(store)


# Committed and missing units.


def test_a_later_driver_finds_the_missing_units(store: Store, root: str) -> None:
    """After each commit, in any order, the other units are missing, in the plan's order."""
    publish_plan(store, PLAN, JOB)
    missing = list(PLAN.units)
    assert len(missing) == 5
    for unit in (missing[3], missing[0], missing[4], missing[2], missing[1]):
        commit_unit(store, unit)
        missing.remove(unit)
        later = open_store(root)
        committed = committed_keys(later, PLAN)
        assert committed == {unit.key for unit in PLAN.units} - {unit.key for unit in missing}
        assert missing_units(PLAN, committed) == tuple(missing)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash_at", range(5))
def test_the_next_driver_finishes_what_a_crashed_one_left(
    store: Store, crash_at: int, after: bool
) -> None:
    """Wherever a driver crashes, the next one runs the missing units, and none twice."""
    with pytest.raises(Crash):
        commit_all(CrashingStore(store, crash_at, after))
    missing = missing_units(PLAN, committed_keys(store, PLAN))
    assert missing == PLAN.units[crash_at + after :]
    assert all(commit_unit(store, unit).is_ours for unit in missing)
    assert verified(store).rows == PLAN.num_rows


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("data/notes.txt", "was not written by tokenmill"),
        ("data/a/part-0.parquet", "was not written by tokenmill"),
        (planned(rows=2).units[1].key, "belongs to another plan"),
    ],
)
def test_a_foreign_object_below_data_is_refused(store: Store, key: str, word: str) -> None:
    """A file of another tool or a unit of another plan is a UserError that names it."""
    commit_unit(store, PLAN.units[0])
    store.put_if_absent(key, b"1")
    message = refusal(UserError, lambda: committed_keys(store, PLAN))
    assert f"{store.url}/{key} {word}" in message


# Whether an output is whole.


def test_a_whole_output_is_verified_and_counted(store: Store) -> None:
    """The totals are the sums over the records of all units, of all runs."""
    records = [
        {"rejects": {"empty_input": 2}},
        {"num_rows": 1, "num_filtered": 2, "run": "another-run"},
        {"input_tokens": 0, "generated_tokens": 1},
        {"num_rows": 0, "num_filtered": 3},
        {},
    ]
    for unit, changes in zip(PLAN.units, records, strict=True):
        commit_unit(store, unit, **changes)
    totals = verified(store)
    assert totals == Counts(
        5, rows=6, filtered=5, rejects={"empty_input": 2}, input_tokens=120, generated_tokens=49
    )
    assert totals.rows + totals.filtered == PLAN.num_rows
    assert totals.reject_rate == 2 / 6


def test_an_output_without_units_is_whole(store: Store) -> None:
    """A plan without units has nothing to find, and a reject rate of 0."""
    empty = Plan("corpus", JOB.fingerprint, JOB.answer_fields, PLAN.schema, units=())
    totals = verified(store, empty)
    assert totals == Counts(0, 0, 0, {}, 0, 0)
    assert totals.reject_rate == 0


def test_missing_units_raise_run_failed(store: Store) -> None:
    """The error says how many units are missing and names the first."""
    for unit in (PLAN.units[0], PLAN.units[2], PLAN.units[4]):
        commit_unit(store, unit)
    message = refusal(RunFailed, lambda: verified(store))
    assert f"2 units are missing, first {PLAN.units[1].key}" in message


@pytest.mark.parametrize(
    "facts",
    [
        {"num_rows": 2},
        {"num_filtered": 1},
        {"num_rows": 1, "num_filtered": 1},
        {"fingerprint": OTHER_JOB.fingerprint},
        {"unit": PLAN.units[0].key},
    ],
    ids=["lost row", "doubled row", "lost filtered row", "another job", "another unit"],
)
def test_an_object_that_contradicts_the_plan_stops_the_run(
    store: Store, facts: dict[str, Any]
) -> None:
    """An object that does not account for exactly the unit's rows is a UserError."""
    wrong = PLAN.units[1]
    commit_unit(store, wrong, **facts)
    for unit in PLAN.units:
        if unit != wrong:
            commit_unit(store, unit)
    assert f"{store.url}/{wrong.key}" in refusal(UserError, lambda: verified(store))


def test_a_truncated_object_stops_the_run(store: Store) -> None:
    """Verification finds an object that was cut short, and names it."""
    commit_all(store)
    cut = PLAN.units[2].key
    store.replace(cut, store.read(cut)[:-1])
    assert f"{store.url}/{cut}" in refusal(UserError, lambda: verified(store))


# Finished outputs.


def test_a_finished_output_holds_its_totals(store: Store, root: str) -> None:
    """`_SUCCESS` holds the totals of the last run; another run may overwrite them."""
    write_success(store, Counts(1, 2, 3, {"timeout": 4}, 5, 6))
    write_success(store, TOTALS)
    assert read_success(open_store(root)) == TOTALS
    assert keys(store) == [SUCCESS_KEY]


@pytest.mark.parametrize(
    "body", [b"", b"done\n", b"\xff", b"{}", b"null", b"[1, 2]", b'{"units": 4}', b'"text"']
)
def test_a_marker_of_another_tool_does_not_count(tmp_path: Path, body: bytes) -> None:
    """A `_SUCCESS` that is not ours does not finish an output, and ours overwrites it."""
    store = open_store(str(tmp_path))
    store.put_if_absent(SUCCESS_KEY, body)
    assert read_success(store) is None
    write_success(store, TOTALS)
    assert read_success(store) == TOTALS
