"""`tokenmill` as a process that starts in a moment, to be killed by the hundred: all but Ray.

Stages, store, plan, verification, messages and exit codes are the command's own. Units run in three
threads around one replica with the fake engine (`threaded`), instead of Ray's processes.
"""

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_forks = multiprocessing.get_context("forkserver")
# By the server that forks the drivers, and not by each of them. Of the tests it finds nothing.
_IMPORTED_ONCE = [
    *("pytest", "psutil", "aiohttp.web", "aiobotocore.session", "botocore.loaders", "s3fs"),
    *("tokenmill.cli", "tokenmill.stages.in_process", "pyarrow.dataset"),
]
# Starting a process asks after all others, and the end of one can be read only once.
_asking = threading.Lock()
# What a lost answer costs; the default of 15 s would make a storm last for hours.
_READ_TIMEOUT_S = 2


def start(
    arguments: Sequence[str | Path], environment: Mapping[str, str], folder: Path, seed: str
) -> BaseProcess:
    """Start `tokenmill` with these arguments; what it says goes into `folder`."""
    _forks.set_forkserver_preload(_IMPORTED_ONCE)
    words = [str(argument) for argument in arguments]
    process = _forks.Process(target=_main, args=(words, dict(environment), str(folder), seed))
    with _asking:
        process.start()
    return process


def wait(process: BaseProcess, within_s: float) -> int | None:
    """The driver's exit code; None if it has not ended by then."""
    multiprocessing.connection.wait([process.sentinel], within_s)
    with _asking:
        return process.exitcode


def listens(folder: Path, process: BaseProcess) -> bool:
    """Whether the driver heeds signals by now."""
    return (folder / f"{process.pid}.log").exists()


def said(folder: Path, process: BaseProcess) -> str:
    """What a driver has said."""
    path = folder / f"{process.pid}.log"
    return path.read_text(errors="replace") if path.exists() else ""


def is_unexplained(said: str) -> bool:
    """Whether a driver ended with an error that it had no words for."""
    broke = "Traceback" in said and not said.rstrip().endswith("KeyboardInterrupt")
    return broke or "--debug shows where" in said


def answered_units(folder: Path) -> list[str]:
    """The units that engines have answered, each time they did."""
    path = folder / "answered"
    return path.read_text().split() if path.exists() else []


def _main(words: Sequence[str], environment: dict[str, str], folder: str, seed: str) -> None:
    # Ignored until now: by the server, and by what a shell runs in its background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    with open(os.path.join(folder, f"{os.getpid()}.log"), "wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # Not the server's own: it has that of the moment at which it started.
    os.environ.update(environment, TOKENMILL_CACHE=folder)

    import s3fs  # noqa: PLC0415 - the tests' own process does without
    from tokenmill.cli import app  # noqa: PLC0415

    from faults.threaded import ThreadedExecutor  # noqa: PLC0415

    s3fs.S3FileSystem.read_timeout = _READ_TIMEOUT_S
    executor = ThreadedExecutor(Path(folder), random.Random(seed))
    try:
        app(words, obj=executor)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that wait to write again would hold the process; Ray ends its workers too.
        os._exit(int(end.code or 0))


def signal_if_alive(process: BaseProcess, number: int) -> bool:
    """Send a signal; False if the process has ended before."""
    if process.pid is None or wait(process, 0) is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False
