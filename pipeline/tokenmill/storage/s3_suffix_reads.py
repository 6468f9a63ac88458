"""Read the last bytes of thousands of S3 objects with plain signed requests, for planning.

A request through s3fs takes four times the CPU time, most of it in botocore's models and hooks.
Here botocore signs and aiohttp sends; both come with s3fs. Endpoint, region, credentials, proxies
and timeouts are those of s3fs. Nothing is retried and no error is raised: the result of a request
that fails is None, and the store reads that object through s3fs.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import aiohttp
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.utils import get_environ_proxies
from yarl import URL

# Concurrent requests, each over its own connection.
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class ObjectEnd:
    """A range to read: the object's bucket and key, the first byte, the object's size and ETag."""

    path: str
    start: int
    size: int
    etag: str


class _UnexpectedAnswer(Exception):
    """An answer other than the requested bytes of the listed object."""


class _Sender:
    """Signs and sends one request after another."""

    def __init__(self, meta: Any, credentials: Any) -> None:
        self._endpoint = meta.endpoint_url.rstrip("/")
        scheme = self._endpoint.partition(":")[0]
        self.proxy: str | None = get_environ_proxies(self._endpoint).get(scheme)
        region = meta.region_name
        # botocore uses `aws-global` for a client without a region.
        region = "us-east-1" if region in (None, "aws-global") else region
        self._auth = S3SigV4Auth(credentials, "s3", region)

    async def read(
        self,
        session: aiohttp.ClientSession,
        ends: Iterator[tuple[int, ObjectEnd]],
        results: list[bytes | None],
    ) -> None:
        """Read the next end until none remains. `results` gets the bytes by index."""
        for index, end in ends:
            results[index] = await self._get(session, end) if end.size else b""

    async def _get(self, session: aiohttp.ClientSession, end: ObjectEnd) -> bytes:
        url = f"{self._endpoint}/{quote(end.path, safe='/~')}"
        headers = {"Range": f"bytes={end.start}-{end.size - 1}", "Accept-Encoding": "identity"}
        request = AWSRequest("GET", url, headers=headers)
        self._auth.add_auth(request)
        async with session.get(
            URL(url, encoded=True), headers=dict(request.headers.items()), allow_redirects=False
        ) as answer:
            etag = answer.headers.get("ETag", "").strip('"')
            if answer.status != HTTPStatus.PARTIAL_CONTENT or etag != end.etag:
                raise _UnexpectedAnswer
            data = await answer.read()
        if len(data) != end.size - end.start:
            raise _UnexpectedAnswer
        return data


async def read_ends(fs: Any, ends: Sequence[ObjectEnd]) -> list[bytes | None]:
    """Read the ends through the connection of `fs`, an `S3FileSystem`.

    After the first failure, the other results are None: s3fs knows how to wait for a store that is
    slow or down.
    """
    results: list[bytes | None] = [None] * len(ends)
    client = await fs.set_session()
    credentials = await fs.session.get_credentials()
    if credentials is None:
        return results
    sender = _Sender(client.meta, await credentials.get_frozen_credentials())
    remaining = iter(enumerate(ends))
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=fs.connect_timeout, sock_read=fs.read_timeout
    )
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                timeout=timeout,
                # aiohttp would look up the environment's proxy for each request, in a thread.
                proxy=sender.proxy,
                auto_decompress=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(_CONNECTIONS, len(ends))):
                group.create_task(sender.read(session, remaining, results))
    except* (_UnexpectedAnswer, aiohttp.ClientError, OSError):
        pass
    return results
