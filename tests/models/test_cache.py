"""The folder of models and logs: it is named if it cannot be used, and old logs are deleted."""

import os
import time
from pathlib import Path

import pytest
from helpers.stores import refusal
from tokenmill.errors import UserError
from tokenmill.models.cache import fill_folder, log_file

DAY_S = 24 * 3600


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_old_logs_are_deleted(cache: Path) -> None:
    """Those that nothing has written to for a month; other files stay."""
    logs = cache / "logs"
    logs.mkdir(parents=True)
    for name, age_days in {"old.log": 31, "recent.log": 29, "old.txt": 31}.items():
        (logs / name).touch()
        written_at = time.time() - age_days * DAY_S
        os.utime(logs / name, (written_at, written_at))
    log = log_file("new.log")
    assert log.parent == logs
    assert {path.name for path in logs.iterdir()} == {"new.log", "recent.log", "old.txt"}


def test_a_log_of_many_commands_does_not_grow_forever() -> None:
    """It is appended to, and begins again when it is large."""
    log = log_file("plan.log")
    for size in (1000, 2 * 10**7):
        os.truncate(log, size)
        assert log_file("plan.log") == log
        assert log.stat().st_size == (size if size == 1000 else 0)


def test_a_log_that_cannot_be_written_is_named(cache: Path) -> None:
    """The line names the file and the variable."""
    cache.write_text("a file")
    line = refusal(UserError, lambda: log_file("run.log"))
    assert f"{cache}/logs/run.log" in line
    assert "TOKENMILL_CACHE" in line


def test_a_cache_that_cannot_take_a_model_is_named(cache: Path) -> None:
    """An error of the download itself passes through."""

    def fill(folder: Path) -> None:
        with fill_folder(folder):
            raise OSError("the network")

    with pytest.raises(OSError, match="the network"):
        fill(cache / "models" / "one")
    (cache / "file").touch()
    assert "TOKENMILL_CACHE" in refusal(UserError, lambda: fill(cache / "file" / "one"))


def test_a_failed_download_leaves_the_folder_free(cache: Path) -> None:
    """The next process, and this one, can fill it."""
    folder = cache / "models" / "one"
    with pytest.raises(RuntimeError), fill_folder(folder):
        raise RuntimeError
    with fill_folder(folder) as target:
        assert target is not None
    with fill_folder(folder) as target:
        assert target is None
