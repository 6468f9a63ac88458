"""The bad network before the tests' S3 server."""

from collections.abc import Iterator

import pytest
from helpers.s3_server import S3Server
from tokenmill.storage.s3 import S3Store

from faults.proxy import Calm, FaultyS3


@pytest.fixture(scope="session")
def proxy_before_s3(s3_server: S3Server) -> Iterator[FaultyS3]:
    """The proxy, started once."""
    with FaultyS3(s3_server.endpoint_url).running() as proxy:
        yield proxy


@pytest.fixture
def proxy(proxy_before_s3: FaultyS3) -> FaultyS3:
    """The proxy, with all faults off."""
    proxy_before_s3.weather = Calm()
    proxy_before_s3.writes.clear()
    return proxy_before_s3


@pytest.fixture
def far(proxy: FaultyS3, s3_bucket: str) -> S3Store:
    """A store behind the proxy."""
    return S3Store(f"s3://{s3_bucket}/out", proxy.endpoint_url)


@pytest.fixture
def near(s3_server: S3Server, s3_bucket: str) -> S3Store:
    """The same place, without the proxy."""
    return S3Store(f"s3://{s3_bucket}/out", s3_server.endpoint_url)
