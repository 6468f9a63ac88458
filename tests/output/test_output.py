"""An output: whose it is, what is done, what is left, and whether all of it is there."""

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
    Vanishing,
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
from tokenmill.output.output import committed_keys, missing_units
from tokenmill.output.plan_file import (
    JOB_KEY,
    PLAN_KEY,
    SUCCESS_KEY,
    check_no_foreign_files,
    check_same_job,
    has_results,
    publish_plan,
    read_plan,
    replace_plan,
)
from tokenmill.output.totals import Totals, read_success, write_success
from tokenmill.output.verify import Expected, Level, require_whole, verify
from tokenmill.plan.plan import Plan, Unit, plan_to_bytes
from tokenmill.plan.units import UnitSize, plan_units
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

JOB = job()
OTHER_JOB = job({"sampling.max_tokens": 17, "prompt.user": "Sum up: {{ text }}"})
TOTALS = Totals(
    4, rows=10, filtered=1, rejects={"timeout": 1}, input_tokens=99, generated_tokens=40
)


def planned(of: Job = JOB, rows: int = 3) -> Plan:
    """A plan of two shards with 7 and 4 rows, not in the order of their names."""
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
    """Commit a unit of the plan, with other values for some fields of its record."""
    written = record(of, **{"fingerprint": PLAN.fingerprint} | facts)
    return commit(store, of, answers(of).slice(0, written.num_rows), written)


def proved(store: Store, plan: Plan = PLAN) -> Totals:
    """The totals of the output that the store holds, once its footers prove that it is whole."""
    source = Source(store, plan.schema, None)
    expected = Expected(plan, answers(PLAN.units[0]).schema, (), source)
    return require_whole(verify(store, expected, Level.FOOTERS))


def commit_all(store: Store) -> None:
    for unit in PLAN.units:
        commit_unit(store, unit)


# Whose output it is.


def test_a_new_output_has_no_plan(store: Store) -> None:
    """Where nothing was ever written there is no plan, no result, and nothing in the way."""
    assert read_plan(store) is None
    assert not has_results(store)
    assert read_success(store) is None
    check_no_foreign_files(store)


def test_a_published_plan_stands(store: Store, root: str) -> None:
    """A plan and the resolved job are there for every later driver, as they were made."""
    assert publish_plan(store, PLAN, JOB) == PLAN
    assert read_plan(open_store(root)) == PLAN
    assert keys(store) == [JOB_KEY, PLAN_KEY]
    text = store.read(JOB_KEY).decode()
    assert JOB.fingerprint in text.splitlines()[0]
    assert Job.model_validate(yaml.safe_load(text)).fingerprint == JOB.fingerprint


def test_the_second_driver_gets_the_first_ones_plan(store: Store) -> None:
    """A plan of the same job that was cut in another way gives way to the one that stands."""
    publish_plan(store, PLAN, JOB)
    assert publish_plan(store, planned(rows=2), JOB) == PLAN
    assert read_plan(store) == PLAN


def test_drivers_that_publish_at_once_get_one_plan(store: Store, root: str) -> None:
    """Of drivers whose plans differ in their cut one wins, and all of them run its plan."""
    plans = [planned(rows=rows) for rows in (1, 2, 3, 4)]
    together = Barrier(len(plans))

    def drive(plan: Plan) -> Plan:
        together.wait()
        return publish_plan(open_store(root), plan, JOB)

    with ThreadPoolExecutor(len(plans)) as pool:
        outcomes = list(pool.map(drive, plans))
    standing = read_plan(store)
    assert standing in plans
    assert outcomes == [standing] * len(plans)


def test_a_driver_of_another_job_changes_nothing(store: Store) -> None:
    """A job that finds another's plan is refused, and plan and job stay as they are."""
    publish_plan(store, PLAN, JOB)
    before = contents(store)
    message = refusal(UserError, lambda: publish_plan(store, planned(OTHER_JOB), OTHER_JOB))
    assert store.url in message
    assert contents(store) == before


@pytest.mark.parametrize("crash_at", [0, 1])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_driver_that_dies_leaves_a_whole_plan_or_none(
    store: Store, crash_at: int, after: bool
) -> None:
    """Wherever a driver dies while it publishes, the next one ends with one plan and the job."""
    with pytest.raises(Crash):
        publish_plan(CrashingStore(store, crash_at, after), PLAN, JOB)
    left = read_plan(store)
    assert left in (None, PLAN)
    retried = planned(rows=2)
    assert publish_plan(store, retried, JOB) == (left or retried)
    assert keys(store) == [JOB_KEY, PLAN_KEY]


@pytest.mark.parametrize("fault", Fault)
def test_a_plan_is_published_over_a_bad_network(stub_s3: StubS3, fault: Fault) -> None:
    """A plan whose PUT is refused, cut or never answered stands once, as it was made."""
    stub_s3.faults.append(fault)
    assert publish_plan(stub_s3.store, PLAN, JOB) == PLAN
    assert read_plan(stub_s3.store) == PLAN


def test_a_plan_that_was_removed_meanwhile_may_be_tried_again(tmp_path: Path) -> None:
    """A plan that is there for the PUT and gone for the read is a RunFailed that names it."""
    message = refusal(RunFailed, lambda: publish_plan(Vanishing(str(tmp_path)), PLAN, JOB))
    assert f"{tmp_path}/{PLAN_KEY}" in message


@pytest.mark.parametrize("body", [b"", b"PAR1", plan_to_bytes(PLAN)[:-20]])
def test_a_plan_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, body: bytes) -> None:
    """Something else under the plan's name is a UserError that names it, and stays."""
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
def test_another_job_is_refused_by_what_differs(
    tmp_path: Path, changes: dict[str, Any], names: str
) -> None:
    """The refusal names the output and every field that differs, and only those."""
    store = open_store(str(tmp_path))
    message = refusal(UserError, lambda: check_same_job(store, PLAN, job(changes)))
    assert str(tmp_path) in message
    assert f"these differ: {names}. " in message


@pytest.mark.parametrize(
    "changes", [{}, {"name": "another"}, {"units": {"rows": 5}}, {"model.replicas": 4}]
)
def test_what_changes_no_answer_is_the_same_job(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A job that differs in its name, its units' size or its replicas may go on."""
    check_same_job(open_store(str(tmp_path)), PLAN, job(changes))


@pytest.mark.parametrize("key", ["notes.txt", "deep/down/part-0.parquet", SUCCESS_KEY])
def test_a_folder_with_other_files_is_refused(store: Store, key: str) -> None:
    """A folder that is not empty and has no plan is a UserError that names folder and file."""
    store.put_if_absent(key, b"1")
    message = refusal(UserError, lambda: check_no_foreign_files(store))
    assert store.url in message and key in message


def test_a_plan_without_results_may_be_replaced(store: Store) -> None:
    """A job that was changed before anything was committed takes the place of plan and job."""
    publish_plan(store, PLAN, JOB)
    assert not has_results(store)
    other = planned(OTHER_JOB)
    assert replace_plan(store, other, OTHER_JOB) == read_plan(store) == other
    assert OTHER_JOB.fingerprint in store.read(JOB_KEY).decode()


def test_the_first_commit_is_a_result(store: Store) -> None:
    """One committed unit is enough for an output to have results."""
    publish_plan(store, PLAN, JOB)
    commit_unit(store, PLAN.units[-1])
    assert has_results(store)


# What is done, and what is left.


def test_a_later_driver_finds_what_is_missing(store: Store, root: str) -> None:
    """After any commits, in any order, the rest is missing, in the plan's order, until all is."""
    publish_plan(store, PLAN, JOB)
    left = list(PLAN.units)
    assert len(left) == 5
    for unit in (left[3], left[0], left[4], left[2], left[1]):
        commit_unit(store, unit)
        left.remove(unit)
        later = open_store(root)
        committed = committed_keys(later, PLAN)
        assert committed == {unit.key for unit in PLAN.units} - {unit.key for unit in left}
        assert missing_units(PLAN, committed) == tuple(left)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("crash_at", range(5))
def test_a_driver_that_died_leaves_the_rest_to_the_next(
    store: Store, crash_at: int, after: bool
) -> None:
    """Wherever between commits a driver dies, the next one runs what is missing, no unit twice."""
    with pytest.raises(Crash):
        commit_all(CrashingStore(store, crash_at, after))
    missing = missing_units(PLAN, committed_keys(store, PLAN))
    assert missing == PLAN.units[crash_at + after :]
    assert all(commit_unit(store, unit).is_ours for unit in missing)
    assert proved(store).rows == PLAN.num_rows


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("data/notes.txt", "not written by tokenmill"),
        ("data/a/part-0.parquet", "not written by tokenmill"),
        (planned(rows=2).units[1].key, "of another plan"),
    ],
)
def test_foreign_objects_among_the_results_are_refused(store: Store, key: str, word: str) -> None:
    """A file of another tool, or a unit of another plan, is a UserError that names it."""
    commit_unit(store, PLAN.units[0])
    store.put_if_absent(key, b"1")
    message = refusal(UserError, lambda: committed_keys(store, PLAN))
    assert f"{store.url}/{key} is {word}" in message


# Whether all of it is there.


def test_a_whole_output_is_verified_and_counted(store: Store) -> None:
    """The totals are the sums over all units' records, whichever run made them."""
    facts = [
        {"rejects": {"empty_input": 2}},
        {"num_rows": 1, "num_filtered": 2, "run": "another-run"},
        {"input_tokens": 0, "generated_tokens": 1},
        {"num_rows": 0, "num_filtered": 3},
        {},
    ]
    for unit, changes in zip(PLAN.units, facts, strict=True):
        commit_unit(store, unit, **changes)
    totals = proved(store)
    assert totals == Totals(
        5, rows=6, filtered=5, rejects={"empty_input": 2}, input_tokens=120, generated_tokens=49
    )
    assert totals.rows + totals.filtered == PLAN.num_rows
    assert totals.reject_rate == 2 / 6


def test_an_output_of_nothing_is_whole(store: Store) -> None:
    """A plan without units is verified, and its reject rate is zero."""
    empty = Plan("corpus", JOB.fingerprint, JOB.answer_fields, PLAN.schema, units=())
    totals = proved(store, empty)
    assert totals == Totals(0, 0, 0, {}, 0, 0)
    assert totals.reject_rate == 0


def test_missing_units_are_left_to_the_next_run(store: Store) -> None:
    """An output without two of its units is a RunFailed with their number and the first one."""
    for unit in (PLAN.units[0], PLAN.units[2], PLAN.units[4]):
        commit_unit(store, unit)
    message = refusal(RunFailed, lambda: proved(store))
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
    ids=["a row lost", "a row doubled", "a filtered row lost", "another job", "another unit"],
)
def test_an_object_that_does_not_fit_the_plan_stops_the_run(
    store: Store, facts: dict[str, Any]
) -> None:
    """A unit whose object does not account for just its rows is a UserError that names it."""
    wrong = PLAN.units[1]
    commit_unit(store, wrong, **facts)
    for unit in PLAN.units:
        if unit != wrong:
            commit_unit(store, unit)
    assert f"{store.url}/{wrong.key}" in refusal(UserError, lambda: proved(store))


def test_a_cut_off_object_stops_the_run(store: Store) -> None:
    """An object that another tool cut short is found by the verification, which names it."""
    commit_all(store)
    cut = PLAN.units[2].key
    store.replace(cut, store.read(cut)[:-1])
    assert f"{store.url}/{cut}" in refusal(UserError, lambda: proved(store))


# When it is finished.


def test_a_finished_output_tells_its_totals(store: Store, root: str) -> None:
    """The totals that the last run wrote are there for every later one; they may be renewed."""
    write_success(store, Totals(1, 2, 3, {"timeout": 4}, 5, 6))
    write_success(store, TOTALS)
    assert read_success(open_store(root)) == TOTALS
    assert keys(store) == [SUCCESS_KEY]


@pytest.mark.parametrize(
    "body", [b"", b"done\n", b"\xff", b"{}", b"null", b"[1, 2]", b'{"units": 4}', b'"text"']
)
def test_another_tools_marker_does_not_finish_an_output(tmp_path: Path, body: bytes) -> None:
    """A _SUCCESS that is not ours says nothing; ours takes its place."""
    store = open_store(str(tmp_path))
    store.put_if_absent(SUCCESS_KEY, body)
    assert read_success(store) is None
    write_success(store, TOTALS)
    assert read_success(store) == TOTALS
