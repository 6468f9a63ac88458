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
from tokenmill.storage.s3_environment import check_s3_environment

# S3's limit for one PUT: below it an object is one request, and so one atomic step.
_SINGLE_PUT_BYTES = 5 * 2**30
# With more retries, a mistyped endpoint would hang for minutes.
_MAX_RETRIES = 5


class S3Store:
    """A prefix in a bucket. Credentials, profile, region and endpoint come from the AWS chain.

    `endpoint_url` takes precedence over AWS_ENDPOINT_URL. botocore retries a request up to
    `max_retries` times with exponential backoff, and s3fs repeats that if it is throttled.
    """

    def __init__(
        self, url: str, endpoint_url: str | None = None, max_retries: int = _MAX_RETRIES
    ) -> None:
        self._root = url.removeprefix("s3://").rstrip("/")
        self.url = f"s3://{self._root}"
        if not self._root.split("/")[0]:
            raise UserError(f"{url}: has no bucket; write s3://bucket/prefix")
        if self._root.startswith("arn:"):
            raise UserError(
                f"{url}: an ARN is not taken as a bucket; write the bucket's name, or the alias of "
                "the access point (s3://…-s3alias/prefix)"
            )
        self.endpoint_url = endpoint_url
        self._max_retries = max_retries
        self._connected: Any = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str | None, int]]:
        # A connection cannot be sent to another process; each process opens its own.
        return S3Store, (self.url, self.endpoint_url, self._max_retries)

    @property
    def _fs(self) -> Any:
        if self._connected is None:
            # Imported here, so that local jobs do not pay for it.
            import s3fs  # noqa: PLC0415

            check_s3_environment()
            s3fs.core.set_custom_error_handler(_is_conflict)
            self._connected = s3fs.S3FileSystem(
                endpoint_url=self.endpoint_url,
                use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={"retries": {"max_attempts": self._max_retries, "mode": "standard"}},
            )
        return self._connected

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with _s3_errors(self.url):
            entries = self._fs.find(self._path(prefix), detail=True)
        for path in sorted(entries):
            # S3 consoles create empty objects named `folder/`. s3fs lists the folder itself if its
            # first object was created right after an empty listing.
            if not path.endswith("/") and entries[path]["type"] != "directory":
                yield self._info(path, entries[path])

    def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _s3_errors(self._url(key)):
            entry = self._fs.info(path)
            if entry["type"] == "directory":
                raise FileNotFoundError(errno.ENOENT, "a folder is not an object", path)
            return self._info(path, entry)

    def _info(self, path: str, entry: dict[str, Any]) -> ObjectInfo:
        # An object at the root itself has the empty key.
        key = path.removeprefix(self._root).removeprefix("/")
        return ObjectInfo(key, int(entry["size"]), str(entry["ETag"]).strip('"'))

    def read(self, key: str) -> bytes:
        with _s3_errors(self._url(key)):
            return cast(bytes, self._fs.cat_file(self._path(key)))

    def open(self, key: str) -> BinaryIO:
        with _s3_errors(self._url(key)):
            # pyarrow asks for exactly the ranges that it needs; a read-ahead would fetch more.
            file = self._fs.open(self._path(key), "rb", cache_type="none")
        return cast(BinaryIO, _S3File(file, self._url(key)))

    def read_ends(self, items: Sequence[ObjectInfo], num_bytes: int) -> Sequence[bytes]:
        # Imported here, like s3fs.
        from fsspec.asyn import sync  # noqa: PLC0415

        from tokenmill.storage.s3_suffix_reads import ObjectEnd, read_ends  # noqa: PLC0415

        objects = [
            ObjectEnd(self._path(item.key), max(item.size - num_bytes, 0), item.size, item.version)
            for item in items
        ]
        with _s3_errors(self.url):
            ends = sync(self._fs.loop, read_ends, self._fs, objects)
        missing = [item for item, end in zip(items, ends, strict=True) if end is None]
        reread = iter(read_each(lambda item: self._read_end(item, num_bytes), missing))
        return [next(reread) if end is None else end for end in ends]

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
            # Uploads parts of some megabytes. The last request creates the object if none exists.
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
            # The error matters more than uploaded parts, which no reader sees.
            with suppress(OSError):
                file.discard()
            # Otherwise its finalizer would upload the rest.
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
    """An open object whose reads raise the store's errors, which no reader takes for a bad file."""

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
    """The error code and the HTTP status of S3's answer, if there is one."""
    response = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return response.get("Error", {}).get("Code"), status


def _is_precondition_failed(error: OSError) -> bool:
    """Whether S3 answered 412: the condition does not hold. s3fs raises two types for it."""
    _, status = _answer_to(error.__cause__)
    return isinstance(error, FileExistsError) or status == HTTPStatus.PRECONDITION_FAILED


def _is_conflict(error: Exception) -> bool:
    """Whether another conditional write of the same key was in progress, so that s3fs retries."""
    return _answer_to(error) == ("ConditionalRequestConflict", HTTPStatus.CONFLICT)


def _tls_error(where: str, reason: str) -> UserError | RunFailed:
    """The error for a TLS connection that could not be made."""
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return UserError(
            f"{where}: the store's certificate cannot be verified ({reason}); if you trust it, set "
            "AWS_CA_BUNDLE to a file with the certificate of its issuer"
        )
    if "WRONG_VERSION_NUMBER" in reason:
        return UserError(f"{where}: the endpoint does not speak https ({reason}); write http://")
    return RunFailed(f"{where}: {reason}; check the store and run the command again")


@contextmanager
def _s3_errors(where: str) -> Iterator[None]:
    # botocore takes half a second to import.
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
        SSLError,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise UserError(
            f"{where}: {error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{where}: access denied ({error}); check that the credentials allow this and have "
            "not expired, and that the bucket is not Requester Pays, and run the command again"
        ) from error
    except FileNotFoundError as error:
        if _answer_to(error.__cause__)[0] == "NoSuchBucket":
            raise UserError(f"{where}: {error}; create the bucket or fix the URL") from error
        raise
    except (ValueError, ParamValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where}: {reason}; fix the URL or the endpoint") from error
    except SSLError as error:
        raise _tls_error(where, str(error)) from error
    except (BotoCoreError, OSError) as error:
        if getattr(error, "errno", None) == errno.EBUSY:
            # s3fs raises this if the ETag has changed since reading began.
            raise changed_error(where) from error
        raise RunFailed(f"{where}: {error}; check the store and run the command again") from error
