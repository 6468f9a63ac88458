"""The folder for the sockets, logs and spilled objects of a local Ray.

Each run has its own. Ray's logs may say why a run failed, so it is kept until later runs delete it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenmill.errors import UserError

_PREFIX = "tokenmill-"
# Of runs that have ended.
_MAX_KEPT = 10
_MAX_AGE_S = 7 * 24 * 3600.0
# Linux limits a socket's path to 107 bytes. Ray appends
# /ray/session_YYYY-MM-DD_HH-MM-SS_MICROS_PROCESS/sockets/plasma_store.
_MAX_PATH_BYTES = 107 - 68
_MAX_PARENT_BYTES = _MAX_PATH_BYTES - len(f"/{_PREFIX}12345678")
_SHORT_PARENT = "/tmp"  # noqa: S108 - the folder in it is created for this user only


@contextmanager
def ray_folder() -> Iterator[None]:
    """Make Ray put its files into a new folder, until the context ends.

    It is in TMPDIR, or in /tmp if that path is too long for sockets. If RAY_TMPDIR is set, Ray uses
    that folder, and nothing in it is ever deleted. Raises `UserError` for a folder that cannot be
    used.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen:
        _check(chosen)
        yield
        return
    parent = _parent()
    _delete_old(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    handle = _lock(folder)
    os.environ["RAY_TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["RAY_TMPDIR"]
        # Empty if Ray was not started.
        with suppress(OSError):
            folder.rmdir()
        if handle is not None:
            os.close(handle)


def _check(folder: str) -> None:
    """Raise `UserError` unless Ray can use the folder that RAY_TMPDIR names."""
    if len(os.fsencode(folder)) > _MAX_PATH_BYTES:
        raise UserError(
            f"RAY_TMPDIR={folder}: too long for Ray's sockets, which may have {_MAX_PATH_BYTES} "
            "bytes here; choose a shorter path, or unset it"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"RAY_TMPDIR={folder}: {error.strerror}; choose another folder") from error


def _parent() -> str:
    """The folder for temporary files, if its path is short enough, or else /tmp."""
    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("no folder for temporary files; set TMPDIR to one") from error
    if len(os.fsencode(parent)) <= _MAX_PARENT_BYTES:
        return parent
    if not os.access(_SHORT_PARENT, os.W_OK):
        raise UserError(
            f"TMPDIR={parent}: too long for Ray's sockets, and {_SHORT_PARENT} cannot be written; "
            f"set RAY_TMPDIR to a folder whose path has at most {_MAX_PATH_BYTES} bytes"
        )
    return _SHORT_PARENT


def _lock(folder: Path) -> int | None:
    """A handle that locks the folder until it is closed; None if another process has locked it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _delete_old(parent: str) -> None:
    """Delete folders of this user's runs that have ended, except for a few recent ones."""
    ended = []
    for folder in Path(parent).glob(f"{_PREFIX}*/ray"):
        status = folder.parent.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        handle = _lock(folder.parent) if is_ours else None
        if handle is not None:
            os.close(handle)
            ended.append((status.st_mtime, folder.parent))
    ended.sort(reverse=True)
    for number, (changed_at, folder) in enumerate(ended):
        if number >= _MAX_KEPT or time.time() - changed_at > _MAX_AGE_S:
            shutil.rmtree(folder, ignore_errors=True)
