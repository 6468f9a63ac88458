"""The command line on a pseudo terminal, imported once for many runs.

A separate process imports the command line and forks for each run. The process of the tests cannot
be forked safely, because it has threads.
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

# More lines than any screen has, so that nothing scrolls away.
_LINES = 400
# Wider than any terminal in the tests: a line that is too long is seen whole, not wrapped.
_READ_COLUMNS = 1000


@dataclass(frozen=True)
class Shown:
    """What a command wrote, and its exit code."""

    data: bytes
    exit_code: int

    @property
    def lines(self) -> list[str]:
        """The lines on the terminal at the end."""
        screen = pyte.Screen(_READ_COLUMNS, _LINES)
        pyte.ByteStream(screen).feed(self.data)
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class PseudoTerminal:
    """Runs commands in a folder, with a minimal environment."""

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
        """Run `tokenmill` to its end, on the terminal or, with `piped`, writing to a pipe."""
        request = {"arguments": arguments, "columns": columns, "env": env or {}, "piped": piped}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return Shown(base64.b64decode(reply["data"]), reply["exit_code"])

    def close(self) -> None:
        """End the process that runs the commands."""
        self._process.communicate()


def _serve() -> None:
    """Read requests, one per line, and reply to each with a line."""
    # Imported here once, for all forks.
    import tokenmill.cli  # noqa: F401, PLC0415
    import typer.rich_utils  # noqa: F401, PLC0415

    for line in sys.stdin:
        request = json.loads(line)
        read, write = _channel(request["columns"], request["piped"])
        child = os.fork()
        if not child:
            os.close(read)
            _run_command(write, request)
        os.close(write)
        data = _read_to_end(read)
        status = os.waitpid(child, 0)[1]
        reply = {
            "data": base64.b64encode(data).decode(),
            "exit_code": os.waitstatus_to_exitcode(status),
        }
        sys.stdout.write(f"{json.dumps(reply)}\n")
        sys.stdout.flush()


def _channel(columns: int, piped: bool) -> Sequence[int]:
    """The end to read from, and the end that a command writes to."""
    if piped:
        return os.pipe()
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (_LINES, columns))
    return controller, terminal


def _run_command(channel: int, request: Mapping[str, Any]) -> None:
    """Run the command in this process, with the channel as its terminal. Does not return."""
    from tokenmill.cli import main  # noqa: PLC0415

    exit_code = 70
    try:
        if not request["piped"]:
            os.login_tty(channel)
        for handle in (1, 2) if request["piped"] else ():
            os.dup2(channel, handle)
        os.environ.update(request["env"])
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(handle, mode, encoding="utf-8", closefd=False)
            for handle, mode in enumerate(("r", "w", "w"))
        )
        sys.argv = ["tokenmill", *request["arguments"]]
        main()
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _read_to_end(handle: int) -> bytes:
    parts = []
    # On Linux, reading from a terminal that no process has open any more is an error.
    with suppress(OSError):
        while part := os.read(handle, 65536):
            parts.append(part)
    os.close(handle)
    return b"".join(parts)


if __name__ == "__main__":
    _serve()
