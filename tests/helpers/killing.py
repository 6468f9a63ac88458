"""Death within a call: a process that is killed at any line of the store and of the commit.

Imports little, for the killed processes import it too.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import tokenmill.output.commit
import tokenmill.storage.local
from tokenmill.storage.base import Store

_forks = multiprocessing.get_context("forkserver")
_TRACED = {tokenmill.storage.local.__file__, tokenmill.output.commit.__file__}


def killed_at_line(number: int, deed: Callable[..., object], *arguments: object) -> bool:
    """Call `deed` in a process that is killed at the n-th line of the local store or of commit.py.

    Lines are counted from 0. False if the deed ended before that line came.
    """
    # The server forks in milliseconds, since it has imported all that the deed needs.
    _forks.set_forkserver_preload(["pytest", "tokenmill.output.commit", "pyarrow.dataset"])
    process = _forks.Process(target=_run_until_line, args=(number, deed, arguments))
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def create_in_pieces(store: Store, key: str, pieces: Sequence[bytes]) -> None:
    """Here, since a killed process imports what it runs."""
    with store.open_new(key) as file:
        for piece in pieces:
            file.write(piece)


def _run_until_line(left: int, deed: Callable[..., object], arguments: Sequence[object]) -> None:
    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _TRACED:
            return None
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    sys.settrace(trace)
    deed(*arguments)
