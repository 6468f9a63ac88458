"""The versions of Ray that tokenmill accepts."""

import pytest
from helpers.stores import refusal
from tokenmill.cluster.ray_version import (
    NEWEST_RAY,
    OLDEST_RAY,
    check_ray_version,
    installed_ray,
    major_minor,
)
from tokenmill.errors import UserError


@pytest.mark.parametrize("version", ["2.58.0", "2.58.1", "2.59.0", "2.60.0", "2.60.1rc1"])
def test_a_tested_version_is_accepted(version: str) -> None:
    """Without a word."""
    assert check_ray_version(version) is None


@pytest.mark.parametrize("version", ["1.13.0", "2.9.3", "2.57.1"])
def test_an_older_version_is_refused(version: str) -> None:
    """The message names the version, the reason and the command that helps."""
    message = refusal(UserError, lambda: check_ray_version(version))
    assert version in message
    assert "pip install 'ray[data]>=2.58'" in message


@pytest.mark.parametrize("version", ["2.61.0", "2.100.0", "3.0.0.dev0"])
def test_a_newer_version_is_used_with_a_warning(version: str) -> None:
    """It may work; the line says up to which version the tests have run."""
    warning = check_ray_version(version)
    assert warning is not None
    assert version in warning
    assert "2.60" in warning
    assert "\n" not in warning


def test_the_installed_version_is_one_of_the_tested_ones() -> None:
    """So what these tests show holds for the supported range."""
    assert OLDEST_RAY <= major_minor(installed_ray()) <= NEWEST_RAY
