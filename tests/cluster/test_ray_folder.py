"""The folder of a local Ray: short enough for sockets, one per run, and not kept forever."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.stores import refusal
from tokenmill.cluster.ray_folder import ray_folder
from tokenmill.errors import UserError

DAY_S = 24 * 3600


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        use_temporary(folder, monkeypatch)
        yield Path(folder)


def use_temporary(folder: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)


def used() -> Path:
    """The folder that Ray uses during a run, which puts nothing there."""
    with ray_folder():
        return Path(os.environ["RAY_TMPDIR"])


def socket_path(folder: Path) -> str:
    """The path of a socket of Ray, of the process with the highest id."""
    return f"{folder}/ray/session_2026-11-30_23-11-21_754215_4194304/sockets/plasma_store"


def ended_run(parent: Path, name: str, age_days: float) -> Path:
    """A folder of a run that has ended."""
    folder = parent / f"tokenmill-{name}"
    (folder / "ray").mkdir(parents=True)
    changed_at = time.time() - age_days * DAY_S
    os.utime(folder, (changed_at, changed_at))
    return folder


def test_each_run_has_a_folder_of_its_own(temporary: Path) -> None:
    """It is in TMPDIR, other users cannot enter it, and the variable is unset afterwards."""
    folders = []
    for _ in range(2):
        with ray_folder():
            folders.append(Path(os.environ["RAY_TMPDIR"]))
            assert folders[-1].stat().st_mode & 0o777 == 0o700
            (folders[-1] / "ray").mkdir()
        assert "RAY_TMPDIR" not in os.environ
    assert folders[0] != folders[1]
    assert sorted(folders) == sorted(temporary.iterdir())


def test_a_run_that_does_not_start_leaves_nothing(temporary: Path) -> None:
    """Also if it fails."""
    with pytest.raises(UserError), ray_folder():
        raise UserError("the port is taken")
    assert not list(temporary.iterdir())


def test_a_long_tmpdir_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket has at most 107 bytes, wherever a scheduler puts temporary files."""
    folder = tmp_path / ("x" * 60)
    folder.mkdir()
    use_temporary(folder, monkeypatch)
    assert len(socket_path(used())) <= 107
    assert not list(folder.iterdir())


def test_the_longest_usable_tmpdir_is_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is passed over only if a socket does not fit."""
    lengths = {}
    for extra in range(1, 20):
        folder = temporary / ("x" * extra)
        folder.mkdir()
        use_temporary(folder, monkeypatch)
        lengths[extra] = len(socket_path(used())) if used().parent == folder else None
    kept = [length for length in lengths.values() if length is not None]
    assert max(kept) == 107
    assert len(kept) < len(lengths)


def test_a_missing_tmpdir_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's usual places come next."""
    use_temporary(tmp_path / "none", monkeypatch)
    assert used().parent.is_dir()


def test_a_chosen_folder_is_used_as_it_is(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_TMPDIR is used whole, and nothing in it or next to it is deleted."""
    kept = ended_run(temporary, "old", age_days=30)
    monkeypatch.setenv("RAY_TMPDIR", str(temporary))
    assert used() == temporary
    assert kept.exists()


@pytest.mark.parametrize("name", ["x" * 60, "file/below"])
def test_a_chosen_folder_that_cannot_work_is_refused(
    name: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the variable and its value."""
    (temporary / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", f"{temporary}/{name}")
    line = refusal(UserError, used)
    assert f"RAY_TMPDIR={temporary}/{name}" in line


def test_folders_of_ended_runs_are_deleted(temporary: Path) -> None:
    """The last ten are kept for a week; folders in use and folders of others are not touched."""
    recent = [ended_run(temporary, f"recent-{days}", days / 100) for days in range(12)]
    old = ended_run(temporary, "old", age_days=8)
    in_use = ended_run(temporary, "in-use", age_days=8)
    of_others = ended_run(temporary, "of-others", age_days=8)
    (of_others / "ray").rename(of_others / "data")
    link = temporary / "tokenmill-link"
    link.symlink_to(old)
    handle = os.open(in_use, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    used()
    os.close(handle)
    assert [folder for folder in recent if folder.exists()] == recent[:10]
    assert not old.exists()
    assert in_use.exists() and of_others.exists()


@pytest.mark.usefixtures("temporary")
def test_a_run_keeps_the_folders_of_other_runs() -> None:
    """However many runs start meanwhile, the folder of a run that is alive stays."""
    with ray_folder():
        own = Path(os.environ.pop("RAY_TMPDIR"))
        (own / "ray").mkdir()
        os.utime(own, (0, 0))
        used()
        assert own.exists()
        os.environ["RAY_TMPDIR"] = str(own)
    used()
    assert not own.exists()
