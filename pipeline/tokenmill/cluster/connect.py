"""Connecting to Ray: a cluster that wants a token, or a local Ray of our own."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.data import DataContext

from tokenmill.cluster.local import local_ray
from tokenmill.cluster.ray_patches import StopCallback
from tokenmill.errors import RunFailed, UserError

# The engine and the thread that feeds it. Unlike the render tasks' one, or Ray Data would run
# rendering inside of the replicas.
CPUS_PER_REPLICA = 2
# Ray's head and the board answer within milliseconds; this is for a network that does not.
ANSWER_TIMEOUT_S = 10


@contextmanager
def connected(address: str | None, replicas: int, metrics_port: int | None) -> Iterator[None]:
    """Ray at `address`, or a local one; the caller shuts it down."""
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    is_ours = address is None
    with ExitStack() as stack:
        try:
            if is_ours:
                # The replicas' share comes on top of the cores: reading must not wait for them.
                num_cpus = (os.cpu_count() or 1) + CPUS_PER_REPLICA * replicas
                stack.enter_context(local_ray(num_cpus, metrics_port, options))
            else:
                ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = address or "a local cluster"
            reason = " ".join(str(error).split())
            raise RunFailed(f"Ray at {where} did not answer: {reason}") from error
        if not is_ours and os.environ.get("RAY_AUTH_MODE") != "disabled":
            require_closed_cluster(ray.get_runtime_context().gcs_address)
        # Ray puts its own in its place, which ends the process on the spot.
        signal.signal(signal.SIGTERM, on_sigterm)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # A thread for each unit, which nobody asks for what it finds.
        context.memory_usage_poll_interval_s = None
        # An engine that cannot start will not start the next time.
        context.max_consecutive_actor_init_deaths = 0
        context.custom_execution_callback_classes = [StopCallback]
        yield


def require_closed_cluster(gcs_address: str) -> None:
    """Raise `UserError` if the cluster whose head is there answers who has no token."""
    # Half a second of import, for a cluster of the user's only.
    import grpc  # noqa: PLC0415

    with grpc.insecure_channel(gcs_address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=ANSWER_TIMEOUT_S)
        except grpc.RpcError:
            # Refused, or not understood: it wants a token, or TLS with certificates.
            return
    raise UserError(
        f"Ray at {gcs_address} runs the code of anyone who reaches it: it asks for no token; start "
        "it with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled here to use it all the same"
    )


def cluster_has_gpus() -> bool:
    """Whether any node of the connected cluster has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0))
