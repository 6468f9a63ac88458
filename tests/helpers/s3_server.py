"""Fixtures for tests that need S3: one local server per test run, one fresh bucket per test."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
import s3fs

SERVE = Path(__file__).parents[2] / "infra" / "local-s3" / "serve.py"


class S3Server(Protocol):
    """The part of `LocalS3` in infra/local-s3/serve.py that tests use."""

    @property
    def endpoint_url(self) -> str: ...
    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def client(self) -> Any: ...
    def create_bucket(self, bucket: str) -> None: ...
    def delete_bucket(self, bucket: str) -> None: ...


def load_serve() -> ModuleType:
    """Import infra/local-s3/serve.py, a script outside of any package."""
    name = "local_s3_serve"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SERVE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their module while it loads
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A running S3 server, shared by all tests of the run."""
    with (
        tempfile.TemporaryDirectory(prefix="s3-tests-") as folder,
        load_serve().local_s3(Path(folder)) as server,
    ):
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new, empty bucket, with the AWS environment pointing at its server."""
    use_only(s3_server.environment, monkeypatch)
    bucket = f"test-{uuid.uuid4().hex}"
    s3_server.create_bucket(bucket)
    # fsspec caches instances by arguments, regardless of the environment.
    s3fs.S3FileSystem.clear_instance_cache()
    yield bucket
    s3fs.S3FileSystem.clear_instance_cache()
    s3_server.delete_bucket(bucket)


def use_only(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set these AWS variables and hide all other AWS settings of the machine."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    hidden = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for name, value in (hidden | environment).items():
        monkeypatch.setenv(name, value)
