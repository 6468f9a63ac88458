"""Objects in a folder on a local disk or a shared file system."""

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from tokenmill.errors import NoSpace, RunFailed, UserError
from tokenmill.storage.base import (
    ObjectInfo,
    changed_error,
    gone_as_run_failed,
    name_taken,
    read_each,
)

#: How names of temporary files begin. Readers of Parquet folders skip names with a leading dot.
TEMPORARY_PREFIX = ".tokenmill-"
# A read-only file system, a loop of symbolic links, a name that is too long.
_WRONG_PATHS = (errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)
# The errors of `os.link` on FAT and on some network and user-space file systems.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class LocalStore:
    """A folder on this machine, or on a file system shared with the workers."""

    def __init__(self, url: str) -> None:
        self.url = os.path.abspath(os.path.expanduser(url))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._walk(Path(self.url, prefix))

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            with _local_errors(str(folder)):
                entries = sorted(os.scandir(folder), key=_sort_key)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir():
                _check_no_loop(entry)
                yield from self._walk(Path(entry.path))
            elif not entry.name.startswith(TEMPORARY_PREFIX):
                info = self._info_of(entry)
                if info is not None:
                    yield info

    def _info_of(self, entry: os.DirEntry[str]) -> ObjectInfo | None:
        """The object of a folder's entry; None for a hidden link to nothing, such as Emacs makes.

        Raises `UserError` for another link to nothing, and `RunFailed` if the object is gone.
        """
        try:
            return self.info(os.path.relpath(entry.path, self.url))
        except FileNotFoundError as error:
            if not entry.is_symlink():
                with gone_as_run_failed(entry.path):
                    raise
            if entry.name.startswith("."):
                return None
            raise UserError(
                f"{entry.path}: is a symbolic link to a file that does not exist; fix or remove it"
            ) from error

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _local_errors(path):
            status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "a folder is not an object", path)
        return ObjectInfo(key, status.st_size, str(status.st_mtime_ns))

    def read(self, key: str) -> bytes:
        with _local_errors(self._path(key)), open(self._path(key), "rb") as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        with _local_errors(self._path(key)):
            return open(self._path(key), "rb")

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        return read_each(lambda item: self._read_end(item, num_bytes), items)

    def _read_end(self, item: ObjectInfo, num_bytes: int) -> bytes:
        path = self._path(item.key)
        with gone_as_run_failed(path), _local_errors(path), open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, str(status.st_mtime_ns)) != (item.size, item.version):
                raise changed_error(path)
            file.seek(max(item.size - num_bytes, 0))
            return file.read(num_bytes)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        target = self._path(key)
        with _local_errors(target), _temporary_with(target, data) as temporary:
            return _linked(temporary, target)

    @contextmanager
    def open_new(self, key: str) -> Iterator[BinaryIO]:
        target = self._path(key)
        with _local_errors(target):
            if os.path.lexists(target):
                raise name_taken(target)
            _make_folder_of(target)
            with _temporary_for(target) as temporary:
                with open(temporary, "xb") as file:
                    yield file
                    _sync(file)
                if not _linked(temporary, target):
                    raise name_taken(target)

    def replace(self, key: str, data: bytes) -> None:
        target = self._path(key)
        with _local_errors(target), _temporary_with(target, data) as temporary:
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
        target = self._path(key)
        lock = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}lock")
        # No local file system compares and renames in one step, so all our writers take this lock.
        with _local_errors(target), FileLock(lock), _temporary_with(target, data) as temporary:
            if self.info(key).version != version:
                return False
            # Two changes within one tick of the system's clock must not have the same version.
            changed_at = max(os.stat(temporary).st_mtime_ns, int(version) + 1)
            os.utime(temporary, ns=(changed_at, changed_at))
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))
            return True

    def delete(self, key: str) -> None:
        target = self._path(key)
        with _local_errors(target), suppress(FileNotFoundError):
            os.unlink(target)
            _sync_folder(os.path.dirname(target))

    def _path(self, key: str) -> str:
        return os.path.join(self.url, key)


def _check_no_loop(entry: os.DirEntry[str]) -> None:
    """Raise `UserError` for a symbolic link to a folder above it, whose files have many names."""
    if entry.is_symlink():
        path = Path(entry.path)
        if path.parent.resolve().is_relative_to(path.resolve()):
            raise UserError(f"{entry.path}: is a symbolic link to a folder above it; remove it")


def _sort_key(entry: os.DirEntry[str]) -> str:
    """Sorts a folder's entries in the order of the keys below them: `a-b` before `a/z`."""
    return f"{entry.name}/" if entry.is_dir() else entry.name


def _make_folder_of(target: str) -> None:
    """Make the folder of an object. Raises `UserError` if its path leads nowhere."""
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{target}: its folder cannot be made; look for a symbolic link in the path whose "
            "target does not exist, or use another path"
        ) from error


@contextmanager
def _temporary_with(target: str, data: bytes) -> Iterator[str]:
    """A synced file with `data` in `target`'s folder. It is deleted afterwards unless renamed."""
    _make_folder_of(target)
    with _temporary_for(target) as path:
        with open(path, "xb") as file:
            file.write(data)
            _sync(file)
        yield path


@contextmanager
def _temporary_for(target: str) -> Iterator[str]:
    """The path of a hidden file in `target`'s folder, which is deleted afterwards."""
    path = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def _sync(file: BinaryIO) -> None:
    """Make the written bytes survive a power failure."""
    file.flush()
    os.fsync(file.fileno())


def _linked(temporary: str, target: str) -> bool:
    """Link `temporary` to `target`. Returns False if `target` exists."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_HARD_LINKS:
            raise UserError(
                f"{target}: this file system has no hard links; use another path"
            ) from error
        raise
    _sync_folder(os.path.dirname(target))
    return True


def _sync_folder(folder: str) -> None:
    """Make a new name in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _local_errors(where: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{where}: permission denied; check the folder's owner and mode") from error
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise UserError(f"{where}: {(error.strerror or '').lower()}; use another path") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _WRONG_PATHS:
            path = error.filename or where
            raise UserError(
                f"{path}: {(error.strerror or '').lower()}; use another path"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(
                f"{where}: no space left ({error.strerror}); free some and run the command again"
            ) from error
        raise RunFailed(f"{where}: {error.strerror}; run the command again") from error
