"""Objects under one root: list, read, create once, replace. Local folders and S3.

Knows nothing of jobs, plans or Parquet. The one operation that everything rests on is
`create`: it makes an object exist whole or not at all, and says whether it was the first.
On S3 that is one PUT with `If-None-Match: *`; on a local disk a hidden temporary file in the same
folder, fsync, and `os.link`, which fails if the name exists.
"""

import errno
import io
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from filelock import FileLock

from pipeline.errors import NoSpace, RunFailed, UserError

#: Temporary files of the local store; readers of Parquet folders skip names that begin with a dot.
TEMPORARY_PREFIX = ".tokenmill-"

# What FAT, some network and some user-space file systems answer to `os.link`.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)

# S3's limit for one PUT: below it an object is one request, and so one atomic step.
_SINGLE_PUT_BYTES = 5 * 2**30
# Per request, with exponential backoff; s3fs tries as often again where it was throttled. More
# would make a mistyped endpoint hang for minutes.
_S3_RETRIES = {"max_attempts": 5, "mode": "standard"}
# Small reads that wait for a network; the figure is for S3, and harmless on a disk.
_READ_THREADS = 32


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object: its key below the root, size in bytes, and a version that changes with it.

    The version is the ETag on S3 and the modification time in nanoseconds on a local disk.
    """

    key: str
    size: int
    version: str


class Store(Protocol):
    """Objects under `url`; keys are relative to it, with `/` between their parts.

    Raises `UserError` for what the user can mend (rights, bucket, credentials) and `RunFailed` for
    what a later run may survive (network; a full disk is `NoSpace`). A missing object is
    `FileNotFoundError`.
    """

    url: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with the folder `prefix`, in the order of the keys."""

    def info(self, key: str) -> ObjectInfo:
        """One object's size and version."""

    def read(self, key: str) -> bytes:
        """A whole object."""

    def open(self, key: str) -> BinaryIO:
        """An object for random access, closed by the caller."""

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        """The last bytes of each object, or all of a shorter one, many at a time.

        Raises `RunFailed` for an object that is not the one that was listed any more.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Make the object exist, whole, if it does not: True if this call made it."""

    def creating(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write a new object in pieces; it exists, whole, if the context ends without an error.

        Raises `UserError` where the name is taken, before anything is written or at the end.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write the object whole, whether it exists or not."""

    def exchange(self, key: str, data: bytes, version: str) -> bool:
        """Write the object whole in the place of its `version`: False if it has another by now."""

    def delete(self, key: str) -> None:
        """Have no such object, whether it is there or not."""


def open_store(url: str, endpoint_url: str | None = None) -> Store:
    """The store for `s3://bucket/prefix`, `file:///folder` or a folder's path."""
    if url.startswith("s3://"):
        return S3Store(url, endpoint_url)
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        scheme = url.split("://", 1)[0]
        raise UserError(f"{url}: cannot read or write {scheme}://; use a local path or s3://")
    return LocalStore(url)


def _each(read: Callable[[ObjectInfo], bytes], items: Sequence[ObjectInfo]) -> list[bytes]:
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(read, items))


def _changed(where: str) -> RunFailed:
    return RunFailed(f"{where}: changed while it was read; run the command again")


@contextmanager
def _refusing_gone(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunFailed(f"{where}: is gone since it was listed; run the command again") from error


def split_place(url: str) -> tuple[str, str]:
    """The URL of the folder of one named object, and its key there. Raises `UserError`."""
    folder, name = os.path.split(url)
    if not name or folder in ("s3:", "file:"):
        raise UserError(f"{url}: names no file; write one behind it")
    return folder or ".", name


def open_place(url: str) -> tuple[Store, str]:
    """The store and the key of one named object, in a folder that is there. Raises `UserError`."""
    folder, name = split_place(url)
    store = open_store(folder)
    if isinstance(store, LocalStore) and not os.path.isdir(store.url):
        # A store makes its folders, and a mistyped path should make none.
        raise UserError(f"{url}: there is no such folder; make it or mend the path")
    return store, name


class LocalStore:
    """A folder on this machine, or on a file system that it shares with the workers."""

    def __init__(self, url: str) -> None:
        self.url = os.path.abspath(os.path.expanduser(url))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        yield from self._walk(Path(self.url, prefix))

    def _walk(self, folder: Path) -> Iterator[ObjectInfo]:
        try:
            with _local_errors(str(folder)):
                entries = sorted(os.scandir(folder), key=_place_in_listing)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir():
                yield from self._walk(Path(entry.path))
            elif not entry.name.startswith(TEMPORARY_PREFIX):
                yield self.info(os.path.relpath(entry.path, self.url))

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _local_errors(path):
            found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "a folder is no object", path)
        return ObjectInfo(key, found.st_size, str(found.st_mtime_ns))

    def read(self, key: str) -> bytes:
        with _local_errors(self._path(key)), open(self._path(key), "rb") as file:
            return file.read()

    def open(self, key: str) -> BinaryIO:
        with _local_errors(self._path(key)):
            return open(self._path(key), "rb")

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        return _each(lambda item: self._read_end(item, num_bytes), items)

    def _read_end(self, item: ObjectInfo, num_bytes: int) -> bytes:
        path = self._path(item.key)
        with _refusing_gone(path), _local_errors(path), open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, str(found.st_mtime_ns)) != (item.size, item.version):
                raise _changed(path)
            file.seek(max(item.size - num_bytes, 0))
            return file.read(num_bytes)

    def create(self, key: str, data: bytes) -> bool:
        target = self._path(key)
        with _local_errors(target), _temporary_beside(target, data) as temporary:
            return _linked(temporary, target)

    @contextmanager
    def creating(self, key: str) -> Iterator[BinaryIO]:
        target = self._path(key)
        with _local_errors(target):
            if os.path.lexists(target):
                raise taken(target)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with _temporary_for(target) as temporary:
                with open(temporary, "xb") as file:
                    yield file
                    _sync(file)
                if not _linked(temporary, target):
                    raise taken(target)

    def replace(self, key: str, data: bytes) -> None:
        target = self._path(key)
        with _local_errors(target), _temporary_beside(target, data) as temporary:
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))

    def exchange(self, key: str, data: bytes, version: str) -> bool:
        target = self._path(key)
        lock = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}lock")
        # No local file system compares and renames in one step; all of ours take the lock first.
        with _local_errors(target), FileLock(lock), _temporary_beside(target, data) as temporary:
            if self.info(key).version != version:
                return False
            # Two changes within one tick of the system's clock must not bear the same version.
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


def _place_in_listing(entry: os.DirEntry[str]) -> str:
    """What sorts a folder's entries as the keys below them: `a-b` stands before `a/z`."""
    return f"{entry.name}/" if entry.is_dir() else entry.name


@contextmanager
def _temporary_beside(target: str, data: bytes) -> Iterator[str]:
    """A synced file with `data` in `target`'s folder; gone afterwards unless it was renamed."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with _temporary_for(target) as path:
        with open(path, "xb") as file:
            file.write(data)
            _sync(file)
        yield path


@contextmanager
def _temporary_for(target: str) -> Iterator[str]:
    """A hidden name in `target`'s folder; what bears it is gone afterwards."""
    path = os.path.join(os.path.dirname(target), f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.unlink(path)


def _sync(file: BinaryIO) -> None:
    """Make what was written survive a power cut."""
    file.flush()
    os.fsync(file.fileno())


def _linked(temporary: str, target: str) -> bool:
    """Give a file its name, unless that is taken: whether it has it."""
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


def taken(place: str) -> UserError:
    """The error for a name that something has already."""
    return UserError(f"{place} is there already; remove it or name another one")


def _sync_folder(folder: str) -> None:
    """Make a new name in `folder` survive a power cut."""
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
        raise UserError(f"{where}: no permission; check the folder's owner and mode") from error
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise UserError(f"{where}: {(error.strerror or '').lower()}; use another path") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EROFS:
            raise UserError(f"{where}: the file system is read-only; use another path") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(
                f"{where}: no space left ({error.strerror}); free some and run the command again"
            ) from error
        raise RunFailed(f"{where}: {error.strerror}; run the command again") from error


class S3Store:
    """A prefix in a bucket. Credentials, profile, region and endpoint come from the AWS chain.

    `endpoint_url`, where given, wins over AWS_ENDPOINT_URL.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        self._root = url.removeprefix("s3://").rstrip("/")
        self.url = f"s3://{self._root}"
        if not self._root.split("/")[0]:
            raise UserError(f"{url}: names no bucket; write s3://bucket/prefix")
        self._endpoint_url = endpoint_url
        self._connected: Any = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str | None]]:
        # A connection does not cross processes; each makes its own.
        return S3Store, (self.url, self._endpoint_url)

    @property
    def _fs(self) -> Any:
        if self._connected is None:
            # Imported late: local jobs need not pay for it.
            import s3fs  # noqa: PLC0415

            s3fs.core.set_custom_error_handler(_is_conflict)
            self._connected = s3fs.S3FileSystem(
                endpoint_url=self._endpoint_url,
                use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={"retries": _S3_RETRIES},
            )
        return self._connected

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _s3_errors(self.url):
            found = self._fs.find(self._path(prefix), detail=True)
        for path in sorted(found):
            # Consoles make folders out of empty objects whose keys end so. s3fs tells of the folder
            # itself where its first object was made right after a listing that found nothing.
            if not path.endswith("/") and found[path]["type"] != "directory":
                yield self._info(path, found[path])

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _s3_errors(self._url(key)):
            entry = self._fs.info(path)
            if entry["type"] == "directory":
                raise FileNotFoundError(errno.ENOENT, "a folder is no object", path)
            return self._info(path, entry)

    def _info(self, path: str, entry: dict[str, Any]) -> ObjectInfo:
        # s3fs lists a lone object below its own name; ours is the empty key then.
        key = path.removeprefix(self._root).removeprefix("/")
        return ObjectInfo(key, int(entry["size"]), str(entry["ETag"]).strip('"'))

    def read(self, key: str) -> bytes:
        with _s3_errors(self._url(key)):
            return cast(bytes, self._fs.cat_file(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        with _s3_errors(self._url(key)):
            # pyarrow asks for the exact ranges that it needs; a read-ahead would fetch more.
            file = self._fs.open(self._path(key), "rb", cache_type="none")
        return cast(BinaryIO, _S3File(file, self._url(key)))

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        # Imported late, as s3fs is.
        from fsspec.asyn import sync  # noqa: PLC0415

        from pipeline.s3_ends import ObjectEnd, read_ends  # noqa: PLC0415

        wanted = [
            ObjectEnd(self._path(item.key), max(item.size - num_bytes, 0), item.size, item.version)
            for item in items
        ]
        with _s3_errors(self.url):
            ends = sync(self._fs.loop, read_ends, self._fs, wanted)
        left = [item for item, end in zip(items, ends, strict=True) if end is None]
        asked_again = iter(_each(lambda item: self._read_end(item, num_bytes), left))
        return [next(asked_again) if end is None else end for end in ends]

    def _read_end(self, item: ObjectInfo, num_bytes: int) -> bytes:
        where = self._url(item.key)
        with _refusing_gone(where), self.open(item.key) as file:
            if cast(_S3File, file).version != item.version:
                raise _changed(where)
            file.seek(max(item.size - num_bytes, 0))
            return file.read(num_bytes)

    def create(self, key: str, data: bytes) -> bool:
        with _s3_errors(self._url(key)):
            try:
                self._put(key, data, mode="create")
            except OSError as error:
                if _is_precondition_failed(error):
                    return False
                raise
            return True

    @contextmanager
    def creating(self, key: str) -> Iterator[BinaryIO]:
        where = self._url(key)
        with _s3_errors(where):
            if self._fs.exists(self._path(key)):
                raise taken(where)
            # In parts of some megabytes; the last request makes the object, if there is none yet.
            file = self._fs.open(self._path(key), "xb")
        try:
            with _s3_errors(where):
                yield file
                try:
                    file.close()
                except OSError as error:
                    if _is_precondition_failed(error):
                        raise taken(where) from error
                    raise
        except BaseException:
            # What went wrong matters more than parts that nobody sees.
            with suppress(OSError):
                file.discard()
            # Whoever drops it would upload what is left.
            file.closed = True
            raise

    def replace(self, key: str, data: bytes) -> None:
        with _s3_errors(self._url(key)):
            self._put(key, data, mode="overwrite")

    def exchange(self, key: str, data: bytes, version: str) -> bool:
        bucket, name = self._path(key).split("/", 1)
        with _s3_errors(self._url(key)):
            try:
                self._fs.call_s3(
                    "put_object", Bucket=bucket, Key=name, Body=data, IfMatch=f'"{version}"'
                )
            except OSError as error:
                if _is_precondition_failed(error):
                    return False
                raise
            return True

    def delete(self, key: str) -> None:
        bucket, name = self._path(key).split("/", 1)
        with _s3_errors(self._url(key)):
            self._fs.call_s3("delete_object", Bucket=bucket, Key=name)

    def _put(self, key: str, data: bytes, mode: str) -> None:
        self._fs.pipe_file(self._path(key), data, mode=mode, chunksize=_SINGLE_PUT_BYTES)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _url(self, key: str) -> str:
        return f"{self.url}/{key}"


class _S3File(io.RawIOBase):
    """An open object whose reads raise as the store does: a network's fault is not the file's."""

    def __init__(self, file: Any, where: str) -> None:
        self._file = file
        self._where = where

    @property
    def version(self) -> str:
        return str(self._file.details["ETag"]).strip('"')

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return cast(int, self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast(int, self._file.tell())

    def read(self, size: int = -1) -> bytes:
        with _s3_errors(self._where):
            return cast(bytes, self._file.read(size))

    def close(self) -> None:
        self._file.close()
        super().close()


def _answer_to(error: BaseException | None) -> tuple[str | None, int | None]:
    """The code and the HTTP status that S3 answered with, if it did."""
    response = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return response.get("Error", {}).get("Code"), status


def _is_precondition_failed(error: OSError) -> bool:
    """Whether S3 answered 412: the object is there. s3fs gives two types for it."""
    _, status = _answer_to(error.__cause__)
    return isinstance(error, FileExistsError) or status == HTTPStatus.PRECONDITION_FAILED


def _is_conflict(error: Exception) -> bool:
    """Whether to try again: another conditional write of the same key was under way."""
    return _answer_to(error) == ("ConditionalRequestConflict", HTTPStatus.CONFLICT)


@contextmanager
def _s3_errors(where: str) -> Iterator[None]:
    # botocore comes with s3fs and takes half a second to import.
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise UserError(
            f"{where}: {error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{where}: refused by the store ({error}); renew the credentials if they have expired, "
            "check their rights, and run the command again"
        ) from error
    except FileNotFoundError as error:
        if _answer_to(error.__cause__)[0] == "NoSuchBucket":
            raise UserError(f"{where}: {error}; create the bucket or mend the URL") from error
        raise
    except (ValueError, ParamValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: {reason}; mend the URL or the endpoint") from error
    except (BotoCoreError, OSError) as error:
        if getattr(error, "errno", None) == errno.EBUSY:
            # s3fs's word for an ETag that is not the one with which reading began.
            raise _changed(where) from error
        raise RunFailed(f"{where}: {error}; check the store and run the command again") from error
