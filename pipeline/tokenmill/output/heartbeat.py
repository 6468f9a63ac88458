"""A run's heartbeat: an object that shows, from the store alone, that the run is alive."""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenmill.errors import TokenmillError
from tokenmill.output.runs import run_folder
from tokenmill.storage.base import Store

#: Name of the heartbeat in a run's folder; `is_alive` reads its content.
ALIVE_NAME = "alive.json"
# A run that ends within the first seconds writes no heartbeat.
_FIRST_S, _EVERY_S = 10.0, 30.0
# Allows for a slow store and for clocks that differ.
_GRACE_S = 90.0


class Heartbeat:
    """While the context is open, writes the run's heartbeat every 30 seconds."""

    def __init__(self, store: Store, run: str, first_s: float = _FIRST_S) -> None:
        self._store = store
        self._key = f"{run_folder(run)}/{ALIVE_NAME}"
        self._wait_s = first_s
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(self._wait_s):
            self._wait_s = _EVERY_S
            # A missed heartbeat does no harm. If the store is down, the commits report it.
            with suppress(TokenmillError):
                self._store.replace(self._key, (json.dumps(_heartbeat()) + "\n").encode())


def _heartbeat() -> dict[str, Any]:
    """The content of a heartbeat of this process.

    `machine` and `started` identify the process more surely than its host and id, which containers
    and later processes may share. They are null where /proc is missing.
    """
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "machine": _machine(),
        "started": _started(pid),
        "at": round(time.time(), 3),
    }


def is_alive(heartbeat: Mapping[str, Any], now: float) -> bool:
    """Whether a run with this heartbeat counts as running at a Unix time.

    A process of this machine is looked up; any other run counts until its heartbeat is too old.
    """
    if now > float(heartbeat["at"]) + _EVERY_S + _GRACE_S:
        return False
    machine = heartbeat.get("machine")
    if machine is None or machine != _machine():
        return True
    started: int | None = heartbeat["started"]
    return _started(heartbeat["pid"]) == started


def _machine() -> str | None:
    """Identifies this machine since it was started, and the container on it; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None if it is not running."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name before the last parenthesis may contain spaces. A zombie has ended.
    state, *fields = status.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])
