"""Commands and scripts that need vLLM, without importing it for each.

One process has imported vLLM and transformers; it forks for each command, whose units run there
(`InProcessExecutor`), and for each script. An import takes ten seconds of a core, a fork
milliseconds. None of the imported modules may start threads: a fork has only the one that forked.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
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
    "transformers",
)


def tokenmill(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `tokenmill` to its end, as `command.tokenmill` does, in a fork and without Ray."""
    return _server().run({"arguments": list(map(str, arguments)), "env": dict(env or {})})


def run_script(script: Path, *arguments: str | Path) -> str:
    """Run a Python file with these arguments; what it prints."""
    words = [str(script), *map(str, arguments)]
    done = _server().run({"script": script.read_text(), "argv": words, "env": {}})
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(script: str, data: Any, env: Mapping[str, str] | None = None) -> Any:
    """Run a Python script with `data` as JSON on its standard input; its last line, from JSON."""
    done = _server().run({"script": script, "input": json.dumps(data), "env": dict(env or {})})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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

    def run(self, request: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "stdin").write_text(request.get("input", ""))
            self._process.stdin.write(f"{json.dumps({**request, 'folder': folder})}\n")
            self._process.stdin.flush()
            exit_code = int(self._process.stdout.readline())
            out, err = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([], exit_code, out, err)

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
    """Be the command or the script; never returns."""
    exit_code = 1
    try:
        for handle, name, flags in (
            (0, "stdin", os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT),
            (2, "stderr", os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(os.path.join(request["folder"], name), flags), handle)
        sys.stdin = os.fdopen(0, closefd=False)
        os.environ.update(request["env"])
        sys.argv = request.get("argv", ["script"])
        if "script" in request:
            exec(compile(request["script"], "script", "exec"), {"__name__": "__main__"})  # noqa: S102
        else:
            _run(request["arguments"])
        exit_code = 0
    except SystemExit as ended:
        exit_code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - for the test that asked
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _run(arguments: Sequence[str]) -> None:
    from tokenmill.cli import app  # noqa: PLC0415
    from tokenmill.stages.in_process import InProcessExecutor  # noqa: PLC0415

    app(list(arguments), obj=InProcessExecutor())


if __name__ == "__main__":
    _serve()
