"""The address of a cluster is checked before Ray connects, which may never give up."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from helpers.http_server import QuietHandler, serving
from helpers.ray_cluster import free_port
from helpers.stores import refusal
from tokenmill.cluster.address import require_cluster
from tokenmill.cluster.ray_executor import RayExecutor
from tokenmill.errors import RunFailed, UserError

TIMEOUT_S = 0.5


@contextmanager
def silent() -> Iterator[int]:
    """A port where connections are accepted and nothing is said."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def http() -> Iterator[int]:
    """A port of a web server."""
    with serving(QuietHandler) as url:
        yield int(url.rpartition(":")[2])


@contextmanager
def nothing() -> Iterator[int]:
    """A port where nothing listens."""
    yield free_port()


@pytest.mark.parametrize("mode", ["token", "disabled"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", socket.gethostname()])
@pytest.mark.parametrize("listener", [silent, http, nothing])
def test_a_port_without_ray_fails_within_the_timeout(
    listener: Callable[[], AbstractContextManager[int]],
    host: str,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever listens there, also if open clusters are accepted, the line names the variable."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with listener() as port:
        line = refusal(RunFailed, lambda: require_cluster(f"{host}:{port}", TIMEOUT_S))
    assert f"{host}:{port}" in line
    assert "RAY_ADDRESS" in line


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:8265", "head", "head:", ":6379", "head:port"]
)
def test_what_is_no_address_of_a_head_is_a_user_error(address: str) -> None:
    """Addresses of Ray's other interfaces and typing errors are named."""
    line = refusal(UserError, lambda: require_cluster(address))
    assert address in line
    assert "RAY_ADDRESS" in line


def test_auto_is_the_cluster_that_was_started_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one it is a mistake; one that has ended does not answer."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "RAY_ADDRESS" in refusal(UserError, lambda: require_cluster("auto"))
    ended = f"127.0.0.1:{free_port()}"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{ended}\n")
    assert ended in refusal(RunFailed, lambda: require_cluster("auto"))


@pytest.mark.parametrize(
    ("variable", "option", "is_local"),
    [
        (None, None, True),
        ("", None, True),
        (" \n", None, True),
        ("local", None, True),
        ("head:6379", "local", True),
        ("head:6379", None, False),
        ("auto", None, False),
        ("local", "head:6379", False),
    ],
)
def test_a_run_is_local_unless_a_cluster_is_named(
    variable: str | None, option: str | None, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option takes precedence; `local` is Ray's word for a Ray of one's own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert RayExecutor(option).is_local == is_local
