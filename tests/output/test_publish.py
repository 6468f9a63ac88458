"""The object that names the output which readers use: from one night to the next, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import StubS3
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.output.output import open_output
from tokenmill.output.plan_file import SUCCESS_KEY
from tokenmill.output.publish import Pointer, publish, read_pointer
from tokenmill.output.totals import Totals
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.open import open_store
from typer.testing import CliRunner

TOTALS = Totals(1, 8, 0, {"empty": 3}, 10, 10)


@pytest.fixture
def nights(tmp_path: Path) -> dict[str, Path]:
    """Two finished nights, and a place for readers."""
    outputs = {}
    for day in ("2026-01-30", "2026-01-31"):
        write_corpus(tmp_path / "in" / f"dt={day}")
        night(tmp_path, day)
        outputs[day] = tmp_path / "out" / f"dt={day}"
    return outputs


def night(tmp_path: Path, day: str, **changes: Any) -> Any:
    keys = job_over(tmp_path / "in" / "dt={date}", tmp_path / "out" / "dt={date}")
    job = Job.model_validate({**keys, "date": day, **changes})
    return drive(job, LocalStore(job.output.path))


def pointer_at(path: Path) -> Pointer:
    return read_pointer(LocalStore(str(path.parent)), path.name)


def test_a_finished_night_is_published(tmp_path: Path, nights: dict[str, Path]) -> None:
    """The pointer names the output, its night and what it came to, and the one before it."""
    current = tmp_path / "readers" / "current.json"
    for day in nights:
        output = {"path": str(tmp_path / "again" / "dt={date}"), "publish": str(current)}
        night(tmp_path, day, output=output)
        pointer = pointer_at(current)
        assert pointer.output == str(tmp_path / "again" / f"dt={day}")
        assert (pointer.night, pointer.rows, pointer.rejected) == (day, 8, 3)
    assert pointer.previous == str(tmp_path / "again" / "dt=2026-01-30")


def test_a_night_over_its_budget_is_not_published(tmp_path: Path) -> None:
    """Readers stay with what they have."""
    write_corpus(tmp_path / "in" / "dt=2026-01-31")
    current = tmp_path / "current.json"
    output = {"path": str(tmp_path / "bad"), "publish": str(current)}
    summary = night(tmp_path, "2026-01-31", output=output, max_reject_rate=0.3)
    assert summary.exit_code == ExitCode.OVER_REJECT_BUDGET
    assert not current.exists()


def test_a_late_night_leaves_a_later_ones_place(tmp_path: Path, nights: dict[str, Path]) -> None:
    """Whatever order nights end in, readers see the latest; one moves back only when told."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in nights.values())
    publish(late, TOTALS, target)
    standing = publish(early, TOTALS, target)
    assert standing.output == late.store.url == pointer_at(Path(target)).output
    back = publish(early, TOTALS, target, even_back=True)
    assert back.output == early.store.url == pointer_at(Path(target)).output
    assert back.previous == late.store.url


def test_the_same_again_keeps_what_was_before(tmp_path: Path, nights: dict[str, Path]) -> None:
    """An output that is published twice is not its own predecessor."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in nights.values())
    for opened in (early, late, late):
        publish(opened, TOTALS, target)
    assert pointer_at(Path(target)).previous == early.store.url


class _Slow:
    """A store whose first exchange finds that another writer came between."""

    def __init__(self, inner: Store, other: Pointer) -> None:
        self._inner = inner
        self._others = [other]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        if self._others:
            self._inner.replace(key, json.dumps(vars_of(self._others.pop())).encode())
        return self._inner.put_if_match(key, data, version)


def vars_of(pointer: Pointer) -> dict[str, Any]:
    return {name: getattr(pointer, name) for name in Pointer.__slots__}


def test_of_two_that_publish_at_once_the_later_night_stands(
    tmp_path: Path, nights: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was overtaken looks again, and finds that its night is over."""
    target = str(tmp_path / "current.json")
    early, late = (open_output(LocalStore(str(output))) for output in nights.values())
    publish(early, TOTALS, target)
    newest = Pointer("elsewhere", "j", "f", "2026-02-01", 1, 0, "now", None)
    monkeypatch.setattr(
        "tokenmill.output.publish.open_store", lambda *where: _Slow(open_store(*where), newest)
    )
    assert publish(late, TOTALS, target).output == "elsewhere"
    assert pointer_at(Path(target)) == newest


def test_on_s3_it_is_one_object_exchanged_by_its_etag(
    nights: dict[str, Path], stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store with conditional writes no pointer is lost to a race."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{stub_s3.server_port}")
    target = f"{stub_s3.store.url}/current.json"
    for output in nights.values():
        publish(open_output(LocalStore(str(output))), TOTALS, target)
    pointer = read_pointer(stub_s3.store, "current.json")
    assert pointer.output == str(nights["2026-01-31"])


def test_what_is_no_pointer_is_left_alone(tmp_path: Path, nights: dict[str, Path]) -> None:
    """A mistaken name does not cost a file."""
    target = tmp_path / "package.json"
    target.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match="not a pointer that tokenmill wrote"):
        publish(open_output(LocalStore(str(nights["2026-01-30"]))), TOTALS, str(target))
    assert target.read_text() == '{"name": "mine"}'


def test_a_pointer_that_names_no_place_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """In a bucket's place there is no object."""
    write_corpus(tmp_path / "in" / "dt=2026-01-31")
    output = {"path": str(tmp_path / "out"), "publish": "s3://current.json"}
    with pytest.raises(UserError, match=r"s3://current\.json: names no file"):
        night(tmp_path, "2026-01-31", output=output)
    assert not (tmp_path / "out").exists()


def test_the_command_moves_readers_back(tmp_path: Path, nights: dict[str, Path]) -> None:
    """To a finished output only."""
    current = tmp_path / "current.json"
    early, late = nights.values()
    for output in (late, early):
        done = CliRunner().invoke(app, ["publish", str(output), str(current)])
        assert done.exit_code == ExitCode.FINISHED, done.output
    assert pointer_at(current).output == str(early)
    assert f"{late} before" in done.output.replace("\n", "")
    (late / SUCCESS_KEY).unlink()
    done = CliRunner().invoke(app, ["publish", str(late), str(current)])
    assert done.exit_code == ExitCode.USER_ERROR
    assert pointer_at(current).output == str(early)
