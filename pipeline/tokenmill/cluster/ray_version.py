"""Which versions of Ray tokenmill runs on."""

import re
from importlib.metadata import PackageNotFoundError, version

from tokenmill.errors import UserError

Version = tuple[int, int]

#: Ray before 2.58 starts an actor that fails in its constructor again and again.
OLDEST_RAY: Version = (2, 58)
#: The newest version with which the tests have passed.
NEWEST_RAY: Version = (2, 60)


def major_minor(text: str) -> Version:
    """The first two numbers of a version, such as (2, 60) for 2.60.0rc1."""
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)


def installed_ray() -> str:
    """The version of the installed Ray, without importing it. Raises `UserError` if none is."""
    try:
        return version("ray")
    except PackageNotFoundError as error:
        raise UserError(f"Ray is not installed: {_INSTALL}") from error


def check_ray_version(text: str) -> str | None:
    """A warning if the version is newer than the tested ones. Raises `UserError` for an old one."""
    numbers = major_minor(text)
    if numbers < OLDEST_RAY:
        raise UserError(
            f"Ray {text} is installed, which never gives up on an engine that cannot start; "
            f"{_INSTALL}"
        )
    if numbers > NEWEST_RAY:
        return (
            f"Ray {text} is newer than {_text(NEWEST_RAY)}, the newest version that tokenmill is "
            "tested with"
        )
    return None


def _text(version: Version) -> str:
    return ".".join(map(str, version))


_INSTALL = f"install Ray {_text(OLDEST_RAY)} or later: pip install 'ray[data]>={_text(OLDEST_RAY)}'"
