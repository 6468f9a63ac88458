"""The fixture of tests that need a Ray cluster: one for all of them, of infra/local-cluster."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.command import ROOT
from helpers.s3_server import S3Server

SERVE = ROOT / "infra" / "local-cluster" / "serve.py"


@dataclass(frozen=True)
class RayCluster:
    """A running cluster: its Job API, and what a client sets to be let in.

    Prometheus finds its nodes by the file `discovery`.
    """

    address: str
    environment: dict[str, str]
    discovery: Path


@pytest.fixture(scope="module")
def ray_cluster(s3_server: S3Server) -> Iterator[RayCluster]:
    """A head and two workers, whose processes alone may enter the S3 server."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # What is shipped must not be found here in another way.
    ours.pop("PYTHONPATH", None)
    command = [sys.executable, str(SERVE), "--port", str(free_port()), "--cpus", "3"]
    with subprocess.Popen(
        ["/usr/bin/env", "--default-signal=INT", *command],
        env=ours | s3_server.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            exported, discovery = _exported(process)
            yield RayCluster(exported.pop("RAY_API_SERVER_ADDRESS"), exported, discovery)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0


def _exported(process: "subprocess.Popen[str]") -> tuple[dict[str, str], Path]:
    """The variables and the file that the script prints before it says how it is stopped."""
    assert process.stdout is not None
    exported, discovery = {}, Path()
    for line in process.stdout:
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").strip().partition("=")
            exported[name] = value
        if line.startswith("# Prometheus:"):
            discovery = Path(line.split()[-1])
        if "Ctrl-C" in line:
            return exported, discovery
    raise AssertionError(f"the cluster did not start: {process.wait()}")


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
