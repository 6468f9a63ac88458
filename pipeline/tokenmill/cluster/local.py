"""The Ray that a run starts for itself on this machine: open to nobody else, and soon there.

What Ray starts for clusters, their dashboards and their autoscalers is left out. Ray 2.60 has no
switches for it, so its private names are used; `test_security.py` checks the result.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import utils as ray_utils

from tokenmill.cluster.ray_patches import (
    LOOPBACK,
    listen_on_loopback,
    poll_less_often,
    start_no_cluster_actors,
    start_no_dashboard,
    start_small_agents,
)
from tokenmill.errors import UserError

# Parcels wait here between stages; Ray Data holds back reading when half of it is full.
_OBJECT_STORE_BYTES = 2 * 2**30
# Ray's default of ten seconds is longer than many a local run.
_REPORT_INTERVAL_MS = 1000


@contextmanager
def local_ray(
    num_cpus: int, metrics_port: int | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """Start Ray with so many CPUs and these options of `ray.init`; the caller shuts it down.

    With a port its agent exports metrics there. Raises `UserError` for one that it would not get,
    and where the environment would have Ray obey anyone; and what `ray.init` raises.
    """
    _require_token()
    if metrics_port is not None:
        _check_metrics_port(metrics_port)
        options = {**options, **_metrics_options(metrics_port)}
    with ExitStack() as run:
        with ExitStack() as start:
            listen_on_loopback(start)
            start_no_dashboard(start)
            if metrics_port is None:
                start_small_agents(start)
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                object_store_memory=_object_store_bytes(),
                **options,
            )
        start_no_cluster_actors(run)
        poll_less_often(run)
        yield


def _check_metrics_port(port: int) -> None:
    """Raise `UserError` for a port without an agent, or that is not free: the agent would die."""
    if ray_utils.get_dashboard_dependency_error() is not None:
        raise UserError(
            f"--metrics-port {port}: Ray's agent is not installed: pip install 'ray[default]'"
        )
    with socket.socket() as probe:
        # As the agent does: a port that was closed a moment ago will do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(f"--metrics-port {port}: {error.strerror}; choose another") from error


def _metrics_options(port: int) -> dict[str, Any]:
    interval = {"metrics_report_interval_ms": _REPORT_INTERVAL_MS}
    return {"_metrics_export_port": port, "_system_config": interval}


def _require_token() -> None:
    """Have the Ray that is started here obey only who knows its token. Raises `UserError`."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        raise UserError(
            f"RAY_AUTH_MODE={mode}: the Ray that is started here would run whatever any user of "
            "this machine sends it; unset the variable"
        )
    if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # Ray would keep one in ~/.ray/auth_token, where all users may read it (mode 644).
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _object_store_bytes() -> int:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_OBJECT_STORE_BYTES, available // 8)
