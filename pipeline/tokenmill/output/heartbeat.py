"""A run's heartbeat: an object that shows, from the store alone, that the run is alive."""

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tokenmill.errors import TokenmillError
from tokenmill.output.runs import run_folder
from tokenmill.storage.base import Store

#: Name of the heartbeat in a run's folder; `alive_until` reads its content.
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
            beat = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 3)}
            # A missed heartbeat does no harm. If the store is down, the commits report it.
            with suppress(TokenmillError):
                self._store.replace(self._key, (json.dumps(beat) + "\n").encode())


def alive_until(heartbeat: Mapping[str, Any]) -> float:
    """The Unix time until which a run with this heartbeat counts as running."""
    return float(heartbeat["at"]) + _EVERY_S + _GRACE_S
