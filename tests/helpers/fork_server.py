"""`tokenmill` with the real engine, without Ray and without importing vLLM for each command.

One process has imported vLLM; it forks for each command, which runs its units in the fork
(`InProcessExecutor`). An import takes ten seconds of a core, a fork milliseconds. None of the
imported modules may start threads: a fork has only the thread that forked.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from helpers.command import ROOT

# Imported once, for all commands.
_MODULES = (
    "tokenmill.cli",
    "tokenmill.stages.in_process",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
)


def tokenmill(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `tokenmill` to its end, as `command.tokenmill` does, in a fork and without Ray."""
    return _server().run(list(map(str, arguments)), env or {})


@cache
def _server() -> "_Server":
    server = _Server()
    atexit.register(server.close)
    return server


class _Server:
    """The process that forks, one for each process of the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.fork_server"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}/pipeline:{ROOT}/tests"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: list[str], env: Mapping[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            request = {"arguments": arguments, "env": dict(env), "folder": folder}
            self._process.stdin.write(f"{json.dumps(request)}\n")
            self._process.stdin.flush()
            exit_code = int(self._process.stdout.readline())
            out, err = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(arguments, exit_code, out, err)

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    """Read requests, a line each; answer each with the exit code of its command."""
    for module in _MODULES:
        __import__(module)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become(request)
        status = os.waitpid(child, 0)[1]
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _become(request: Mapping[str, Any]) -> None:
    """Be the command; never returns."""
    exit_code: Any = 70
    try:
        for handle, name in ((1, "stdout"), (2, "stderr")):
            target = os.open(os.path.join(request["folder"], name), os.O_WRONLY | os.O_CREAT)
            os.dup2(target, handle)
        os.environ.update(request["env"])
        exit_code = _run(request["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _run(arguments: Sequence[str]) -> int:
    from tokenmill.cli import app  # noqa: PLC0415
    from tokenmill.stages.in_process import InProcessExecutor  # noqa: PLC0415

    try:
        app(list(arguments), obj=InProcessExecutor())
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    _serve()
