"""Tell others how a run ended: a command, a webhook. What goes wrong with that is only said."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException

from tokenmill.job.sections import Notify

# A spot machine that is to end has half a minute in all.
_TIMEOUT_S = 8.0
_SCHEMES = ("https://", "http://")


def notify(settings: Notify, summary: str) -> Iterator[str]:
    """Hand the summary, as JSON, to each that the job names; what did not work, a line each."""
    if settings.command is not None:
        yield from _run(settings.command, summary)
    if settings.webhook is not None:
        yield from _post(settings.webhook, summary)


def _run(command: tuple[str, ...], summary: str) -> Iterator[str]:
    try:
        done = subprocess.run(
            command,
            input=summary,
            text=True,
            timeout=_TIMEOUT_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"notify.command: {command[0]}: {error}"
        return
    if done.returncode:
        reason = " ".join(done.stderr.split())
        yield f"notify.command: {command[0]} ended with {done.returncode}: {reason}"


def _post(variable: str, summary: str) -> Iterator[str]:
    url = os.environ.get(variable, "")
    if not url.startswith(_SCHEMES):
        yield f"notify.webhook: the environment variable {variable} holds no URL; set it"
        return
    request = urllib.request.Request(  # noqa: S310 - its scheme was looked at
        url, summary.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
            pass
    except (OSError, HTTPException, ValueError) as error:
        # Not the URL, which is a secret.
        yield f"notify.webhook: {variable}: {type(error).__name__}: {error}"
