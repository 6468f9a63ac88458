"""Nights over an input that grows and changes: one output that follows it, and nothing lost."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import DriverDied, Quiet, ScriptedExecutor, drive, job_over, write_corpus
from helpers.stores import Crash, CrashingStore, contents
from tokenmill.errors import ExitCode, RunFailed, UserError
from tokenmill.job.job import Job
from tokenmill.output.commit import Commit
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import PLAN_KEY, SUCCESS_KEY
from tokenmill.output.totals import read_success
from tokenmill.output.verify import Level, expected_of, verify
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
    """A job that follows its input as the settings say."""
    keys = job_over(corpus, output)
    return Job.model_validate({**keys, "input": {**keys["input"], **settings}})


def following(corpus: Path, output: Path) -> Job:
    return nightly(corpus, output, on_new_shard="add", on_changed_shard="redo")


def night(job: Job) -> Summary | None:
    return drive(job, LocalStore(job.output.path))


def answers(output: Path) -> list[tuple[str, int, str]]:
    """Each row's shard, place and answer."""
    rows = ds.dataset(output / "data", format="parquet").to_table().to_pylist()
    return sorted((row["source_file"], row["source_row"], row["generated_text"]) for row in rows)


def is_whole(output: Path) -> bool:
    opened = open_output(LocalStore(str(output)))
    return verify(opened.store, expected_of(opened), Level.INPUT).is_whole


def test_a_new_shard_is_added_and_what_stood_stays(corpus: Path, tmp_path: Path) -> None:
    """The second night runs the new rows alone; objects of the first keep their very bytes."""
    output = tmp_path / "out"
    night(following(corpus, output))
    before = contents(LocalStore(str(output)), "data")
    write_corpus(corpus, {"c/d.parquet": ["seven", "eight"]})
    summary = night(following(corpus, output))
    assert summary is not None and (summary.units, summary.rows) == (1, 2)
    assert summary.totals is not None and summary.totals.rows == 8
    after = contents(LocalStore(str(output)), "data")
    assert before.items() <= after.items()
    assert is_whole(output)
    assert night(following(corpus, output)) is None


def test_a_changed_shard_is_answered_anew(corpus: Path, tmp_path: Path) -> None:
    """Its former answers go, also those of rows that it has no more; the others' stay."""
    output = tmp_path / "out"
    night(following(corpus, output))
    kept = [row for row in answers(output) if row[0] != "a.parquet"]
    write_corpus(corpus, {"a.parquet": ["another"]})
    summary = night(following(corpus, output))
    assert summary is not None and summary.rows == 1
    fresh = following(corpus, tmp_path / "fresh")
    night(fresh)
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
def test_a_change_that_is_not_followed_is_refused_by_name(
    corpus: Path, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    """And nothing of the output is touched."""
    output = tmp_path / "out"
    night(nightly(corpus, output, on_new_shard="add"))
    before = contents(LocalStore(str(output)))
    write_corpus(corpus, {"a.parquet": ["another"], "c.parquet": ["new"]})
    if settings:
        with pytest.raises(UserError, match=message):
            night(nightly(corpus, output, **settings))
    else:
        # Without a look at the input: the output is finished.
        assert night(nightly(corpus, output)) is None
    assert contents(LocalStore(str(output))) == before


def test_a_shard_that_is_gone_is_refused(corpus: Path, tmp_path: Path) -> None:
    """Its rows' answers are not thrown away unasked."""
    output = tmp_path / "out"
    night(following(corpus, output))
    (corpus / "b.parquet").unlink()
    with pytest.raises(UserError, match=r"b.parquet: the shard is gone"):
        night(following(corpus, output))


def test_new_shards_are_left_out_unless_asked_for(corpus: Path, tmp_path: Path) -> None:
    """A finished output stays finished."""
    output = tmp_path / "out"
    night(nightly(corpus, output))
    write_corpus(corpus, {"c.parquet": ["new"]})
    assert night(nightly(corpus, output)) is None


def test_other_types_and_names_in_anothers_place_are_refused(corpus: Path, tmp_path: Path) -> None:
    """Before anything is planned."""
    output = tmp_path / "out"
    night(following(corpus, output))
    plan = (output / "_tokenmill" / "plan.parquet").read_bytes()
    pq.write_table(pa.table({"id": ["a text"], "text": ["x"]}), corpus / "c.parquet")
    with pytest.raises(UserError, match="column id"):
        night(following(corpus, output))
    (corpus / "c.parquet").unlink()
    write_corpus(corpus, {"a.pq": ["the same name"]})
    with pytest.raises(UserError, match="differ only in their suffix"):
        night(following(corpus, output))
    assert (output / "_tokenmill" / "plan.parquet").read_bytes() == plan
    assert read_success(LocalStore(str(output))) is not None


def test_bad_new_shards_may_be_skipped(corpus: Path, tmp_path: Path) -> None:
    """As in a first plan; good ones beside them are run, and bad ones alone are no error."""
    output = tmp_path / "out"
    job = nightly(corpus, output, on_new_shard="add", on_bad_shard="skip")
    night(job)
    (corpus / "c.parquet").write_bytes(b"no Parquet")
    summary = night(job)
    assert summary is not None and summary.rows == 0 and summary.skipped_shards == ("c.parquet",)
    write_corpus(corpus, {"d.parquet": ["good"]})
    summary = night(job)
    assert summary is not None and summary.rows == 1


def test_a_new_shard_without_rows_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    """The plan stands as it was, and the output is finished at every moment."""
    output = tmp_path / "out"
    night(following(corpus, output))
    before = (output / "_tokenmill" / "plan.parquet").read_bytes()
    write_corpus(corpus, {"c.parquet": []})
    recorder = CrashingStore(LocalStore(str(output)))
    summary = drive(following(corpus, output), recorder)
    assert summary is not None and summary.rows == 0
    assert "delete" not in recorder.calls
    assert (output / "_tokenmill" / "plan.parquet").read_bytes() == before


def test_the_first_rows_of_an_input_do_not_grow(corpus: Path, tmp_path: Path) -> None:
    """A limit and growth exclude each other."""
    with pytest.raises(ValueError, match="limit cannot be combined"):
        nightly(corpus, tmp_path / "out", on_new_shard="add", limit=2)


def test_following_changes_no_answer(corpus: Path, tmp_path: Path) -> None:
    """An output that was begun without it may follow its input later."""
    output = tmp_path / "out"
    night(nightly(corpus, output))
    write_corpus(corpus, {"c.parquet": ["new"]})
    summary = night(following(corpus, output))
    assert summary is not None and summary.rows == 1


@pytest.mark.filterwarnings(
    "ignore:Exception in thread leave:pytest.PytestUnhandledThreadExceptionWarning"
)
def test_a_night_may_die_at_every_call(corpus: Path, tmp_path: Path) -> None:
    """Before and after each call of a night that adds and redoes: the next one ends it.

    What is taken for finished is whole at every moment.
    """
    night(following(corpus, tmp_path / "before"))
    write_corpus(corpus, {"a.parquet": ["another"], "c.parquet": ["new", "newer", "newest"]})
    night(following(corpus, tmp_path / "expected"))
    expected = answers(tmp_path / "expected")

    def began(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "before", tmp_path / name))

    recorder = CrashingStore(LocalStore(str(began("whole"))))
    drive(following(corpus, tmp_path / "whole"), recorder)
    assert answers(tmp_path / "whole") == expected
    for number, name in enumerate(recorder.calls):
        for after in (False, True):
            output = began(f"{number} {name} {after}")
            store = CrashingStore(LocalStore(str(output)), number, after)
            with pytest.raises((Crash, DriverDied)):
                drive(following(corpus, output), store)
            if (output / SUCCESS_KEY).exists() and answers(output) != expected:
                # Still the former night's.
                assert answers(output) == answers(tmp_path / "before"), output.name
            night(following(corpus, output))
            assert answers(output) == expected, output.name
            assert is_whole(output)


def overtaken_by(meanwhile: Callable[[], None]) -> ScriptedExecutor:
    """Runs all units; then another driver of the same job comes, before the run can finish."""

    def around(execution: InProcessExecution, spec: RunSpec) -> Iterator[Commit]:
        yield from execution.commits(spec)
        meanwhile()

    return ScriptedExecutor(around)


def test_two_nights_at_once_end_well(corpus: Path, tmp_path: Path) -> None:
    """The second adds a shard and ends first; the first ends with the whole, too."""
    job = following(corpus, tmp_path / "out")

    def second_night() -> None:
        write_corpus(corpus, {"c.parquet": ["new"]})
        summary = night(job)
        assert summary is not None and summary.exit_code == ExitCode.FINISHED

    summary = run_job(job, overtaken_by(second_night), Quiet())
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.totals is not None and summary.totals.rows == 7
    assert is_whole(tmp_path / "out")


class _Overtaking(LocalStore):
    """A store in which another night comes between a look at the input and the plan's exchange."""

    other_night: Any = None

    def info(self, key: str) -> ObjectInfo:
        other_night, self.other_night = self.other_night, None
        if key == PLAN_KEY and other_night is not None:
            other_night()
        return super().info(key)


def test_no_unit_that_another_night_has_planned_is_lost(corpus: Path, tmp_path: Path) -> None:
    """Who is overtaken plans on top of what stands, also of shards that its listing has not."""
    job = following(corpus, tmp_path / "out")
    night(job)
    write_corpus(corpus, {"c.parquet": ["seven"]})

    def other_night() -> None:
        write_corpus(corpus, {"d.parquet": ["eight"]})
        night(job)

    store = _Overtaking(job.output.path)
    store.other_night = other_night
    prepared = prepare(job, store, has_gpus=False)
    assert {unit.shard for unit in prepared.opened.plan.units} >= {"c.parquet", "d.parquet"}
    assert prepared.missing == ()


def test_who_adds_units_runs_them(corpus: Path, tmp_path: Path) -> None:
    """The first night ends well with its own; the output is finished by who comes last."""
    job = following(corpus, tmp_path / "out")

    def stopped_night() -> None:
        write_corpus(corpus, {"c.parquet": ["new"]})
        with pytest.raises(RunFailed):
            run_job(job, ScriptedExecutor(_failing), Quiet())

    interface = Quiet()
    summary = run_job(job, overtaken_by(stopped_night), interface)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert summary.totals is None
    assert any("another run has added 1 unit to" in line for line in interface.said)
    assert not (tmp_path / "out" / SUCCESS_KEY).exists()
    last = night(job)
    assert last is not None and last.rows == 1
    assert is_whole(tmp_path / "out")


def _failing(_execution: object, _spec: RunSpec) -> Iterator[Commit]:
    raise RunFailed("the machine is gone")
    yield
