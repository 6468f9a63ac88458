"""Objects in S3 and compatible stores."""

import errno
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, BinaryIO, cast

from tokenmill.errors import RunFailed, UserError
from tokenmill.storage.base import (
    ObjectInfo,
    changed_error,
    gone_as_run_failed,
    name_taken,
    read_each,
)

# S3's limit for one PUT: below it an object is one request, and so one atomic step.
_SINGLE_PUT_BYTES = 5 * 2**30
# Per request, with exponential backoff; s3fs tries as often again where it was throttled. More
# would make a mistyped endpoint hang for minutes.
_S3_RETRIES = {"max_attempts": 5, "mode": "standard"}


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

        from tokenmill.storage.s3_suffix_reads import ObjectEnd, read_ends  # noqa: PLC0415

        wanted = [
            ObjectEnd(self._path(item.key), max(item.size - num_bytes, 0), item.size, item.version)
            for item in items
        ]
        with _s3_errors(self.url):
            ends = sync(self._fs.loop, read_ends, self._fs, wanted)
        left = [item for item, end in zip(items, ends, strict=True) if end is None]
        asked_again = iter(read_each(lambda item: self._read_end(item, num_bytes), left))
        return [next(asked_again) if end is None else end for end in ends]

    def _read_end(self, item: ObjectInfo, num_bytes: int) -> bytes:
        where = self._url(item.key)
        with gone_as_run_failed(where), self.open(item.key) as file:
            if cast(_S3File, file).version != item.version:
                raise changed_error(where)
            file.seek(max(item.size - num_bytes, 0))
            return file.read(num_bytes)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with _s3_errors(self._url(key)):
            try:
                self._put(key, data, mode="create")
            except OSError as error:
                if _is_precondition_failed(error):
                    return False
                raise
            return True

    @contextmanager
    def open_new(self, key: str) -> Iterator[BinaryIO]:
        where = self._url(key)
        with _s3_errors(where):
            if self._fs.exists(self._path(key)):
                raise name_taken(where)
            # In parts of some megabytes; the last request makes the object, if there is none yet.
            file = self._fs.open(self._path(key), "xb")
        try:
            with _s3_errors(where):
                yield file
                try:
                    file.close()
                except OSError as error:
                    if _is_precondition_failed(error):
                        raise name_taken(where) from error
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

    def put_if_match(self, key: str, data: bytes, version: str) -> bool:
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
            raise changed_error(where) from error
        raise RunFailed(f"{where}: {error}; check the store and run the command again") from error
