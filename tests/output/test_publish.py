"""The pointer, which names the output that readers use: publishing, rolling back, races."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import StubS3
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.output.counts import Counts
from tokenmill.output.output import open_output
from tokenmill.output.publish import Pointer, publish, read_pointer
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from typer.testing import CliRunner

TOTALS = Counts(1, 8, 0, {"empty": 3}, 10, 10)


@pytest.fixture
def dated(tmp_path: Path) -> dict[str, Path]:
    """The folders of two finished outputs, by date."""
    outputs = {}
    for day in ("2026-01-30", "2026-01-31"):
        write_corpus(tmp_path / "in" / f"dt={day}")
        run_date(tmp_path, day)
        outputs[day] = tmp_path / "out" / f"dt={day}"
    return outputs


def run_date(tmp_path: Path, day: str, **changes: Any) -> Any:
    """Run the job for a date."""
    keys = job_over(tmp_path / "in" / "dt={date}", tmp_path / "out" / "dt={date}")
    job = Job.model_validate({**keys, "date": day, **changes})
    return drive(job, LocalStore(job.output.path))


def pointer_at(path: Path) -> Pointer:
    return read_pointer(LocalStore(str(path.parent)), path.name)


def test_a_finished_output_is_published(tmp_path: Path, dated: dict[str, Path]) -> None:
    """The pointer names the output, its date and its counts, and the output before it."""
    current = tmp_path / "readers" / "current.json"
    for day in dated:
        output = {"path": str(tmp_path / "again" / "dt={date}"), "publish": str(current)}
        run_date(tmp_path, day, output=output)
        pointer = pointer_at(current)
        assert pointer.output == str(tmp_path / "again" / f"dt={day}")
        assert (pointer.version_date, pointer.rows, pointer.rejected) == (day, 8, 3)
    assert pointer.previous == str(tmp_path / "again" / "dt=2026-01-30")


def test_an_output_with_too_many_rejects_is_not_published(tmp_path: Path) -> None:
    """A run that exceeds its reject limit does not write the pointer."""
    write_corpus(tmp_path / "in" / "dt=2026-01-31")
    current = tmp_path / "current.json"
    output = {"path": str(tmp_path / "bad"), "publish": str(current)}
    summary = run_date(tmp_path, "2026-01-31", output=output, max_reject_rate=0.3)
    assert summary.exit_code == ExitCode.OVER_REJECT_BUDGET
    assert not current.exists()


def test_a_run_that_ends_late_does_not_replace_a_newer_output(
    tmp_path: Path, dated: dict[str, Path]
) -> None:
    """Readers keep the newest output in whatever order runs end, unless a rollback is allowed."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in dated.values())
    publish(late, TOTALS, target)
    existing = publish(early, TOTALS, target)
    assert existing.output == late.store.url == pointer_at(Path(target)).output
    back = publish(early, TOTALS, target, allow_rollback=True)
    assert back.output == early.store.url == pointer_at(Path(target)).output
    assert back.previous == late.store.url


def test_publishing_an_output_twice_keeps_the_previous_one(
    tmp_path: Path, dated: dict[str, Path]
) -> None:
    """An output does not become its own `previous`."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in dated.values())
    for opened in (early, late, late):
        publish(opened, TOTALS, target)
    assert pointer_at(Path(target)).previous == early.store.url


class Overtaken:
    """A store in which another writer changes the pointer before our first conditional write."""

    def __init__(self, inner: Store, other: Pointer) -> None:
        self._inner = inner
        self._others = [other]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        if self._others:
            self._inner.replace(key, self._others.pop().to_json())
        return self._inner.put_if_match(key, data, version)


def test_the_newer_of_two_concurrent_publications_wins(
    tmp_path: Path, dated: dict[str, Path]
) -> None:
    """A writer that was overtaken reads the pointer again, and leaves a newer one alone."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in dated.values())
    publish(early, TOTALS, target)
    newest = Pointer("elsewhere", "j", "f", "2026-02-01", 1, 0, "now", None)
    folder = Overtaken(LocalStore(str(tmp_path)), newest)
    assert publish(late, TOTALS, target, folder=folder).output == "elsewhere"
    assert pointer_at(Path(target)) == newest


def test_the_json_field_of_the_date_is_called_night() -> None:
    """Readers depend on the fields of the object and their order."""
    pointer = Pointer("out", "tags", "f", "2026-01-31", 8, 3, "now", None)
    facts = json.loads(pointer.to_json())
    names = "output job fingerprint night rows rejected published_at previous"
    assert list(facts) == names.split()
    assert facts["night"] == "2026-01-31"
    assert Pointer.from_json(pointer.to_json()) == pointer


def test_on_s3_the_pointer_is_replaced_by_its_etag(
    dated: dict[str, Path], stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second publication replaces the pointer of the first with a conditional write."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{stub_s3.server_port}")
    target = f"{stub_s3.store.url}/current.json"
    for output in dated.values():
        publish(open_output(LocalStore(str(output))), TOTALS, target)
    pointer = read_pointer(stub_s3.store, "current.json")
    assert pointer.output == str(dated["2026-01-31"])


def test_a_file_that_is_no_pointer_is_not_overwritten(
    tmp_path: Path, dated: dict[str, Path]
) -> None:
    """A mistyped target is a UserError."""
    target = tmp_path / "package.json"
    target.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="not a pointer written by tokenmill"):
        publish(open_output(LocalStore(str(dated["2026-01-30"]))), TOTALS, str(target))
    assert target.read_text() == '{"name": "mine"}'


def test_a_pointer_without_a_key_is_refused_before_the_run(tmp_path: Path) -> None:
    """A URL of a bucket names no object."""
    write_corpus(tmp_path / "in" / "dt=2026-01-31")
    output = {"path": str(tmp_path / "out"), "publish": "s3://current.json"}
    with pytest.raises(UserError, match=r"s3://current\.json: names no file"):
        run_date(tmp_path, "2026-01-31", output=output)
    assert not (tmp_path / "out").exists()


def test_the_command_rolls_back(tmp_path: Path, dated: dict[str, Path]) -> None:
    """`publish` accepts an older output, but no unfinished one."""
    current = tmp_path / "current.json"
    early, late = dated.values()
    for output in (late, early):
        done = CliRunner().invoke(app, ["publish", str(output), str(current)])
        assert done.exit_code == ExitCode.FINISHED, done.output
    assert pointer_at(current).output == str(early)
    assert f"before: {late}" in done.output.replace("\n", "")
    (late / SUCCESS_KEY).unlink()
    done = CliRunner().invoke(app, ["publish", str(late), str(current)])
    assert done.exit_code == ExitCode.USER_ERROR
    assert pointer_at(current).output == str(early)
