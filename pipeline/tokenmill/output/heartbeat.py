"""A run's sign of life in its output, so that others see from the store alone that it goes on."""

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
from tokenmill.output.plan_file import run_folder
from tokenmill.storage.base import Store

#: In a run's folder; what it holds is `alive_until`.
ALIVE_NAME = "alive.json"
# A run that is over in a moment leaves no sign.
_FIRST_S, _EVERY_S = 10.0, 30.0
# A store may be slow, and clocks differ.
_GRACE_S = 90.0


class Heartbeat:
    """While the context is open, an object says every half minute that the run lives."""

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
            said = {"host": socket.gethostname(), "pid": os.getpid(), "at": round(time.time(), 3)}
            # Nothing rests on it: a store that is away is the commits' affair.
            with suppress(TokenmillError):
                self._store.replace(self._key, (json.dumps(said) + "\n").encode())


def alive_until(sign: Mapping[str, Any]) -> float:
    """Until when, in Unix seconds, a run with this sign of life is taken to live."""
    return float(sign["at"]) + _EVERY_S + _GRACE_S
