"""The last bytes of many S3 objects, by plain signed requests: planning asks for them by thousands.

A request through s3fs costs four times the Python, most of it botocore's models and hooks. Here
botocore signs and aiohttp sends, which both come with s3fs; endpoint, region, credentials, proxies
and timeouts are those of s3fs. Nothing is tried again and no error is told: what is not answered
plainly is None, and the store asks for it through s3fs.
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

# Objects that are asked for at a time, each over a connection of its own.
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class ObjectEnd:
    """Where an object's last bytes are: its bucket and key, the first byte, its size and ETag."""

    path: str
    start: int
    size: int
    etag: str


class _NotPlain(Exception):
    """An answer that is not the bytes of the very object that was asked for."""


class _Sender:
    """Signs and sends one request after another."""

    def __init__(self, meta: Any, credentials: Any) -> None:
        self._endpoint = meta.endpoint_url.rstrip("/")
        scheme = self._endpoint.partition(":")[0]
        self.proxy: str | None = get_environ_proxies(self._endpoint).get(scheme)
        region = meta.region_name
        # botocore's name for the region of a client that was told none.
        region = "us-east-1" if region in (None, "aws-global") else region
        self._auth = S3SigV4Auth(credentials, "s3", region)

    async def read(
        self,
        session: aiohttp.ClientSession,
        left: Iterator[tuple[int, ObjectEnd]],
        found: list[bytes | None],
    ) -> None:
        """Take what is left, one by one, and put its bytes in its place."""
        for place, end in left:
            found[place] = await self._get(session, end) if end.size else b""

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
                raise _NotPlain
            data = await answer.read()
        if len(data) != end.size - end.start:
            raise _NotPlain
        return data


async def read_ends(fs: Any, wanted: Sequence[ObjectEnd]) -> list[bytes | None]:
    """The bytes, or None.

    With the first that fails no more are asked for: a store that is slow or down is s3fs's to wait
    for.
    """
    found: list[bytes | None] = [None] * len(wanted)
    client = await fs.set_session()
    credentials = await fs.session.get_credentials()
    if credentials is None:
        return found
    sender = _Sender(client.meta, await credentials.get_frozen_credentials())
    left = iter(enumerate(wanted))
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=fs.connect_timeout, sock_read=fs.read_timeout
    )
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
                timeout=timeout,
                # aiohttp itself would look the environment's up for each request, in a thread.
                proxy=sender.proxy,
                auto_decompress=False,
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(_CONNECTIONS, len(wanted))):
                group.create_task(sender.read(session, left, found))
    except* (_NotPlain, aiohttp.ClientError, OSError):
        pass
    return found
