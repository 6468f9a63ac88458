"""Runs on Ray: the user's cluster, or a local one that ends with the run.

Ray takes seconds to import, so it is imported only when a run starts.
"""

import os
from collections.abc import Sequence

from tokenmill.cluster.ray_version import check_ray_version, installed_ray
from tokenmill.errors import UserError
from tokenmill.hardware import has_local_gpus
from tokenmill.job.job import Job
from tokenmill.stages.executor import Execution


class RayExecutor:
    """Runs units on the cluster at `address` or RAY_ADDRESS, or else on a local Ray.

    With `metrics_port`, a local run exports its metrics there for Prometheus. A cluster exports
    metrics on its own nodes, so a port together with a cluster raises `UserError`.
    """

    def __init__(self, address: str | None = None, metrics_port: int | None = None) -> None:
        given = (address or os.environ.get("RAY_ADDRESS") or "").strip()
        # `local` is Ray's own word for a Ray that is started here.
        self._address = given if given not in {"", "local"} else None
        self._metrics_port = metrics_port
        if metrics_port is not None and not self.is_local:
            raise UserError(
                f"--metrics-port {metrics_port}: a cluster exports metrics on its own nodes "
                "(ray start --metrics-export-port); drop the option and TOKENMILL_METRICS_PORT"
            )

    @property
    def is_local(self) -> bool:
        return self._address is None

    @property
    def start_stage(self) -> str:
        return "starting Ray" if self.is_local else "connecting to the Ray cluster"

    @property
    def has_gpus(self) -> bool:
        return not self.is_local or has_local_gpus()

    def warnings(self) -> Sequence[str]:
        """A line if the installed Ray is newer than the tested versions."""
        warning = check_ray_version(installed_ray())
        return () if warning is None else (warning,)

    def start(self, job: Job) -> Execution:
        """Connect to the cluster, or start a local one."""
        # Before the import: modules for Ray may fail on an old version.
        check_ray_version(installed_ray())
        from tokenmill.cluster.ray_execution import RayExecution  # noqa: PLC0415

        return RayExecution(self._address, job, self._metrics_port)
