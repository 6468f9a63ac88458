"""Retry: rejected and truncated rows are answered again in place, and the change is recorded."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.inprocess import Quiet, drive, drive_retry, job_over, write_corpus
from helpers.stores import RacingStore, contents, refusal
from tokenmill.errors import ExitCode, OverBudget, RunFailed, UserError
from tokenmill.job.job import Job
from tokenmill.output.counts import Counts
from tokenmill.output.output import open_output
from tokenmill.output.record import UnitRecord, read_record
from tokenmill.output.rejects import Selection
from tokenmill.output.success import read_success
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.run.retry import retry_rejects
from tokenmill.stages.in_process import InProcessExecutor
from tokenmill.storage.local import LocalStore

# Half of the requests fail; with a rate of 0 they are all answered.
FLAKY = {"source": "fake", "engine": {"error_rate": 0.5}}
SOUND = "model.engine.error_rate=0"
FAILED = Selection(frozenset({"engine_error"}))
TEXTS = {"a.parquet": [*(f"text {n}" for n in range(9)), ""], "b.parquet": ["one", "two"]}


class World:
    """A finished output with rejects and truncated answers."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        corpus = write_corpus(folder / "corpus", TEXTS)
        self.folder = folder / "out"
        self.keys = job_over(
            corpus, self.folder, model=FLAKY, sampling={"max_tokens": 5}, **changes
        )
        self.store = LocalStore(str(self.folder))
        self.run()

    def run(self, **changes: Any) -> None:
        drive(Job.model_validate({**self.keys, **changes}), self.store)

    def rows(self) -> dict[tuple[str, int], dict[str, Any]]:
        table = pq.read_table(self.folder / "data")
        return {(row["source_file"], row["source_row"]): row for row in table.to_pylist()}

    def records(self) -> list[UnitRecord]:
        return [read_record(self.store, item.key) for item in self.store.list("data")]

    def success(self) -> Counts:
        totals = read_success(self.store)
        assert totals is not None
        return totals

    def assert_whole(self) -> None:
        opened = open_output(self.store)
        assert verify(opened.store, expected_output(opened), Level.INPUT).findings == ()


TASKS = [
    {"name": "one", "kind": "generate"},
    {"name": "two", "kind": "generate", "sampling": {"max_tokens": 4}},
]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sampling.max_tokens=9"], ["tasks.two.sampling.max_tokens"]),
        (["sampling.max_tokens=9", "tasks.two.sampling.max_tokens=9"], []),
        (["model.engine.error_rate=0"], []),
    ],
    ids=["the job's", "the task's too", "another key"],
)
def test_a_default_that_a_task_replaces_is_named(
    tmp_path: Path, overrides: list[str], told: list[str]
) -> None:
    """With the key that has an effect, unless that is set too."""
    world = World(tmp_path, tasks=TASKS)
    interface = Quiet()
    retry_rejects(world.store, Selection(None, True), overrides, InProcessExecutor(), interface)
    lines = [line for line in interface.lines if line.startswith("--set")]
    assert len(lines) == len(told)
    assert all(key in line for key, line in zip(told, lines, strict=True))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def error_class(row: dict[str, Any]) -> str | None:
    return None if row["error"] is None else row["error"]["class"]


def test_rejected_rows_get_answers_in_place(world: World) -> None:
    """Only the selected rows are run; other rows, and objects without any, are unchanged."""
    before, objects = world.rows(), contents(world.store, "data")
    failed = {key for key, row in before.items() if error_class(row) == "engine_error"}
    assert failed and len(failed) < len(before) - 1
    summary = drive_retry(world.store, FAILED, SOUND)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    after = world.rows()
    assert after.keys() == before.keys()
    for key, row in after.items():
        if key in failed:
            assert row["error"] is None and row["generated_text"]
        else:
            assert row == before[key]
    changed = {key for key, data in contents(world.store, "data").items() if data != objects[key]}
    units = {unit.key: unit for unit in open_output(world.store).plan.units}
    assert changed == {
        key
        for key, unit in units.items()
        if any((unit.shard, row) in failed for row in range(unit.first_row, unit.end_row))
    }
    world.assert_whole()
    assert world.success().rejects == {"empty_input": 1}


def test_a_retry_is_recorded(world: World) -> None:
    """The footer of each changed object has the run, the fields and the number of rows."""
    summary = drive_retry(world.store, FAILED, SOUND, "sampling.max_tokens=7")
    assert summary is not None
    repaired = [record for record in world.records() if record.repairs]
    assert repaired
    for record in repaired:
        (made,) = record.repairs
        assert made["run"] == summary.run
        assert made["changes"] == {"model.engine.error_rate": 0, "sampling.max_tokens": 7}
        assert 1 <= made["num_rows"] <= 2
        assert record.run != summary.run
    # The job of the output is unchanged.
    assert open_output(world.store).job.params[0].max_tokens == 5


def test_truncated_answers_become_complete(world: World) -> None:
    """With more tokens the truncated answers end by themselves."""
    before = world.rows()
    truncated = {key for key, row in before.items() if row["finish_reason"] == "length"}
    assert truncated
    only_truncated = Selection(frozenset({"timeout"}), truncated=True)
    drive_retry(world.store, only_truncated, "sampling.max_tokens=200")
    for key, row in world.rows().items():
        if key in truncated:
            assert row["finish_reason"] == "stop"
            assert row["num_generated_tokens"] > 5
        else:
            assert row == before[key]
    world.assert_whole()


def test_a_failed_retry_removes_no_answer(world: World) -> None:
    """Truncated answers are kept if the second try fails; rejects get the new reason."""
    before = world.rows()
    everything = Selection(truncated=True)
    drive_retry(world.store, everything, "model.engine.error_rate=1")
    for key, row in world.rows().items():
        if error_class(before[key]) is None:
            assert row == before[key]
        else:
            assert row["error"] is not None
    world.assert_whole()


def test_nothing_to_retry_changes_nothing(world: World) -> None:
    """If no row is selected, nothing runs and no object is written."""
    before = contents(world.store)
    assert drive_retry(world.store, Selection(frozenset({"timeout"})), SOUND) is None
    assert contents(world.store) == before


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("input.where=id > 3", "input.where"),
        ("input.limit=3", "input.limit"),
        ("input.keep=[]", "input.keep"),
        ("task={kind: generate, n: 2}", "task"),
    ],
)
def test_columns_and_input_cannot_change(world: World, override: str, word: str) -> None:
    """A setting that would change rows or columns of the output is refused by name."""
    before = contents(world.store)
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED, override))
    assert "--set" in message and word in message
    assert contents(world.store) == before


def test_an_unknown_override_is_refused(world: World) -> None:
    """The message names the nearest key."""
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED, "model.sauce=fake"))
    assert "model.sauce" in message and "source" in message


def test_a_folder_that_is_no_output_cannot_be_retried(tmp_path: Path) -> None:
    """A folder without a plan is a user error that names it."""
    store = LocalStore(str(tmp_path / "nowhere"))
    assert store.url in refusal(UserError, lambda: drive_retry(store, FAILED))


def test_an_output_whose_job_was_edited_is_refused(world: World) -> None:
    """The message names the field that differs, or the file if it is unreadable or missing."""
    path = world.folder / "_tokenmill" / "job.yaml"
    text = path.read_text()
    path.write_text(text.replace("max_tokens: 5", "max_tokens: 6"))
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED))
    assert "sampling.max_tokens" in message
    path.write_text("name: [")
    assert str(path) in refusal(UserError, lambda: drive_retry(world.store, FAILED))
    path.unlink()
    assert str(path) in refusal(UserError, lambda: drive_retry(world.store, FAILED))


def test_a_retry_has_its_own_budget(world: World) -> None:
    """The budget in the overrides decides whether the retry stops or finishes the output."""
    (world.folder / "_SUCCESS").unlink()
    with pytest.raises(OverBudget):
        drive_retry(world.store, FAILED, "model.engine.error_rate=1", "max_rejects=0")
    assert read_success(world.store) is None
    world.assert_whole()
    summary = drive_retry(world.store, FAILED, SOUND, "max_rejects=1")
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert world.success().rejects == {"empty_input": 1}


def test_an_unfinished_output_is_refused(world: World) -> None:
    """Nothing is answered, and the error says to run the job; after that the retry works."""
    (world.folder / "_SUCCESS").unlink()
    (world.folder / open_output(world.store).plan.units[0].key).unlink()
    before = contents(world.store)
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED, SOUND))
    assert f"1 of {len(open_output(world.store).plan.units)} units" in message
    assert "tokenmill run" in message
    assert contents(world.store) == before
    world.run()
    assert drive_retry(world.store, FAILED, SOUND) is not None
    world.assert_whole()


def test_a_unit_that_is_deleted_during_a_retry_fails_it(world: World) -> None:
    """The error names it, the output is not finished, and a run adds the unit."""
    (world.folder / "_SUCCESS").unlink()
    key = next(record.unit for record in world.records() if "engine_error" not in record.rejects)
    racing = RacingStore(world.store, lambda _: (world.folder / key).unlink(missing_ok=True))
    assert key in refusal(RunFailed, lambda: drive_retry(racing, FAILED, SOUND))
    assert read_success(world.store) is None
    world.run()
    world.assert_whole()


def test_the_summary_counts_the_rows_that_were_asked_again(world: World) -> None:
    """Rows, rejects and tokens are those of the retry; the totals are those of the output."""
    before = world.rows()
    failed = {key for key, row in before.items() if error_class(row) == "engine_error"}
    summary = drive_retry(world.store, FAILED, SOUND, "sampling.max_tokens=7")
    assert summary is not None
    again = [row for key, row in world.rows().items() if key in failed]
    assert (summary.rows, summary.rejected, summary.reused) == (len(failed), 0, 0)
    assert summary.input_tokens == sum(row["num_input_tokens"] for row in again) > 0
    assert summary.generated_tokens == sum(row["num_generated_tokens"] for row in again) > 0
    assert summary.totals == world.success()
    assert world.success().rows == len(before)
    failing = drive_retry(world.store, Selection(), "model.engine.error_rate=1")
    assert failing is not None
    assert (failing.units, failing.rows, failing.rejected) == (1, 1, 1)


def test_a_slow_retry_keeps_the_answers_of_a_faster_one(world: World) -> None:
    """If a second retry of the same rows ends first, a failure of the first removes no answer."""
    answered: list[dict[tuple[str, int], dict[str, Any]]] = []

    def overtake(number: int) -> None:
        if number == 1:
            drive_retry(world.store, FAILED, SOUND)
            answered.append(world.rows())

    drive_retry(RacingStore(world.store, overtake), FAILED, "model.engine.error_rate=1")
    assert [world.rows()] == answered
    assert world.success().rejects == {"empty_input": 1}
    world.assert_whole()
