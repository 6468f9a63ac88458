"""The Ray that a run starts for itself on this machine: open to nobody else, and soon there.

What Ray starts for clusters, their dashboards and their autoscalers is left out. Ray 2.60 has no
switches for it, so that its private names are used; `tests/test_security.py` looks at what comes.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import ray
from ray._private import node, ray_constants, services
from ray._private import utils as ray_utils
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    AutoscalingCoordinator,
)
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.operators import actor_pool_map_operator as actor_pools
from ray.data._internal.stats import _StatsManager

from pipeline.errors import UserError

# Parcels wait here between stages; Ray Data holds back reading when half of it is full.
_OBJECT_STORE_BYTES = 2 * 2**30
_LOOPBACK = "127.0.0.1"
# Ray's default of ten seconds is longer than many a local run.
_REPORT_INTERVAL_MS = 1000
# Ray Data looks at its tasks so often; until then nothing new has come out.
_TICK_S = 0.1


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
            _listen_on_loopback(start)
            _start_no_dashboard(start)
            if metrics_port is None:
                _start_small_agents(start)
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                _node_ip_address=_LOOPBACK,
                object_store_memory=_object_store_bytes(),
                **options,
            )
        _start_no_actors_for_clusters(run)
        _look_less_often(run)
        yield


def _listen_on_loopback(stack: ExitStack) -> None:
    """Have Ray listen where it is told to.

    On Linux Ray takes a loopback address for a mistake and the machine's own in its place
    (`services.resolve_ip_for_localhost`), and then listens on all of them.
    """
    _replace(stack, ray_constants, "ENABLE_RAY_CLUSTER", new=False)


def _start_no_dashboard(stack: ExitStack) -> None:
    """Have Ray start neither the dashboard's processes nor the autoscaler's.

    `ray.init` waits for the dashboard's server even if it serves nothing: seconds of imports.
    """
    _replace(stack, services, "start_api_server", lambda *_, **__: (None, None))
    _replace(stack, node.Node, "start_monitor", lambda _: None)


def _start_small_agents(stack: ExitStack) -> None:
    """Have Ray's agents of the node be small: they are if `ray[default]` seems not to be installed.

    With it one imports for seconds and looks at all processes each few seconds, to export metrics.
    """
    _replace(stack, ray_utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted"))


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
            probe.bind((_LOOPBACK, port))
        except OSError as error:
            raise UserError(f"--metrics-port {port}: {error.strerror}; choose another") from error


def _metrics_options(port: int) -> dict[str, Any]:
    interval = {"metrics_report_interval_ms": _REPORT_INTERVAL_MS}
    return {"_metrics_export_port": port, "_system_config": interval}


def _start_no_actors_for_clusters(stack: ExitStack) -> None:
    """Have Ray Data keep no statistics for a dashboard, and share the machine with nobody.

    Nor has it to keep in mind on which node its actors are. Each of these would be an actor:
    seconds of imports, beside the engine's on the same cores.
    """
    for name in (
        "register_dataset_to_stats_actor",
        "update_execution_metrics",
        "update_iteration_metrics",
    ):
        _replace(stack, _StatsManager, name, staticmethod(lambda *_, **__: None))
    _replace(stack, autoscaler, "DefaultAutoscalingCoordinator", _WholeMachine)
    _replace(stack, actor_pools, "get_or_create_actor_location_tracker", _NoTracker)
    # Of whom nothing is known is taken to be where it was.
    _replace(stack, actor_pools, "get_actor_locations", lambda _: {})


def _look_less_often(stack: ExitStack) -> None:
    """Have Ray Data look for its output once a tick, not every ten milliseconds.

    Each look wakes the driver, in place of a thread of the engine for which its others then wait.
    """
    clock = SimpleNamespace(time=time.time, sleep=lambda _: time.sleep(_TICK_S))
    _replace(stack, streaming_executor_state, "time", clock)


class _WholeMachine(AutoscalingCoordinator):  # type: ignore[misc]
    """Gives Ray Data all that the machine has; there is no more to be asked for."""

    def __init__(self, **_: Any) -> None:
        self._resources = ray.cluster_resources()

    def request_resources(self, *_: Any, **__: Any) -> None:
        """Nothing is added."""

    def cancel_request(self) -> None:
        """Nothing is taken back."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """By node."""
        return {_LOOPBACK: self._resources}


class _NoTracker:
    """Stands for the actor that an actor tells where it is, in that actor's process."""

    @property
    def update_actor_location(self) -> SimpleNamespace:
        """Told, and forgotten."""
        return SimpleNamespace(remote=lambda *_: None)


def _replace(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    """A name of Ray's stands for something else until the stack is left."""
    stack.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, new)


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
