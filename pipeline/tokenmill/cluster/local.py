"""The Ray that a run starts on this machine: reachable from here only, and started fast.

Ray's dashboard and its autoscaler are left out, by patches of private names (`ray_patches`).
`tests/end_to_end/test_security.py` checks the processes and ports.
"""

import gc
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from tokenmill.cluster.auth_check import check_gcs
from tokenmill.cluster.ray_patches import LOOPBACK, RayPatches
from tokenmill.errors import UserError

# Units wait here between stages; Ray Data stops reading when it is half full.
_OBJECT_STORE_BYTES = 2 * 2**30
# Ray's default of 10 s is longer than many local runs.
_REPORT_INTERVAL_MS = 1000


@contextmanager
def local_ray(
    num_cpus: int, metrics_port: int | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """A Ray with this number of CPUs and these options of `ray.init`, until the context ends.

    With `metrics_port` its agent exports metrics there. Raises `UserError` for a port that is not
    available and for a Ray that others could use, and what `ray.init` raises.
    """
    _set_token()
    if metrics_port is not None:
        _check_port_is_free(metrics_port)
    with RayPatches() as start:
        start.listen_on_loopback()
        start.enable_tokens()
        start.start_no_dashboard()
        if metrics_port is None:
            start.start_small_agents()
        else:
            metrics = start.export_metrics(metrics_port, _REPORT_INTERVAL_MS)
            options = {**options, **metrics}
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=_object_store_bytes(),
            **options,
        )
    try:
        _require_private()
        yield
    finally:
        shut_down()


def shut_down() -> None:
    """Disconnect from Ray; a local one ends with its processes."""
    # Ray ends this process, silently and with exit code 1, if another thread frees one of its
    # objects during the shutdown. So garbage is collected before, and not meanwhile.
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        gc.enable()


def _check_port_is_free(port: int) -> None:
    """Raise `UserError` for a port that is taken: the agent would end, and Ray with it."""
    with socket.socket() as probe:
        # Like Ray's agent, treat a port that was just closed as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise UserError(f"--metrics-port {port}: {error.strerror}; choose another") from error


def _set_token() -> None:
    """Set a token for the Ray that is about to start. Raises `UserError` if tokens are off."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        raise UserError(
            f"RAY_AUTH_MODE={mode}: every user of this machine could run code in the Ray that is "
            "started here; unset the variable"
        )
    if not os.environ.get("RAY_AUTH_TOKEN") and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # Ray would write one to ~/.ray/auth_token, which all users can read (mode 644).
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _require_private() -> None:
    """Raise `UserError` unless the Ray that was started listens on loopback and requires a token.

    This looks at the result, whatever the patches and the version of Ray have done.
    """
    gcs_address = ray.get_runtime_context().gcs_address
    hosts = {gcs_address.rpartition(":")[0], *(node["NodeManagerAddress"] for node in ray.nodes())}
    if hosts != {LOOPBACK}:
        raise UserError(
            f"Ray {ray.__version__} listens on {', '.join(sorted(hosts))}, and not only on "
            f"{LOOPBACK}; install a version of Ray that tokenmill is tested with"
        )
    finding = check_gcs(gcs_address)
    if not finding.is_closed:
        raise UserError(
            f"Ray {ray.__version__} was started here and does not require a token "
            f"({finding.reason or finding.access}); install a version of Ray that tokenmill is "
            "tested with"
        )


def _object_store_bytes() -> int:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_OBJECT_STORE_BYTES, available // 8)
