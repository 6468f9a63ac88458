"""Notify a command or a webhook of a run's end. A failure here is reported and fails no run."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException

from tokenmill.job.sections import Notify

# A spot instance is killed 30 s after its notice.
_TIMEOUT_S = 8.0
_SCHEMES = ("https://", "http://")


def notify(settings: Notify, summary: str) -> Iterator[str]:
    """Send the summary, as JSON, to what the job names. Yields one line for each failure."""
    if settings.command is not None:
        yield from _run(settings.command, summary)
    if settings.webhook is not None:
        yield from _post(settings.webhook, summary)


def _run(command: tuple[str, ...], summary: str) -> Iterator[str]:
    try:
        finished = subprocess.run(
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
    if finished.returncode:
        reason = " ".join(finished.stderr.split())
        yield f"notify.command: {command[0]} exited with {finished.returncode}: {reason}"


def _post(variable: str, summary: str) -> Iterator[str]:
    url = os.environ.get(variable, "")
    if not url.startswith(_SCHEMES):
        yield f"notify.webhook: {variable} is not set to an http:// or https:// URL"
        return
    request = urllib.request.Request(  # noqa: S310 - its scheme was checked
        url, summary.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310 - as above
            pass
    except (OSError, HTTPException, ValueError) as error:
        # Without the URL, which is a secret.
        yield f"notify.webhook: {variable}: {type(error).__name__}: {error}"
