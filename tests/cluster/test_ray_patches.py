"""The private names of Ray: they exist in the installed version, and a missing one costs little."""

import dataclasses
import importlib
import logging
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import ray
from helpers.stores import refusal
from ray.data import DataContext
from tokenmill.cluster.ray_patches import PATCHES, PrivateName, RayPatches, StopCallback
from tokenmill.cluster.ray_version import NEWEST_RAY, OLDEST_RAY, major_minor
from tokenmill.errors import RunFailed, UserError

INSTALLED = major_minor(ray.__version__)
NAMES = [
    pytest.param(patch.loss, name, id=f"{title}: {name.module}.{name.path}")
    for title, patch in PATCHES.items()
    for name in patch.names
    if name.is_in(INSTALLED)
]
#: Each patch that a run can do without, as a call.
CALLS: dict[str, Callable[[RayPatches], object]] = {
    "enable_tokens": RayPatches.enable_tokens,
    "hide_working_directory": RayPatches.hide_working_directory,
    "start_no_dashboard": RayPatches.start_no_dashboard,
    "start_small_agents": RayPatches.start_small_agents,
    "export_metrics": lambda patches: patches.export_metrics(9464, 1000),
    "stop_on_request": lambda patches: patches.stop_on_request(SimpleNamespace()),
    "limit_waiting": lambda patches: patches.limit_waiting((1.0, 1.0)),
}


def value_of(name: PrivateName) -> Any:
    value: Any = importlib.import_module(name.module)
    for part in name.path.split("."):
        value = getattr(value, part, None)
    return value


def nothing(_module: str) -> SimpleNamespace:
    """A Ray whose modules are empty."""
    return SimpleNamespace()


def no_module(module: str) -> ModuleType:
    """A Ray that lacks the modules."""
    raise ImportError(module)


@pytest.mark.parametrize(("loss", "name"), NAMES)
def test_the_installed_ray_has_the_private_name(loss: str, name: PrivateName) -> None:
    """If this fails, adapt the patch to the new Ray or remove it; until then its gain is lost."""
    value = value_of(name)
    assert value is not None, f"{name.module}.{name.path} is gone: {loss}"
    assert name.has_shape(value), f"{name.module}.{name.path} has changed: {loss}"


def test_each_patch_is_listed_and_tried() -> None:
    """The table, the methods and these tests name the same patches."""
    assert PATCHES.keys() == CALLS.keys() | {"listen_on_loopback"}
    assert all(hasattr(RayPatches, patch) for patch in PATCHES)
    assert all(patch.loss for patch in PATCHES.values())


@pytest.mark.parametrize(
    "version", [f"{major}.{minor}.0" for major, minor in [OLDEST_RAY, NEWEST_RAY]]
)
@pytest.mark.parametrize("find", [nothing, no_module])
@pytest.mark.parametrize("patch", CALLS)
def test_a_missing_name_costs_one_log_line(
    patch: str, find: Callable[[str], Any], version: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the patch, the version of Ray and what is lost; the run goes on."""
    names = [name for name in PATCHES[patch].names if name.is_in(major_minor(version))]
    with caplog.at_level(logging.WARNING), RayPatches(find, version) as patches:
        CALLS[patch](patches)
    expected = f"patch {patch} is not available in Ray {version}: {PATCHES[patch].loss}"
    assert [record.getMessage() for record in caplog.records] == ([expected] if names else [])


def test_a_name_of_another_shape_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A function that has become something else is left alone, as if it were missing."""
    services = SimpleNamespace(start_api_server="no function")
    node = SimpleNamespace(Node=SimpleNamespace(start_monitor=print))
    modules = {"ray._private.services": services, "ray._private.node": node}
    with caplog.at_level(logging.WARNING), RayPatches(modules.__getitem__) as patches:
        patches.start_no_dashboard()
        assert services.start_api_server == "no function"
        assert node.Node.start_monitor is print
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "find", [nothing, no_module, lambda _: SimpleNamespace(ENABLE_RAY_CLUSTER="yes")]
)
def test_without_loopback_there_is_no_run(find: Callable[[str], Any]) -> None:
    """Ray would listen on the network, so a missing or changed name is an error."""
    with RayPatches(find, "2.99.0") as patches:
        message = refusal(UserError, patches.listen_on_loopback)
    assert "2.99.0" in message
    assert "--address" in message


def test_loopback_is_a_flag_that_is_put_back() -> None:
    """It is off while Ray starts, and then as it was."""
    constants = SimpleNamespace(ENABLE_RAY_CLUSTER=True)
    with RayPatches(lambda _: constants) as patches:
        patches.listen_on_loopback()
        assert constants.ENABLE_RAY_CLUSTER is False
    assert constants.ENABLE_RAY_CLUSTER is True


def test_patches_are_undone() -> None:
    """After the context the installed Ray has its own functions."""
    names = PATCHES["start_no_dashboard"].names
    before = [value_of(name) for name in names]
    with RayPatches() as patches:
        patches.start_no_dashboard()
        assert all(value_of(name) is not value for name, value in zip(names, before, strict=True))
    assert [value_of(name) for name in names] == before


def test_the_settings_of_a_run_are_fields_of_rays_context() -> None:
    """A setting that Ray does not have would be ignored silently."""
    fields = {field.name for field in dataclasses.fields(DataContext)}
    assert fields >= {
        "enable_progress_bars",
        "memory_usage_poll_interval_s",
        "max_consecutive_actor_init_deaths",
        "custom_execution_callback_classes",
    }


def test_a_requested_stop_ends_the_next_step() -> None:
    """Ray Data calls the callback in each step; before the request it does nothing."""
    context = SimpleNamespace()
    with RayPatches() as patches:
        patches.stop_on_request(context)
    assert context.custom_execution_callback_classes == [StopCallback]
    StopCallback.requested.clear()
    callback = StopCallback()
    callback.before_execution_starts(None)
    callback.on_execution_step(None)
    StopCallback.requested.set()
    with pytest.raises(RunFailed):
        callback.on_execution_step(None)
    with pytest.raises(RunFailed):
        callback.before_execution_starts(None)
    StopCallback.requested.clear()


def test_requests_to_the_job_api_have_a_time_limit() -> None:
    """The limit is added to what Ray's client passes on."""
    calls = []

    def ask(_client: object, method: str, endpoint: str, **options: Any) -> None:
        calls.append((method, endpoint, options))

    (name,) = PATCHES["limit_waiting"].names
    owner, _, request = name.path.partition(".")
    client_class = type(owner, (), {request: ask})
    client = client_class()
    with RayPatches(lambda _: SimpleNamespace(**{owner: client_class})) as patches:
        patches.limit_waiting((1.0, 2.0))
        getattr(client, request)("GET", "/api/jobs/", data=None)
    getattr(client, request)("GET", "/api/version")
    assert calls == [
        ("GET", "/api/jobs/", {"data": None, "timeout": (1.0, 2.0)}),
        ("GET", "/api/version", {}),
    ]
