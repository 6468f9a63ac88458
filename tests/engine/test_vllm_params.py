"""Checks of vLLM's version, arguments and parameters that need no import of vLLM."""

import importlib.util
import re
import tomllib

import pytest
from helpers.command import ROOT
from tokenmill.engine.vllm_params import (
    check_version,
    grammar_backend,
    require_vllm,
)
from tokenmill.errors import UserError

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


@pytest.mark.parametrize(
    "version", ["0.26.0", "0.32.0", "0.33.0", "0.33.7.dev5+gabc", "0.30.0rc1+cpu", "unknown"]
)
def test_supported_versions_are_accepted(version: str) -> None:
    """All patch releases and builds within the range, and builds without a version."""
    check_version(version)


@pytest.mark.parametrize("version", ["0.25.1", "0.9.2", "0.34.0", "0.34.0.dev1", "1.0.0"])
def test_other_versions_are_a_users_error_in_one_line(version: str) -> None:
    """The message has the installed version and the supported range."""
    with pytest.raises(UserError) as error:
        check_version(version)
    assert str(error.value) == f"vLLM {version} is installed; tokenmill needs 0.26 to 0.33"


@needs_vllm
def test_the_installed_version_is_supported() -> None:
    """It is the version that records name."""
    assert re.match(r"0\.\d+\.", require_vllm())


def test_every_version_that_pip_may_install_is_supported() -> None:
    """The bounds in pyproject.toml are within the range that the code supports."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    bounds = [
        re.findall(r"(==|>=|<=|<)([\d.]+)", requirement)
        for extra in ("cpu", "gpu")
        for requirement in extras[extra]
        if re.match(r"vllm(-cpu)?\b", requirement)
    ]
    assert len(bounds) == 2
    for operator, version in (bound for requirement in bounds for bound in requirement):
        major, minor, *_ = (*map(int, version.split(".")), 0)
        # The last release below an exclusive bound.
        check_version(f"{major}.{minor - (operator == '<')}.0")


@pytest.mark.parametrize(
    ("arguments", "backend"),
    [
        ({}, "auto"),
        ({"structured_outputs_config": {}}, "auto"),
        ({"structured_outputs_config": {"backend": "guidance"}}, "guidance"),
    ],
    ids=str,
)
def test_the_grammar_backend_is_that_of_the_engine_arguments(
    arguments: dict[str, dict[str, str]], backend: str
) -> None:
    """Without one, vLLM chooses."""
    assert grammar_backend(arguments) == backend
