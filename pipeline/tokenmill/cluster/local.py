"""The Ray that a run starts on this machine: reachable from here only, and started fast.

Ray's dashboard and its autoscaler are left out, by patches of private names (`ray_patches`).
`tests/end_to_end/test_security.py` checks the processes and ports.
"""

import gc
import os
import resource
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from tokenmill.cluster.auth_check import check_gcs
from tokenmill.cluster.ray_folder import ray_folder
from tokenmill.cluster.ray_patches import LOOPBACK, RayPatches
from tokenmill.errors import UserError

# Units wait here between stages; Ray Data stops reading when it is half full.
_OBJECT_STORE_BYTES = 2 * 2**30
# Ray's default of 10 s is longer than many local runs.
_REPORT_INTERVAL_MS = 1000
# Connecting takes microseconds, unless packets are dropped.
_LOOPBACK_S = 5.0
# With 256 a small run works, with 64 its processes wait for each other forever.
_MIN_OPEN_FILES = 256


@contextmanager
def local_ray(
    num_cpus: int, metrics_port: int | None, options: Mapping[str, Any]
) -> Iterator[None]:
    """A Ray with this number of CPUs and these options of `ray.init`, until the context ends.

    With `metrics_port` its agent exports metrics there. Raises `UserError` for a machine on which
    Ray cannot run, for a port that is not available and for a Ray that others could use, and what
    `ray.init` raises.
    """
    _set_token()
    _check_open_files()
    _check_loopback()
    if metrics_port is not None:
        _check_port_is_free(metrics_port)
    with ray_folder():
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


def _check_open_files() -> None:
    """Raise `UserError` for a limit on open files with which Ray would hang.

    Ray raises the soft limit to the hard one.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < _MIN_OPEN_FILES:
        raise UserError(
            f"the limit on open files is {limit}, and Ray needs {_MIN_OPEN_FILES} or more; raise "
            "it, as with ulimit -n 4096"
        )


def _check_loopback() -> None:
    """Raise `UserError` if processes of this machine cannot reach each other: Ray would hang."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), _LOOPBACK_S).close()
    except OSError as error:
        raise UserError(
            f"{LOOPBACK} cannot be reached on this machine ({error.strerror or error}), which Ray "
            "needs; turn the loopback interface on (ip link set lo up)"
        ) from error


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
