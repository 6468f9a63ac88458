"""Clusters that `submit` and `jobs` refuse: each in one line that says why."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from helpers.factories import job_data
from helpers.http_server import QuietHandler, serving
from helpers.ray_cluster import free_port
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from typer.testing import CliRunner

S3 = {"input.path": "s3://bucket/in", "output.path": "s3://bucket/out"}
TOKEN = "the-token"  # noqa: S105 - of a server of these tests


@contextmanager
def job_api(answers: Mapping[str, Any], token: str | None = TOKEN) -> Iterator[str]:
    """A server with these JSON answers by path; yields its URL.

    As Ray's, it answers 401 without a token and 403 with a wrong one. With `token=None` it is open.
    """

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization")
            if token is not None and sent != f"Bearer {token}":
                self.send_error(401 if sent is None else 403)
                return
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

    with serving(Handler) as url:
        yield url


def ray_of(version: str) -> dict[str, Any]:
    """The answers of a cluster with this version of Ray and no jobs."""
    return {"/api/version": {"version": "4", "ray_version": version}, "/api/jobs/": []}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, and an environment that says nothing about tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def refused(
    home: Path, address: str, exit_code: ExitCode = ExitCode.USER_ERROR, **env: str | None
) -> str:
    """The one line with which `submit` ends."""
    (home / "job.yaml").write_text(yaml.safe_dump(job_data(S3)))
    command = ["submit", str(home / "job.yaml"), "--address", address]
    done = CliRunner().invoke(app, command, env={"RAY_AUTH_TOKEN": TOKEN, **env})
    assert done.exit_code == exit_code, done.output
    (line,) = done.stderr.splitlines()
    return line


def listed(address: str, **env: str | None) -> str:
    """What `jobs --json` prints."""
    done = CliRunner().invoke(app, ["jobs", "--json", "--address", address], env=env)
    assert done.exit_code == ExitCode.FINISHED, done.output
    return done.stdout


def test_another_version_of_ray_is_refused(home: Path) -> None:
    """The code that is sent runs with one version; an image may have its own code."""
    with job_api(ray_of("2.54.1")) as address:
        line = refused(home, address)
    assert "2.54.1" in line
    assert ray.__version__ in line
    assert "--no-ship" in line


def test_a_cluster_that_requires_no_token_is_refused(home: Path) -> None:
    """With RAY_AUTH_MODE=disabled the user insists, and the next check decides."""
    with job_api(ray_of("2.54.1"), token=None) as address:
        line = refused(home, address)
        assert "requires no token" in line
        assert "RAY_AUTH_MODE=disabled" in line
        assert "2.54.1" in refused(home, address, RAY_AUTH_MODE="disabled")


def test_the_token_is_found_where_ray_looks_for_it(home: Path) -> None:
    """In a variable, in the file that a variable names, or in ~/.ray/auth_token."""
    with job_api(ray_of("2.54.1")) as address:
        assert "[]" in listed(address, RAY_AUTH_TOKEN=TOKEN)
        file = home / "token"
        file.write_text(f"{TOKEN}\n")
        assert "[]" in listed(address, RAY_AUTH_TOKEN_PATH=str(file))
        (home / ".ray").mkdir()
        file.rename(home / ".ray" / "auth_token")
        assert "[]" in listed(address)


def test_a_wrong_or_missing_token_is_refused(home: Path) -> None:
    """The line names the variables that hold one."""
    with job_api(ray_of("2.54.1")) as address:
        wrong = refused(home, address, RAY_AUTH_TOKEN="another")  # noqa: S106 - a decoy
        missing = refused(home, address, RAY_AUTH_TOKEN=None)
        unreadable = refused(
            home, address, RAY_AUTH_TOKEN=None, RAY_AUTH_TOKEN_PATH=str(home / "none")
        )
    assert "refuses the token" in wrong
    assert "none is set" in missing
    assert all("RAY_AUTH_TOKEN" in line for line in (wrong, missing))
    assert str(home / "none") in unreadable


def test_a_server_that_is_no_job_api_is_refused(home: Path) -> None:
    """Another server, no server, another scheme, no address: each in one line."""
    for answers in ({}, {"/api/version": ["?"]}):
        with job_api(answers, token=None) as address:
            assert "is not Ray's Job API" in refused(home, address)
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "does not answer" in refused(home, nowhere, ExitCode.FAILED)
    assert "http://HOST:8265" in refused(home, "ray://head:10001")
    done = CliRunner().invoke(app, ["jobs"], env={"RAY_API_SERVER_ADDRESS": None})
    assert done.exit_code == ExitCode.USER_ERROR
    assert "--address" in done.stderr
