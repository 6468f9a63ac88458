"""Run a Ray cluster on this machine, with the head and each worker as separate processes.

Use it to try cluster features without a real cluster: `python infra/local-cluster/serve.py`.
Everything listens on 127.0.0.1, and Ray accepts only clients with the token generated here.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 2**20
# How often to check that the head is still running.
LOOK_S = 1.0


def environment(folder: Path) -> dict[str, str]:
    """The environment variables for the cluster's processes and for drivers that connect to it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
        # On Linux, Ray 2.60 replaces a loopback address with the machine's own unless this is 0.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A separate folder, so that sessions and the address `auto` are not those of another Ray.
        "RAY_TMPDIR": str(folder),
    }


def start(port: int, workers: int, cpus: int) -> Any:
    """Start a head without cores, with its dashboard on `port`, and workers.

    Set the environment first.
    """
    # Imported late, because Ray reads its environment on import.
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    node = {"node_ip_address": HOST, "object_store_memory": OBJECT_STORE_BYTES}
    dashboard = {"include_dashboard": True, "dashboard_host": HOST, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args={**node, **dashboard, "num_cpus": 0})
    for _ in range(workers):
        cluster.add_node(**node, num_cpus=cpus)
    return cluster


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _serve(folder: Path, port: int, workers: int, cpus: int) -> None:
    variables = environment(folder)
    os.environ.update(variables)
    # Run jobs' entrypoints with this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    cluster = start(port, workers, cpus)
    try:
        print(f"# Ray: a head and {workers} workers of {cpus} CPUs, at {cluster.address}")
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            print(f"export {name}={variables[name]}")
        print(f"export RAY_API_SERVER_ADDRESS=http://{cluster.head_node.webui_url}")
        print(f"# Prometheus: file_sd_configs of {folder}/ray/prom_metrics_service_discovery.json")
        print("# Ctrl-C stops it.", flush=True)
        while not cluster.head_node.dead_processes():
            time.sleep(LOOK_S)
        raise RuntimeError("a process of the head has ended")
    finally:
        cluster.shutdown()


def main() -> int:
    """Serve in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--port", type=int, default=8265, help="of the Job API (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="next to the head (default: %(default)s)"
    )
    parser.add_argument(
        "--cpus", type=int, default=4, help="that a worker offers (default: %(default)s)"
    )
    options = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
            _serve(Path(folder), options.port, options.workers, options.cpus)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
