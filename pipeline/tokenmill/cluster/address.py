"""Which Ray a run uses: its own, or the cluster that `--address` or RAY_ADDRESS names.

An address is checked before Ray connects to it. Ray itself retries for minutes, or forever, at a
port of this machine where nothing listens, or something other than Ray.
"""

import os
from pathlib import Path

import ray

from tokenmill.cluster.auth_check import CHECK_TIMEOUT_S, Access, check_gcs, require_closed
from tokenmill.errors import RunFailed, UserError

_CURE = "correct RAY_ADDRESS or --address, or unset it to run on this machine alone"
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


def require_cluster(address: str, timeout_s: float = CHECK_TIMEOUT_S) -> str:
    """The HOST:PORT of the cluster at an address, which has answered and requires a token.

    Raises `UserError` for an address that cannot be one and for an open cluster, and `RunFailed`
    if no Ray answers there within `timeout_s`.
    """
    target = _target(address)
    finding = check_gcs(target, timeout_s)
    # A client that has certificates reaches more than this check, which has none.
    if finding.access is Access.UNKNOWN and os.environ.get("RAY_USE_TLS") != "1":
        where = address if address == target else f"{address} ({target})"
        raise RunFailed(f"no Ray answers at {where}: {finding.reason}; {_CURE}")
    require_closed(target, lambda: finding)
    return target


def _target(address: str) -> str:
    """The address as HOST:PORT, as Ray's clients reach it."""
    if address == "auto":
        return _started_here()
    if "://" in address:
        raise UserError(
            f"{address} is not the address of a Ray head, which is HOST:PORT (tokenmill submit "
            f"takes http://HOST:8265); {_CURE}"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{address} is not the address of a Ray head, which is HOST:PORT; {_CURE}")
    # Ray looks for a head on this machine at the machine's own address.
    return f"{ray.util.get_node_ip_address()}:{port}" if host in _LOCAL_HOSTS else address


def _started_here() -> str:
    """The address of the cluster that `ray start` has started or joined on this machine.

    Ray would rather take any Ray that runs here, such as that of another run.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    try:
        return (Path(folder) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError as error:
        raise UserError(
            f"auto: no cluster was started on this machine with `ray start`; {_CURE}"
        ) from error
