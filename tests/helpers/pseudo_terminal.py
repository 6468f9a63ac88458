"""The command line on a pseudo terminal, as often as one likes for one import.

A process of its own has imported the command line and forks for each screen: a fork of the tests'
process would take its threads along.
"""

import base64
import json
import os
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyte

from helpers.command import ROOT

# Higher than any screen, so that nothing scrolls away.
_LINES = 400
# Wider than any terminal here: what does not fit is seen instead of broken.
_SEEN_COLUMNS = 1000


@dataclass(frozen=True)
class Shown:
    """What a command wrote, and what it ended with."""

    data: bytes
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """What stands on the terminal at the end."""
        screen = pyte.Screen(_SEEN_COLUMNS, _LINES)
        pyte.ByteStream(screen).feed(self.data)
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class PseudoTerminal:
    """Runs commands in a folder, with no more of an environment than is said here."""

    def __init__(self, folder: Path) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": f"{ROOT}/pipeline:{ROOT}/tests",
        }
        env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "TOKENMILL_CACHE": f"{folder}/cache"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.pseudo_terminal"],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: str,
        columns: int = 100,
        env: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> Shown:
        """Run `tokenmill` to its end; `piped` writes into a pipe in place of the terminal."""
        asked = {"arguments": arguments, "columns": columns, "env": env or {}, "piped": piped}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return Shown(base64.b64decode(told["data"]), told["exit_code"])

    def close(self) -> None:
        """End the process behind it."""
        self._process.communicate()


def _serve() -> None:
    """Read what is asked, a line each, and answer with a line."""
    # Once, for all forks.
    import tokenmill.cli  # noqa: F401, PLC0415
    import typer.rich_utils  # noqa: F401, PLC0415

    for line in sys.stdin:
        asked = json.loads(line)
        read, write = _channel(asked["columns"], asked["piped"])
        child = os.fork()
        if not child:
            os.close(read)
            _become(write, asked)
        os.close(write)
        data = _read_to_end(read)
        status = os.waitpid(child, 0)[1]
        told = {
            "data": base64.b64encode(data).decode(),
            "exit_code": os.waitstatus_to_exitcode(status),
        }
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()


def _channel(columns: int, piped: bool) -> Sequence[int]:
    """The end that is read, and the one that a command writes to."""
    if piped:
        return os.pipe()
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (_LINES, columns))
    return ours, theirs


def _become(channel: int, asked: Mapping[str, Any]) -> None:
    """Be the command, with the channel as its terminal; never comes back."""
    from tokenmill.cli import main  # noqa: PLC0415

    exit_code = 70
    try:
        if not asked["piped"]:
            os.login_tty(channel)
        for handle in (1, 2) if asked["piped"] else ():
            os.dup2(channel, handle)
        os.environ.update(asked["env"])
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(handle, mode, encoding="utf-8", closefd=False)
            for handle, mode in enumerate(("r", "w", "w"))
        )
        sys.argv = ["tokenmill", *asked["arguments"]]
        main()
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _read_to_end(handle: int) -> bytes:
    parts = []
    # Linux's word for a terminal that nobody has open any more is an error.
    with suppress(OSError):
        while part := os.read(handle, 65536):
            parts.append(part)
    os.close(handle)
    return b"".join(parts)


if __name__ == "__main__":
    _serve()
