"""`tokenmill` as a process that starts in a moment, to be killed by the hundred: all but Ray.

Stages, store, plan, verification, messages and exit codes are the command's own; units go through
`InlinePool` in three threads around one replica with the fake engine, instead of Ray's processes.
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_forks = multiprocessing.get_context("forkserver")
# By the server that forks the drivers, and not by each of them. Of the tests it finds nothing.
_IMPORTED_ONCE = [
    *("pytest", "psutil", "aiohttp.web", "aiobotocore.session", "botocore.loaders", "s3fs"),
    *("pipeline.cli", "pipeline.pool", "pipeline.tools", "pyarrow.dataset"),
]
_THREADS = 3
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

    import pipeline.pool  # noqa: PLC0415
    from pipeline.cli import app  # noqa: PLC0415

    s3fs.S3FileSystem.read_timeout = _READ_TIMEOUT_S
    pipeline.pool.Pool = _pool_class(Path(folder), random.Random(seed))
    try:
        app(words)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that wait to write again would hold the process; Ray ends its workers too.
        os._exit(int(end.code or 0))


def _pool_class(folder: Path, draw: random.Random) -> Any:  # noqa: C901 - one class
    from pipeline import pool  # noqa: PLC0415
    from pipeline.commit import Commit  # noqa: PLC0415
    from pipeline.engine import MachineShare  # noqa: PLC0415
    from pipeline.errors import RunFailed  # noqa: PLC0415
    from pipeline.job import Job  # noqa: PLC0415
    from pipeline.meters import NoRecorder  # noqa: PLC0415
    from pipeline.parcel import unpack  # noqa: PLC0415
    from pipeline.pool_state import PoolState  # noqa: PLC0415
    from pipeline.replica import AnsweredUnit, Replica, load_engine  # noqa: PLC0415
    from pipeline.suspects import Suspects  # noqa: PLC0415
    from pipeline.tools import load_tasks  # noqa: PLC0415

    class Journal:
        def __init__(self, suspects: Suspects, unit: int) -> None:
            self._suspects, self._unit = suspects, unit

        def next_group(self, unanswered: Sequence[int]) -> Sequence[int]:
            return self._suspects.next_group(self._unit, unanswered)

        def survived(self) -> None:
            self._suspects.survived(self._unit)

    class InlinePool:
        """A pool of one replica in this process."""

        def __init__(self, address: str | None, job: Job, metrics_port: int | None) -> None:
            assert address is metrics_port is None
            self.recorder = NoRecorder()
            self._job = job
            self._tasks = load_tasks(job)
            self._suspects = Suspects()
            self._deaths: set[int] = set()
            self._lock = threading.Lock()
            self._stopped = threading.Event()
            self._replica = self._new_replica()

        def _new_replica(self) -> Replica:
            return Replica(
                load=lambda: load_engine(self._job, MachineShare(0, 1)),
                tasks=self._tasks,
                on_load=lambda _: None,
                on_death=lambda _: None,
            )

        def state(self) -> PoolState:
            condemned = self._suspects.num_condemned
            return PoolState({}, len(self._deaths), "a fault of the test", condemned)

        def commits(self, spec: pool.RunSpec) -> Iterator[Commit]:
            positions = list(range(len(spec.units)))
            draw.shuffle(positions)
            with ThreadPoolExecutor(_THREADS) as threads:
                futures = [threads.submit(self._unit, spec, at) for at in positions]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                finally:
                    threads.shutdown(cancel_futures=True)

        def _unit(self, spec: pool.RunSpec, position: int) -> Commit:
            if self._stopped.is_set():
                raise RunFailed("stopped")
            ((_, rendered),) = unpack(pool._render_unit(spec, position))
            answered = self._answer(position, rendered)
            with open(folder / "answered", "a") as file:
                file.write(f"{spec.units[position].key}\n")
            rows = pool._with_facts(answered, rendered, self._replica.info, str(os.getpid()))
            return pool._commit_unit(spec, position, rows)

        def _answer(self, position: int, rendered: Any) -> AnsweredUnit:
            while True:
                with self._lock:
                    replica = self._replica
                    advice = self._suspects.begin(position)
                try:
                    if advice.is_alone:
                        journal = Journal(self._suspects, position)
                        answered = replica.answer_alone(rendered, advice.condemned, journal)
                    else:
                        answered = replica.answer(rendered)
                except RuntimeError:
                    with self._lock:
                        self._deaths.add(id(replica))
                        if self._replica is replica:
                            self._replica = self._new_replica()
                    continue
                with self._lock:
                    self._suspects.end(position)
                return answered

        def stop(self) -> None:
            self._stopped.set()

        def close(self) -> None:
            """Nothing runs beside this process."""

    return InlinePool


def signal_if_alive(process: BaseProcess, number: int) -> bool:
    """Send a signal; False if the process has ended before."""
    if process.pid is None or wait(process, 0) is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False
