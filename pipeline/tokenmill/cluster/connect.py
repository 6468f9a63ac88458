"""Connecting to Ray: the user's cluster, or a local Ray that ends with the run."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

import tokenmill
from tokenmill.cluster.address import require_cluster
from tokenmill.cluster.local import local_ray, shut_down
from tokenmill.cluster.ray_patches import RayPatches
from tokenmill.errors import RunFailed

# The engine and the thread that feeds it. Must differ from the CPUs of a render task, or Ray Data
# fuses rendering with the replicas.
CPUS_PER_REPLICA = 2


@contextmanager
def connected(address: str | None, replicas: int, metrics_port: int | None) -> Iterator[None]:
    """Ray at `address`, or a local one, while the context is open; a local one ends with it.

    Raises `UserError` for a cluster that is not proven to require a token, and for settings that
    cannot work; `RunFailed` for a cluster that does not answer.
    """
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        try:
            with RayPatches() as start, _processes_that_outlive_a_terminal():
                if not _is_source_folder(os.getcwd()):
                    start.hide_working_directory()
                if address is None:
                    # Advertise extra CPUs for the replicas, so that read tasks can start as well.
                    num_cpus = (os.cpu_count() or 1) + CPUS_PER_REPLICA * replicas
                    stack.enter_context(local_ray(num_cpus, metrics_port, options))
                else:
                    ray.init(address=require_cluster(address), **options)
                    stack.callback(shut_down)
        except (OSError, ValueError, RuntimeError) as error:
            name = address or "a local cluster"
            reason = " ".join(str(error).split())
            # It has just answered the check, so it is likely to want a token.
            cure = "; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token" if address else ""
            raise RunFailed(f"Ray at {name} did not answer: {reason}{cure}") from error
        # Ray installs a handler that ends the process at once.
        signal.signal(signal.SIGTERM, on_sigterm)
        stack.enter_context(_data_context())
        yield


@contextmanager
def _processes_that_outlive_a_terminal() -> Iterator[None]:
    """Make processes that start in this context ignore SIGHUP, which a closed terminal sends.

    Otherwise Ray would be gone before the run can stop. A signal that arrives meanwhile is handled
    at the end of the context.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _is_source_folder(folder: str) -> bool:
    """Whether the folder holds this tokenmill, which may not be installed: workers need it then."""
    return Path(folder).resolve() == Path(tokenmill.__file__).resolve().parents[1]


@contextmanager
def _data_context() -> Iterator[None]:
    """Settings of Ray Data for a run; the previous ones are restored afterwards."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Saves a thread per unit; its measurements are not used.
    context.memory_usage_poll_interval_s = None
    # An engine that cannot start fails the same way the next time.
    context.max_consecutive_actor_init_deaths = 0
    with RayPatches() as patches, DataContext.current(context):
        patches.stop_on_request(context)
        yield


def cluster_has_gpus() -> bool:
    """Whether any node of the connected cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0))
