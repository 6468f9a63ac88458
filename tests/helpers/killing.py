"""Kill a process at any line of the local store or of commit.py.

Imports little, since the killed processes import it too.
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


def killed_at_line(number: int, function: Callable[..., object], *arguments: object) -> bool:
    """Call `function` in a process that is killed at the n-th executed line of these two modules.

    Lines are counted from 0. Returns False if the call ended before that line.
    """
    # The server has imported everything that the call needs, so that it forks in milliseconds.
    _forks.set_forkserver_preload(["pytest", "tokenmill.output.commit", "pyarrow.dataset"])
    process = _forks.Process(target=_run_until_line, args=(number, function, arguments))
    process.start()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def create_in_pieces(store: Store, key: str, pieces: Sequence[bytes]) -> None:
    """Write a new object in pieces. It is here because a killed process imports what it runs."""
    with store.open_new(key) as file:
        for piece in pieces:
            file.write(piece)


def _run_until_line(
    num_lines: int, function: Callable[..., object], arguments: Sequence[object]
) -> None:
    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename not in _TRACED:
            return None
        if event == "line":
            if num_lines == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            num_lines -= 1
        return trace

    sys.settrace(trace)
    function(*arguments)
