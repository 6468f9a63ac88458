"""`version`: the version of tokenmill."""

import typer

from tokenmill import __version__


def version_command() -> None:
    """Print tokenmill's version.

    Example: tokenmill version
    """
    typer.echo(__version__)
