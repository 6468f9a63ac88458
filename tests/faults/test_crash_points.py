"""Crashes at every call of the store in a whole run and a whole retry, and what follows.

The points are those that an undisturbed run makes, recorded: there is no list to be forgotten.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from helpers.inprocess import DriverCrashed, drive, drive_retry, job_over, write_corpus
from helpers.stores import Crash, CrashingStore, StubS3, keys
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import JOB_KEY
from tokenmill.output.record import read_record
from tokenmill.output.rejects import Selection
from tokenmill.output.success import read_success
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.plan.keys import PLAN_KEY
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore

# The thread that writes the summary of a stopped run crashes like the others.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception in thread save-summary:pytest.PytestUnhandledThreadExceptionWarning"
)

# Half of the requests fail; with another seed, others do.
FLAKY = {"source": "fake", "engine": {"error_rate": 0.5}}
SOUND = "model.engine.error_rate=0"
#: Columns with a row's result; the others say what it cost.
FATES = ["id", "generated_text", "error", "source_file", "source_row"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def rows_of(folder: Path) -> pa.Table:
    rows = ds.dataset(folder / "data", format="parquet").to_table()
    return rows.sort_by([("source_file", "ascending"), ("source_row", "ascending")])


def assert_whole(folder: Path) -> None:
    """Each input row is there once, proved from objects and input."""
    opened = open_output(LocalStore(str(folder)))
    assert verify(opened.store, expected_output(opened), Level.INPUT).findings == ()


def each_death(
    calls: list[str], begin: Callable[[Store], object], fresh: Callable[[str], Path]
) -> Iterator[Path]:
    """Folders in which a process crashed, before and after each call."""
    for number, name in enumerate(calls):
        for after in (False, True):
            folder = fresh(f"{'after' if after else 'before'} {number} {name}")
            store = CrashingStore(LocalStore(str(folder)), number, after)
            with pytest.raises((Crash, DriverCrashed)):
                begin(store)
            yield folder


def test_a_run_may_die_at_every_call(corpus: Path, tmp_path: Path) -> None:
    """If a driver crashes anywhere, the same job run again gives the rows of an undisturbed run."""
    whole = Job.model_validate(job_over(corpus, tmp_path / "whole"))
    recorder = CrashingStore(LocalStore(whole.output.path))
    summary = drive(whole, recorder)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    expected = rows_of(tmp_path / "whole")
    assert expected.num_rows == 8
    assert expected.column("error").null_count == 5
    for folder in each_death(
        recorder.calls,
        lambda store: drive(whole, store),
        lambda name: tmp_path / "deaths" / name,
    ):
        again = drive(whole, LocalStore(str(folder)))
        # None: it crashed after the last write, when the output was finished.
        assert again is None or again.exit_code == ExitCode.FINISHED
        assert rows_of(folder).equals(expected), folder.name
        assert_whole(folder)
        totals = read_success(LocalStore(str(folder)))
        assert totals is not None and totals.rows == 8


def test_a_retry_may_die_at_every_call(corpus: Path, tmp_path: Path) -> None:
    """Wherever a retry crashes the output is whole, and the next retry ends with all answers.

    What it had answered is not run again.
    """
    flaky = Job.model_validate(job_over(corpus, tmp_path / "flaky", model=FLAKY))
    drive(flaky, LocalStore(flaky.output.path))

    def copied(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "flaky", tmp_path / name))

    def retry(store: Store) -> object:
        return drive_retry(store, Selection(frozenset({"engine_error"})), SOUND)

    recorder = CrashingStore(LocalStore(str(copied("whole"))))
    before = rows_of(tmp_path / "whole")
    assert retry(recorder) is not None
    expected = rows_of(tmp_path / "whole")
    assert before.column("error").null_count < expected.column("error").null_count == 5
    for folder in each_death(recorder.calls, retry, copied):
        assert_whole(folder)
        store = LocalStore(str(folder))
        retry(store)
        assert_whole(folder)
        assert rows_of(folder).select(FATES).equals(expected.select(FATES)), folder.name
        for item in store.list("data"):
            assert len(read_record(store, item.key).repairs) <= 1, folder.name


def test_a_unit_costs_one_write_and_nothing_is_deleted(corpus: Path, stub_s3: StubS3) -> None:
    """On S3 a run puts each unit once, and five objects of its own; it deletes nothing."""
    data = job_over(corpus, stub_s3.store.url)
    summary = drive(Job.model_validate(data), stub_s3.store)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    units = [path for path in stub_s3.objects if "/data/" in path]
    assert len(units) == 5
    # The plan, the job, the run's events and its summary, the mark of success.
    assert stub_s3.requests.count("PUT") == len(units) + 5
    assert set(stub_s3.requests) <= {"PUT", "GET", "HEAD", "LIST"}


def test_a_resume_that_finds_all_done_writes_only_its_end(corpus: Path, stub_s3: StubS3) -> None:
    """A resume of a whole output without the mark of success writes no unit again."""
    job = Job.model_validate(job_over(corpus, stub_s3.store.url))
    drive(job, stub_s3.store)
    del stub_s3.objects["/bucket/out/_SUCCESS"]
    before = dict(stub_s3.objects)
    stub_s3.requests.clear()
    summary = drive(job, stub_s3.store)
    assert summary is not None and summary.units == 0
    # Its events, its summary, the mark.
    assert stub_s3.requests.count("PUT") == 3
    assert all(stub_s3.objects[path] == data for path, data in before.items())


def test_a_changed_job_may_die_while_it_takes_over(corpus: Path, tmp_path: Path) -> None:
    """Wherever a driver crashes that replaces a plan without results, the next one succeeds."""
    first = Job.model_validate(
        job_over(corpus, tmp_path / "first", prompt={"user": "First: {{ text }}"})
    )
    store = LocalStore(first.output.path)
    with pytest.raises(Crash):
        drive(first, CrashingStore(store, crash_at=5))
    # It crashed between its plan and its first commit.
    assert keys(store) == [JOB_KEY, PLAN_KEY]

    def planned(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "first", tmp_path / name))

    changed = Job.model_validate(job_over(corpus, tmp_path / "whole"))
    recorder = CrashingStore(LocalStore(str(planned("whole"))))
    drive(changed, recorder)
    for folder in each_death(recorder.calls, lambda store: drive(changed, store), planned):
        drive(changed, LocalStore(str(folder)))
        assert_whole(folder)
        assert rows_of(folder).equals(rows_of(tmp_path / "whole")), folder.name
