"""A fixture for tests that need a Ray cluster: that of infra/local-cluster, once per module."""

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
    """A running cluster: the URL of its Job API, and the variables that a client needs.

    Prometheus finds its nodes in the file `discovery`.
    """

    address: str
    environment: dict[str, str]
    discovery: Path


@pytest.fixture(scope="module")
def ray_cluster(s3_server: S3Server) -> Iterator[RayCluster]:
    """A head and two workers; only their processes have credentials of the S3 server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # The cluster must use the code that is submitted, and no other.
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, str(SERVE), "--port", str(free_port()), "--cpus", "3"]
    with subprocess.Popen(
        ["/usr/bin/env", "--default-signal=INT", *command],
        env=environment | s3_server.environment,
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
    """The variables and the file that the script prints when the cluster has started."""
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
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
