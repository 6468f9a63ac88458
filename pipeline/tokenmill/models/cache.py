"""The folder of this user's models and logs. A model is put there by one process at a time."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from tokenmill.errors import UserError

# Logs are deleted when nothing was written to them for this long.
_LOG_AGE_S = 30 * 24 * 3600.0
# Commands other than `run` share a log, which begins again above this size.
_MAX_LOG_BYTES = 10 * 2**20


def cache_folder() -> Path:
    """Where models and logs are: TOKENMILL_CACHE, or `~/.cache/tokenmill`.

    Raises `UserError` for a user without a home.
    """
    configured = os.environ.get("TOKENMILL_CACHE")
    try:
        return Path(configured) if configured else Path.home() / ".cache" / "tokenmill"
    except RuntimeError as error:
        raise UserError("this user has no home; set TOKENMILL_CACHE to a folder") from error


def log_file(name: str) -> Path:
    """A log in the cache that can be written. Logs of a month ago are deleted.

    Raises `UserError` if the log cannot be written.
    """
    log = cache_folder() / "logs" / name
    with _cache_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            if file.tell() > _MAX_LOG_BYTES:
                file.truncate(0)
    for other in log.parent.glob("*.log"):
        # Another process may have deleted it, and in a shared folder it may be another user's.
        with suppress(OSError):
            if time.time() - other.stat().st_mtime > _LOG_AGE_S:
                other.unlink()
    return log


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: {(error.strerror or str(error)).lower()}; set TOKENMILL_CACHE to a folder "
            "that you can write"
        ) from error


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path | None]:
    """An empty folder that becomes `folder` if the block succeeds; None if `folder` exists.

    Only one process of a machine fills a folder; the others wait for it. The parent of the empty
    folder is a work folder for intermediate files. It is removed at the end of the block, or, if
    the process is killed, by the next one that fills the folder. Raises `UserError` if the cache
    cannot be written.
    """
    lock = FileLock(f"{folder}.lock")
    with _cache_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if folder.is_dir():
            yield None
            return
        work_folder = folder.parent / f".{folder.name}"
        shutil.rmtree(work_folder, ignore_errors=True)
        target = work_folder / "model"
        with _cache_errors(target):
            target.mkdir(parents=True)
        try:
            yield target
            target.rename(folder)
        finally:
            shutil.rmtree(work_folder)
    finally:
        lock.release()
