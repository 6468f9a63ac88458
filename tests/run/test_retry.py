"""Retry: rejected and cut rows again, in place, with what was changed on record."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, drive_retry, job_over, write_corpus
from helpers.stores import RacingStore, contents, refusal
from tokenmill.errors import ExitCode, OverBudget, RunFailed, UserError
from tokenmill.job.job import Job
from tokenmill.output.counts import Counts
from tokenmill.output.output import open_output
from tokenmill.output.record import UnitRecord, read_record
from tokenmill.output.rejects import Selection
from tokenmill.output.success import read_success
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.storage.local import LocalStore

# Half of the requests fail; with a rate of 0 they are all answered.
FLAKY = {"source": "fake", "engine": {"error_rate": 0.5}}
SOUND = "model.engine.error_rate=0"
FAILED = Selection(frozenset({"engine_error"}))
TEXTS = {"a.parquet": [*(f"text {n}" for n in range(9)), ""], "b.parquet": ["one", "two"]}


class World:
    """A finished output with rejects and cut answers."""

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


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def error_class(row: dict[str, Any]) -> str | None:
    return None if row["error"] is None else row["error"]["class"]


def test_rejected_rows_get_answers_in_their_places(world: World) -> None:
    """Only the chosen rows are run; all others, and units without such rows, stay bit for bit."""
    before, objects = world.rows(), contents(world.store, "data")
    failed = {place for place, row in before.items() if error_class(row) == "engine_error"}
    assert failed and len(failed) < len(before) - 1
    summary = drive_retry(world.store, FAILED, SOUND)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    after = world.rows()
    assert after.keys() == before.keys()
    for place, row in after.items():
        if place in failed:
            assert row["error"] is None and row["generated_text"]
        else:
            assert row == before[place]
    changed = {key for key, data in contents(world.store, "data").items() if data != objects[key]}
    units = {unit.key: unit for unit in open_output(world.store).plan.units}
    assert changed == {
        key
        for key, unit in units.items()
        if any((unit.shard, row) in failed for row in range(unit.first_row, unit.end_row))
    }
    world.assert_whole()
    assert world.success().rejects == {"empty_input": 1}


def test_what_was_changed_is_on_record(world: World) -> None:
    """Each footer of a changed object names the retry, the fields and how many rows it ran."""
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
    # The job that the output is of stays what it was.
    assert open_output(world.store).job.params[0].max_tokens == 5


def test_cut_answers_get_longer_ones(world: World) -> None:
    """With room for more tokens the truncated answers end by themselves."""
    before = world.rows()
    cut = {place for place, row in before.items() if row["finish_reason"] == "length"}
    assert cut
    nothing_else = Selection(frozenset({"timeout"}), truncated=True)
    drive_retry(world.store, nothing_else, "sampling.max_tokens=200")
    for place, row in world.rows().items():
        if place in cut:
            assert row["finish_reason"] == "stop"
            assert row["num_generated_tokens"] > 5
        else:
            assert row == before[place]
    world.assert_whole()


def test_a_retry_that_fails_takes_no_answer_away(world: World) -> None:
    """Cut answers whose second try ends in an error stay; rejects get the new reason."""
    before = world.rows()
    everything = Selection(truncated=True)
    drive_retry(world.store, everything, "model.engine.error_rate=1")
    for place, row in world.rows().items():
        if error_class(before[place]) is None:
            assert row == before[place]
        else:
            assert row["error"] is not None
    world.assert_whole()


def test_nothing_to_retry_changes_nothing(world: World) -> None:
    """Where no row is chosen there is no run, and not one object is written."""
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
    """What would change rows or columns of the output is refused by name, and nothing is run."""
    before = contents(world.store)
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED, override))
    assert "--set" in message and word in message
    assert contents(world.store) == before


def test_a_mistaken_override_is_refused(world: World) -> None:
    """A key that no job has is the user's mistake; the nearest one is named."""
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED, "model.sauce=fake"))
    assert "model.sauce" in message and "source" in message


def test_an_output_that_is_none_cannot_be_retried(tmp_path: Path) -> None:
    """A folder without a plan is the user's mistake."""
    store = LocalStore(str(tmp_path / "nowhere"))
    assert store.url in refusal(UserError, lambda: drive_retry(store, FAILED))


def test_an_output_whose_job_was_edited_is_refused(world: World) -> None:
    """A stored job that is not the plan's is named by what differs; a missing one too."""
    path = world.folder / "_tokenmill" / "job.yaml"
    text = path.read_text()
    path.write_text(text.replace("max_tokens: 5", "max_tokens: 6"))
    message = refusal(UserError, lambda: drive_retry(world.store, FAILED))
    assert "sampling.max_tokens" in message
    path.write_text("name: [")
    assert str(path) in refusal(UserError, lambda: drive_retry(world.store, FAILED))
    path.unlink()
    assert str(path) in refusal(UserError, lambda: drive_retry(world.store, FAILED))


def test_the_budget_of_a_retry_is_the_retrys_own(world: World) -> None:
    """A retry is given up, or finishes the output, by the budget that it is given."""
    (world.folder / "_SUCCESS").unlink()
    with pytest.raises(OverBudget):
        drive_retry(world.store, FAILED, "model.engine.error_rate=1", "max_rejects=0")
    assert read_success(world.store) is None
    world.assert_whole()
    summary = drive_retry(world.store, FAILED, SOUND, "max_rejects=1")
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert world.success().rejects == {"empty_input": 1}


def test_an_output_of_which_a_part_is_missing_is_mended_as_far_as_it_is(world: World) -> None:
    """Its rejects are answered, and then it is said that units are missing, which a run adds."""
    (world.folder / "_SUCCESS").unlink()
    lost = open_output(world.store).plan.units[0]
    (world.folder / lost.key).unlink()
    message = refusal(RunFailed, lambda: drive_retry(world.store, FAILED, SOUND))
    assert lost.key in message
    assert "engine_error" not in map(error_class, world.rows().values())
    world.run()
    world.assert_whole()


def test_a_retry_that_is_overtaken_by_another_keeps_its_answers(world: World) -> None:
    """Where a second retry of the same rows ends first, a failure of the first one takes no row."""
    answered: list[dict[tuple[str, int], dict[str, Any]]] = []

    def overtake(number: int) -> None:
        if number == 1:
            drive_retry(world.store, FAILED, SOUND)
            answered.append(world.rows())

    drive_retry(RacingStore(world.store, overtake), FAILED, "model.engine.error_rate=1")
    assert [world.rows()] == answered
    assert world.success().rejects == {"empty_input": 1}
    world.assert_whole()
