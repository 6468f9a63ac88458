"""Every private name of Ray that tokenmill uses, guarded.

A local run has to start fast and to be reachable from this machine only, and Ray has no public
switches for that. So private names are replaced while a `RayPatches` context is open. A release of
Ray may drop or change any of them: each patch first checks that its names are there and have the
expected shape. If not, the patch logs one line that says what is lost, and the run goes on without
it. Listening on loopback is the exception: without it the run stops with a `UserError`.
"""

import importlib
import inspect
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ray

from tokenmill.cluster.ray_version import OLDEST_RAY, Version, major_minor
from tokenmill.errors import RunFailed, UserError

try:
    from ray.data._internal.execution.execution_callback import ExecutionCallback
except ImportError:
    # Without it `stop_on_request` adds no callback.
    ExecutionCallback = object

LOOPBACK = "127.0.0.1"
_LOG = logging.getLogger(__name__)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _takes(*arguments: str) -> Callable[[Any], bool]:
    """A check for a function that takes these arguments, which `ray.init` hides in **kwargs."""

    def has_shape(function: Any) -> bool:
        source = inspect.getsource(inspect.unwrap(function))
        return all(f'"{argument}"' in source for argument in arguments)

    return has_shape


@dataclass(frozen=True, slots=True)
class PrivateName:
    """A private name in a module of Ray, in the versions from `since` and before `before`."""

    module: str
    path: str
    has_shape: Callable[[Any], bool] = callable
    since: Version = OLDEST_RAY
    before: Version | None = None

    def is_in(self, version: Version) -> bool:
        """Whether this version of Ray is expected to have the name."""
        return self.since <= version and (self.before is None or version < self.before)


@dataclass(frozen=True, slots=True)
class Patch:
    """The private names that one patch needs, and what is lost without the patch."""

    loss: str
    names: tuple[PrivateName, ...]


_EXECUTION = "ray.data._internal.execution"
#: Each patch by the name of the method that applies it.
PATCHES = {
    "listen_on_loopback": Patch(
        "Ray listens on all interfaces",
        (PrivateName("ray._private.ray_constants", "ENABLE_RAY_CLUSTER", _is_flag),),
    ),
    "enable_tokens": Patch(
        "a local Ray requires no token",
        (PrivateName("ray._raylet", "Config.initialize", before=(2, 59)),),
    ),
    "hide_working_directory": Patch(
        "workers run a Python file next to the job instead of a package with its name",
        (PrivateName("ray.job_config", "JobConfig._runtime_env_has_working_dir"),),
    ),
    "start_no_dashboard": Patch(
        "a local run starts about 3 s later",
        (
            PrivateName("ray._private.services", "start_api_server"),
            PrivateName("ray._private.node", "Node.start_monitor"),
        ),
    ),
    "start_small_agents": Patch(
        "an agent of Ray serves HTTP on port 52365 where ray[default] is installed",
        (PrivateName("ray._private.utils", "get_dashboard_dependency_error"),),
    ),
    "export_metrics": Patch(
        "a local run exports no metrics",
        (
            PrivateName("ray", "init", _takes("_metrics_export_port", "_system_config")),
            PrivateName("ray._private.utils", "get_dashboard_dependency_error"),
        ),
    ),
    "stop_on_request": Patch(
        "a run takes up to 10 s longer to stop",
        tuple(
            PrivateName(
                "ray.data._internal.execution.execution_callback", f"ExecutionCallback.{name}"
            )
            for name in ("on_execution_step", "before_execution_starts")
        ),
    ),
    "limit_waiting": Patch(
        "a Job API that stops answering is waited for without limit",
        (PrivateName("ray.dashboard.modules.dashboard_sdk", "SubmissionClient._do_request"),),
    ),
}


class RayPatches:
    """Applies patches; all are undone when the context ends.

    `find` returns a module of Ray by its name, or raises `ImportError`; `version` is Ray's.
    """

    def __init__(
        self,
        find: Callable[[str], Any] = importlib.import_module,
        version: str = ray.__version__,
    ) -> None:
        self._find = find
        self._version = version
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def listen_on_loopback(self) -> None:
        """Make `ray.init` listen on 127.0.0.1 only, as it does on Windows and macOS.

        On Linux Ray replaces a loopback address with the machine's own
        (`services.resolve_ip_for_localhost`), and then listens on all interfaces: everyone on the
        network could reach the run. Raises `UserError` if the name is not available.
        """
        flag = self._names("listen_on_loopback")
        if flag is None:
            raise UserError(
                f"Ray {self._version} cannot be made to listen on this machine only; install a "
                "version of Ray that tokenmill is tested with, or start a cluster with a token and "
                "use --address"
            )
        self._replace(flag[0], new=False)

    def enable_tokens(self) -> None:
        """Make Ray before 2.59 require a token in the cluster that this process starts.

        It reads RAY_AUTH_MODE when it is imported, and this makes it read the variable again. Later
        versions turn tokens on by themselves. The caller must check the cluster that is started.
        """
        names = self._names("enable_tokens")
        if names:
            os.environ["RAY_AUTH_MODE"] = "token"
            self._value(names[0])("")

    def hide_working_directory(self) -> None:
        """Keep the driver's working directory and script folder off its workers' Python path.

        Ray puts them first, unless the job has a `working_dir`: a `datasets.py` next to the job
        would be run instead of the package.
        """
        self._apply("hide_working_directory", lambda _: True)

    def start_no_dashboard(self) -> None:
        """Start neither the dashboard's process nor the autoscaler's.

        `ray.init` waits for the dashboard's server even if it serves nothing: with the fake engine
        a run took 8.2 s instead of 11.3 s (medians of three runs each, alternating).
        """
        self._apply("start_no_dashboard", lambda *_, **__: (None, None), lambda _: None)

    def start_small_agents(self) -> None:
        """Start the small variant of Ray's node agents, which serves no HTTP.

        Ray starts it if `ray[default]` seems not to be installed. The large one listens on a fixed
        port, 52365, where jobs can be submitted. This is for security; it saves no time.
        """
        self._apply("start_small_agents", lambda: ImportError("not used by this run"))

    def export_metrics(self, port: int, interval_ms: int) -> dict[str, Any]:
        """Arguments for `ray.init` that export metrics at a port, renewed at this interval.

        Ray has no public way to choose the port. Raises `UserError` if the agent that exports them
        is not installed.
        """
        names = self._names("export_metrics")
        if names is None:
            return {}
        if self._value(names[1])() is not None:
            raise UserError(
                f"--metrics-port {port}: Ray's metrics agent is not installed; run "
                "pip install 'ray[default]'"
            )
        interval = {"metrics_report_interval_ms": interval_ms}
        return {"_metrics_export_port": port, "_system_config": interval}

    def stop_on_request(self, context: Any) -> None:
        """Make executions with this `DataContext` stop soon after `StopCallback.requested` is set.

        Otherwise Ray Data's loop ends only when Ray is shut down under it.
        """
        if self._names("stop_on_request") is not None:
            context.custom_execution_callback_classes = [StopCallback]

    def limit_waiting(self, timeout_s: tuple[float, float]) -> None:
        """Limit the seconds to connect to the Job API, and those until it sends something.

        Ray's client waits without limit.
        """
        names = self._names("limit_waiting")
        if names is not None:
            request = self._value(names[0])
            self._replace(
                names[0],
                lambda *arguments, **options: request(*arguments, timeout=timeout_s, **options),
            )

    def _apply(self, patch: str, *replacements: Any) -> None:
        """Replace the names of a patch, in their order; names of later versions come last."""
        names = self._names(patch)
        for name, replacement in zip(names or (), replacements, strict=False):
            self._replace(name, replacement)

    def _names(self, patch: str) -> list[PrivateName] | None:
        """A patch's names in this version of Ray; None, after a log line, if one is missing."""
        version = major_minor(self._version)
        names = [name for name in PATCHES[patch].names if name.is_in(version)]
        if all(self._is_available(name) for name in names):
            return names
        _LOG.warning(
            "patch %s is not available in Ray %s: %s", patch, self._version, PATCHES[patch].loss
        )
        return None

    def _is_available(self, name: PrivateName) -> bool:
        try:
            owner, attribute = self._owner(name)
            return attribute in vars(owner) and name.has_shape(getattr(owner, attribute))
        except (ImportError, AttributeError, TypeError, OSError):
            return False

    def _value(self, name: PrivateName) -> Any:
        owner, attribute = self._owner(name)
        return getattr(owner, attribute)

    def _owner(self, name: PrivateName) -> tuple[Any, str]:
        """The module or class that has the name, and its last part."""
        owner = self._find(name.module)
        *path, attribute = name.path.split(".")
        for part in path:
            owner = getattr(owner, part)
        return owner, attribute

    def _replace(self, name: PrivateName, new: Any) -> None:
        owner, attribute = self._owner(name)
        # Not getattr: a static method must be put back as one.
        self._stack.callback(setattr, owner, attribute, vars(owner)[attribute])
        setattr(owner, attribute, new)


class StopCallback(ExecutionCallback):  # type: ignore[misc]
    """Ends Ray Data's loop on behalf of another thread; Ray Data calls it in each iteration.

    Ray makes the instance, and sends the class to other processes by its name. So the event belongs
    to the class.
    """

    requested: ClassVar = threading.Event()

    def before_execution_starts(self, _executor: Any) -> None:
        self._check()

    def on_execution_step(self, _executor: Any) -> None:
        self._check()

    def _check(self) -> None:
        if self.requested.is_set():
            raise RunFailed("stopped")


def server_version(client: Any) -> str | None:
    """The version of Ray that a Job API client is connected to; None if it does not keep it.

    Without it, a job can be submitted only with `--no-ship`.
    """
    version: str | None = getattr(client, "_server_ray_version", None)
    return version
