"""The fixtures and options that every test file may ask for."""

import pytest
from hypothesis import settings

pytest_plugins = ["helpers.s3_server", "helpers.ray_cluster", "helpers.stores"]

# How long an example takes is the machine's affair.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-screens` keeps the screens as they are now, instead of comparing."""
    parser.addoption(
        "--write-screens", action="store_true", help="write tests/commands/screens again"
    )
