"""The private names of Ray that tokenmill replaces or calls, all in one file.

Each patch is undone when its context ends.
"""

import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar

import ray
from ray._private import node, ray_constants, services
from ray._private import utils as ray_utils
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    AutoscalingCoordinator,
)
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators import actor_pool_map_operator as actor_pools
from ray.data._internal.stats import _StatsManager

from tokenmill.errors import RunFailed

LOOPBACK = "127.0.0.1"
# Ray Data looks at its tasks so often; until then nothing new has come out.
_TICK_S = 0.1


def listen_on_loopback(stack: ExitStack) -> None:
    """Have Ray listen where it is told to.

    On Linux Ray takes a loopback address for a mistake and the machine's own in its place
    (`services.resolve_ip_for_localhost`), and then listens on all of them.
    """
    _replace(stack, ray_constants, "ENABLE_RAY_CLUSTER", new=False)


def start_no_dashboard(stack: ExitStack) -> None:
    """Have Ray start neither the dashboard's processes nor the autoscaler's.

    `ray.init` waits for the dashboard's server even if it serves nothing: seconds of imports.
    """
    _replace(stack, services, "start_api_server", lambda *_, **__: (None, None))
    _replace(stack, node.Node, "start_monitor", lambda _: None)


def start_small_agents(stack: ExitStack) -> None:
    """Have Ray's agents of the node be small: they are if `ray[default]` seems not to be installed.

    With it one imports for seconds and looks at all processes each few seconds, to export metrics.
    """
    _replace(stack, ray_utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted"))


def start_no_cluster_actors(stack: ExitStack) -> None:
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


def poll_less_often(stack: ExitStack) -> None:
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
        return {LOOPBACK: self._resources}


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


class StopCallback(ExecutionCallback):  # type: ignore[misc]
    """Ends Ray Data's loop on behalf of another thread: it is called at each turn of it.

    The event is the class's own, as Ray makes the instance.
    """

    asked: ClassVar = threading.Event()

    def before_execution_starts(self, _executor: Any) -> None:
        self._heed()

    def on_execution_step(self, _executor: Any) -> None:
        self._heed()

    def _heed(self) -> None:
        if self.asked.is_set():
            raise RunFailed("stopped")
