"""Nightly runs on an input that grows and changes: the output follows it, and no row is lost."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import DriverCrashed, Quiet, ScriptedExecutor, drive, job_over, write_corpus
from helpers.stores import Crash, CrashingStore, contents
from tokenmill.errors import ExitCode, RunFailed, UserError
from tokenmill.job.job import Job
from tokenmill.output.commit import Commit
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import PLAN_KEY
from tokenmill.output.success import SUCCESS_KEY, read_success
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.run.planning import prepare
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.in_process import InProcessExecution
from tokenmill.storage.base import ObjectInfo
from tokenmill.storage.local import LocalStore

FIRST = {"a.parquet": ["one", "two", "three"], "b.parquet": ["four", "five", "six"]}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", FIRST)


def nightly(corpus: Path, output: Path, **settings: Any) -> Job:
    """A job with these settings for its input."""
    keys = job_over(corpus, output)
    return Job.model_validate({**keys, "input": {**keys["input"], **settings}})


def following(corpus: Path, output: Path) -> Job:
    """A job that adds new shards and answers changed ones again."""
    return nightly(corpus, output, on_new_shard="add", on_changed_shard="redo")


def run_nightly(job: Job) -> Summary | None:
    return drive(job, LocalStore(job.output.path))


def answers(output: Path) -> list[tuple[str, int, str]]:
    """For each row its shard, its position and its answer."""
    rows = ds.dataset(output / "data", format="parquet").to_table().to_pylist()
    return sorted((row["source_file"], row["source_row"], row["generated_text"]) for row in rows)


def is_whole(output: Path) -> bool:
    opened = open_output(LocalStore(str(output)))
    return verify(opened.store, expected_output(opened), Level.INPUT).is_whole


def test_a_new_shard_is_added(corpus: Path, tmp_path: Path) -> None:
    """The second run answers only the new rows; existing objects are unchanged."""
    output = tmp_path / "out"
    run_nightly(following(corpus, output))
    before = contents(LocalStore(str(output)), "data")
    write_corpus(corpus, {"c/d.parquet": ["seven", "eight"]})
    summary = run_nightly(following(corpus, output))
    assert summary is not None and (summary.units, summary.rows) == (1, 2)
    assert summary.totals is not None and summary.totals.rows == 8
    after = contents(LocalStore(str(output)), "data")
    assert before.items() <= after.items()
    assert is_whole(output)
    assert run_nightly(following(corpus, output)) is None


def test_a_changed_shard_is_answered_again(corpus: Path, tmp_path: Path) -> None:
    """Its old answers are removed, also those of rows that are gone; other shards' are kept."""
    output = tmp_path / "out"
    run_nightly(following(corpus, output))
    kept = [row for row in answers(output) if row[0] != "a.parquet"]
    write_corpus(corpus, {"a.parquet": ["another"]})
    summary = run_nightly(following(corpus, output))
    assert summary is not None and summary.rows == 1
    fresh = following(corpus, tmp_path / "fresh")
    run_nightly(fresh)
    assert answers(output) == answers(tmp_path / "fresh")
    assert [row for row in answers(output) if row[0] != "a.parquet"] == kept
    assert is_whole(output)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a.parquet: the shard has changed since the plan was made"),
        ({"on_new_shard": "add"}, "a.parquet: the shard has changed since the plan was made"),
    ],
    ids=["by default", "new ones only"],
)
def test_a_change_that_the_job_does_not_follow_is_refused(
    corpus: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """The message names the shard, and the output is unchanged."""
    output = tmp_path / "out"
    run_nightly(nightly(corpus, output, on_new_shard="add"))
    before = contents(LocalStore(str(output)))
    write_corpus(corpus, {"a.parquet": ["another"], "c.parquet": ["new"]})
    if settings:
        with pytest.raises(UserError, match=message):
            run_nightly(nightly(corpus, output, **settings))
    else:
        # The input is not even listed, because the output is finished.
        assert run_nightly(nightly(corpus, output)) is None
    assert contents(LocalStore(str(output))) == before


def test_a_missing_shard_is_refused(corpus: Path, tmp_path: Path) -> None:
    """The answers of its rows are not removed silently."""
    output = tmp_path / "out"
    run_nightly(following(corpus, output))
    (corpus / "b.parquet").unlink()
    with pytest.raises(UserError, match=r"b.parquet: the shard has been deleted"):
        run_nightly(following(corpus, output))


def test_new_shards_are_left_out_by_default(corpus: Path, tmp_path: Path) -> None:
    """A finished output stays finished."""
    output = tmp_path / "out"
    run_nightly(nightly(corpus, output))
    write_corpus(corpus, {"c.parquet": ["new"]})
    assert run_nightly(nightly(corpus, output)) is None


def test_new_shards_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    """Another column type, or a name that clashes, is found before anything is planned."""
    output = tmp_path / "out"
    run_nightly(following(corpus, output))
    plan = (output / "_tokenmill" / "plan.parquet").read_bytes()
    pq.write_table(pa.table({"id": ["a text"], "text": ["x"]}), corpus / "c.parquet")
    with pytest.raises(UserError, match="column id"):
        run_nightly(following(corpus, output))
    (corpus / "c.parquet").unlink()
    write_corpus(corpus, {"a.pq": ["the same name"]})
    with pytest.raises(UserError, match="differ only in their suffix"):
        run_nightly(following(corpus, output))
    assert (output / "_tokenmill" / "plan.parquet").read_bytes() == plan
    assert read_success(LocalStore(str(output))) is not None


def test_bad_new_shards_may_be_skipped(corpus: Path, tmp_path: Path) -> None:
    """Readable new shards are run, and unreadable ones alone are no error."""
    output = tmp_path / "out"
    job = nightly(corpus, output, on_new_shard="add", on_bad_shard="skip")
    run_nightly(job)
    (corpus / "c.parquet").write_bytes(b"no Parquet")
    summary = run_nightly(job)
    assert summary is not None and summary.rows == 0 and summary.skipped_shards == ("c.parquet",)
    write_corpus(corpus, {"d.parquet": ["good"]})
    summary = run_nightly(job)
    assert summary is not None and summary.rows == 1


def test_a_new_shard_without_rows_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    """The plan is unchanged, and the output stays finished all the time."""
    output = tmp_path / "out"
    run_nightly(following(corpus, output))
    before = (output / "_tokenmill" / "plan.parquet").read_bytes()
    write_corpus(corpus, {"c.parquet": []})
    recorder = CrashingStore(LocalStore(str(output)))
    summary = drive(following(corpus, output), recorder)
    assert summary is not None and summary.rows == 0
    assert "delete" not in recorder.calls
    assert (output / "_tokenmill" / "plan.parquet").read_bytes() == before


def test_a_limit_excludes_new_shards(corpus: Path, tmp_path: Path) -> None:
    """The first rows of an input do not grow."""
    with pytest.raises(ValueError, match="limit cannot be combined with on_new_shard"):
        nightly(corpus, tmp_path / "out", on_new_shard="add", limit=2)


def test_following_changes_no_answer(corpus: Path, tmp_path: Path) -> None:
    """An output that was started without it can follow its input later."""
    output = tmp_path / "out"
    run_nightly(nightly(corpus, output))
    write_corpus(corpus, {"c.parquet": ["new"]})
    summary = run_nightly(following(corpus, output))
    assert summary is not None and summary.rows == 1


@pytest.mark.filterwarnings(
    "ignore:Exception in thread save-summary:pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_nightly_run_may_crash_at_every_call(corpus: Path, tmp_path: Path) -> None:
    """After a crash before or after each call to the store, the next run finishes the output.

    An output that is marked as finished is complete at every moment.
    """
    run_nightly(following(corpus, tmp_path / "before"))
    write_corpus(corpus, {"a.parquet": ["another"], "c.parquet": ["new", "newer", "newest"]})
    run_nightly(following(corpus, tmp_path / "expected"))
    expected = answers(tmp_path / "expected")

    def copy_of_before(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "before", tmp_path / name))

    recorder = CrashingStore(LocalStore(str(copy_of_before("whole"))))
    drive(following(corpus, tmp_path / "whole"), recorder)
    assert answers(tmp_path / "whole") == expected
    for number, name in enumerate(recorder.calls):
        for after in (False, True):
            output = copy_of_before(f"{number} {name} {after}")
            store = CrashingStore(LocalStore(str(output)), number, after)
            with pytest.raises((Crash, DriverCrashed)):
                drive(following(corpus, output), store)
            if (output / SUCCESS_KEY).exists() and answers(output) != expected:
                # The output is still that of the run before.
                assert answers(output) == answers(tmp_path / "before"), output.name
            run_nightly(following(corpus, output))
            assert answers(output) == expected, output.name
            assert is_whole(output)


def overtaken_by(other_driver: Callable[[], None]) -> ScriptedExecutor:
    """An executor that runs all units, and then another driver before the run can finish."""

    def around(execution: InProcessExecution, spec: RunSpec) -> Iterator[Commit]:
        yield from execution.commits(spec)
        other_driver()

    return ScriptedExecutor(around)


def test_two_runs_at_once_finish(corpus: Path, tmp_path: Path) -> None:
    """The second adds a shard and finishes first; the first then finishes with all rows."""
    job = following(corpus, tmp_path / "out")

    def second_run() -> None:
        write_corpus(corpus, {"c.parquet": ["new"]})
        summary = run_nightly(job)
        assert summary is not None and summary.exit_code == ExitCode.FINISHED

    summary = run_job(job, overtaken_by(second_run), Quiet())
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.totals is not None and summary.totals.rows == 7
    assert is_whole(tmp_path / "out")


class _Overtaking(LocalStore):
    """A store in which another run comes between the listing and the update of the plan."""

    other_run: Any = None

    def info(self, key: str) -> ObjectInfo:
        other_run, self.other_run = self.other_run, None
        if key == PLAN_KEY and other_run is not None:
            other_run()
        return super().info(key)


def test_no_unit_that_another_run_has_planned_is_lost(corpus: Path, tmp_path: Path) -> None:
    """The slower run extends the stored plan, including shards that its own listing lacks."""
    job = following(corpus, tmp_path / "out")
    run_nightly(job)
    write_corpus(corpus, {"c.parquet": ["seven"]})

    def other_run() -> None:
        write_corpus(corpus, {"d.parquet": ["eight"]})
        run_nightly(job)

    store = _Overtaking(job.output.path)
    store.other_run = other_run
    prepared = prepare(job, store, has_gpus=False)
    assert {unit.shard for unit in prepared.opened.plan.units} >= {"c.parquet", "d.parquet"}
    assert prepared.missing == ()


def test_the_run_that_adds_units_runs_them(corpus: Path, tmp_path: Path) -> None:
    """The first run ends well without them; the last one finishes the output."""
    job = following(corpus, tmp_path / "out")

    def stopped_run() -> None:
        write_corpus(corpus, {"c.parquet": ["new"]})
        with pytest.raises(RunFailed):
            run_job(job, ScriptedExecutor(_failing), Quiet())

    interface = Quiet()
    summary = run_job(job, overtaken_by(stopped_run), interface)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.totals is None
    assert any("Another run has added 1 unit to" in line for line in interface.lines)
    assert not (tmp_path / "out" / SUCCESS_KEY).exists()
    last = run_nightly(job)
    assert last is not None and last.rows == 1
    assert is_whole(tmp_path / "out")


def _failing(_execution: object, _spec: RunSpec) -> Iterator[Commit]:
    raise RunFailed("the machine is gone")
    yield
