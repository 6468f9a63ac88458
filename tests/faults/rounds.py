"""One round of chaos: drivers on one output, killed and misled until it is finished, then judged.

Two slots hold a driver each; a driver that ends is followed by the next, the last of which is left
alone. All that is drawn comes from the round's name, so that a round can be run again.
"""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tokenmill.errors import ExitCode
from tokenmill.output.heartbeat import ALIVE_NAME
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.s3 import S3Store

from faults import driver, world
from faults.proxy import Asked, Fault, FaultyS3, Storm
from faults.world import Losses, Place

_SLOTS = 2
# Of a slot; the driver after them lives.
_MOST_DISTURBED = 5
_MOST_CALM = 4
# Far more than a driver takes: one that still runs hangs.
_HANGS_S = 120.0
#: Of a stop by a signal (a spot notice).
GRACE_S = 30.0
_FAULT_RATE = 0.06
_STORM = [fault for fault in Fault if fault is not Fault.EXPIRED]


class Fate(StrEnum):
    """What becomes of a driver at a random moment of its life."""

    KILL = "kill -9"
    TERMINATE = "SIGTERM"
    INTERRUPT = "SIGINT"
    STOP = "SIGSTOP, continued after the end"
    EXPIRE = "credentials expire"
    LIVE = "none"


_FATES = [*[Fate.KILL] * 14, *[Fate.TERMINATE] * 2, Fate.INTERRUPT, Fate.STOP, Fate.EXPIRE]
_SIGNALS = {
    Fate.KILL: signal.SIGKILL,
    Fate.TERMINATE: signal.SIGTERM,
    Fate.INTERRUPT: signal.SIGINT,
}


class Expiring(Storm):
    """A storm in which, for moments, no credentials are good."""

    expired = False

    def fault_of(self, asked: Asked) -> Fault | None:
        return Fault.EXPIRED if self.expired else super().fault_of(asked)


@dataclass(slots=True)
class Verdict:
    """What a round came to. `failures` says in words what must not have happened."""

    name: str
    fates: Counter[str] = field(default_factory=Counter)
    exit_codes: Counter[str] = field(default_factory=Counter)
    drivers: int = 0
    units: int = 0
    units_redone: int = 0
    bytes_changed_after_success: int = 0
    losses: Losses = field(default_factory=Losses)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where rounds take place: the proxy, the server behind it, the job, what should come out.

    Below `folder`, each round keeps what its drivers say.
    """

    folder: Path
    proxy: FaultyS3
    environment: Mapping[str, str]
    job: Path
    after_run: dict[Place, dict[str, Any]]
    after_retry: dict[Place, dict[str, Any]]


class Round:
    """Runs on one bucket, whose input is there already."""

    def __init__(self, stage: Stage, bucket: str) -> None:
        self._stage = stage
        self._bucket = bucket
        self._folder = stage.folder / bucket
        self._output = f"s3://{bucket}/out"
        self._store: Store = S3Store(self._output, stage.environment["AWS_ENDPOINT_URL"])
        self._storm = Expiring(bucket, _FAULT_RATE, _STORM)
        self._lock = threading.Lock()
        self._zombies: list[BaseProcess] = []
        self.verdict = Verdict(bucket)

    def run(self) -> Verdict:
        """Run, wake the zombies, retry; after each, judge."""
        started_at = time.monotonic()
        self._folder.mkdir()
        run = ("run", self._stage.job, "--input", f"s3://{self._bucket}/corpus")
        self._until_finished("run", [*run, "--output", self._output])
        answered = driver.answered_units(self._folder)
        self.verdict.units = len(set(answered))
        self.verdict.units_redone = len(answered) - len(set(answered))
        self._judge("run", self._stage.after_run)
        self._wake_zombies()
        self._judge("zombies", self._stage.after_run)
        retry = ("retry", self._output, *world.RETRY, "--set", world.MENDED)
        self._until_finished("retry", retry)
        self._wake_zombies(may_write=True)
        self._judge("retry", self._stage.after_retry)
        self.verdict.seconds = round(time.monotonic() - started_at, 1)
        return self.verdict

    def _until_finished(self, what: str, arguments: Sequence[str | Path]) -> None:
        self._stage.proxy.storms[self._bucket] = self._storm
        with ThreadPoolExecutor(_SLOTS) as slots:
            list(slots.map(lambda slot: self._slot(f"{what} {slot}", arguments), range(_SLOTS)))
        del self._stage.proxy.storms[self._bucket]
        for _ in range(_MOST_CALM):
            if self._live(self._start(f"{what} calm", arguments)) == ExitCode.FINISHED:
                return
        self._fail(f"{what}: not finished without faults")

    def _slot(self, name: str, arguments: Sequence[str | Path]) -> None:
        for number in range(_MOST_DISTURBED):
            draw = random.Random(f"{self._bucket} {name} {number}")
            process = self._start(f"{name} {number}", arguments)
            has_ended = driver.wait(process, draw.uniform(0.05, 1.2)) is not None
            fate = Fate.LIVE if has_ended else draw.choice(_FATES)
            if self._meet(fate, process) == ExitCode.FINISHED:
                return
        self._live(self._start(f"{name} last", arguments))

    def _start(self, name: str, arguments: Sequence[str | Path]) -> BaseProcess:
        self.verdict.drivers += 1
        seed = f"{self._bucket} {name}"
        through_proxy = {"AWS_ENDPOINT_URL": self._stage.proxy.endpoint_url}
        environment = {**self._stage.environment, **through_proxy}
        return driver.start(arguments, environment, self._folder, seed)

    def _meet(self, fate: Fate, process: BaseProcess) -> int | None:
        """Let the fate come over the driver; its exit code, if it has ended."""
        with self._lock:
            self.verdict.fates[fate] += 1
        if fate in _SIGNALS:
            while not driver.listens(self._folder, process) and driver.wait(process, 0.02) is None:
                pass
            driver.signal_if_alive(process, _SIGNALS[fate])
            return self._ended(process, GRACE_S)
        if fate is Fate.STOP:
            driver.signal_if_alive(process, signal.SIGSTOP)
            with self._lock:
                self._zombies.append(process)
            return None
        if fate is Fate.EXPIRE:
            self._storm.expired = True
            driver.wait(process, 0.5)
            self._storm.expired = False
        return self._live(process)

    def _live(self, process: BaseProcess) -> int | None:
        return self._ended(process, _HANGS_S)

    def _ended(self, process: BaseProcess, within_s: float) -> int | None:
        """The driver's exit code; it must have ended by then, and with a reason."""
        exit_code = driver.wait(process, within_s)
        if exit_code is None:
            # It prints where its threads are.
            driver.signal_if_alive(process, signal.SIGUSR1)
            driver.wait(process, 1)
            self._fail(f"a driver hung for {within_s:.0f} s: {driver.said(self._folder, process)}")
            driver.signal_if_alive(process, signal.SIGKILL)
            exit_code = driver.wait(process, _HANGS_S)
        said = driver.said(self._folder, process)
        with self._lock:
            self.verdict.exit_codes[str(exit_code)] += 1
        if driver.is_unexplained(said):
            self._fail(f"a driver ended without a reason of ours: {said}")
        return exit_code

    def _wake_zombies(self, may_write: bool = False) -> None:
        """Drivers that were paused until a run had ended; they change no object."""
        before = self._versions()
        for process in self._zombies:
            driver.signal_if_alive(process, signal.SIGCONT)
        for process in self._zombies:
            self._live(process)
        self._zombies.clear()
        if may_write:
            return
        after = self._versions()
        changed = [key for key, version in before.items() if after.get(key) != version]
        self.verdict.bytes_changed_after_success += sum(
            size for key, (_, size) in before.items() if key in changed
        )
        foreign = [key for key in after.keys() - before if not key.startswith("_tokenmill/runs/")]
        if changed or foreign:
            self._fail(f"a zombie changed {changed} and made {foreign}")

    def _versions(self) -> dict[str, tuple[str, int]]:
        """All objects except heartbeats, which each run writes into its own folder."""
        return {
            item.key: (item.version, item.size)
            for item in self._store.list()
            if not item.key.endswith(ALIVE_NAME)
        }

    def _judge(self, what: str, undisturbed: dict[Place, dict[str, Any]]) -> None:
        """What `verify --deep` says, and how the rows differ from an undisturbed run's."""
        verify = ["verify", self._output, "--deep"]
        process = driver.start(verify, self._stage.environment, self._folder, "")
        if self._live(process) != ExitCode.FINISHED:
            self._fail(f"{what}: not whole: {driver.said(self._folder, process)}")
        found = world.losses(self._store, undisturbed)
        before = self.verdict.losses
        self.verdict.losses = Losses(*map(sum, zip(_numbers(before), _numbers(found), strict=True)))
        if not found.none:
            lines = list(world.differing(self._store, undisturbed))[:5]
            self._fail(f"{what}: {found}: {lines}")
        if "_SUCCESS" not in self._versions():
            self._fail(f"{what}: no _SUCCESS")

    def _fail(self, text: str) -> None:
        with self._lock:
            self.verdict.failures.append(f"{self._bucket}: {text}")


def _numbers(losses: Losses) -> tuple[int, ...]:
    return losses.lost, losses.doubled, losses.torn, losses.different


def undisturbed(
    folder: Path, job: Path
) -> tuple[dict[Place, dict[str, Any]], dict[Place, dict[str, Any]]]:
    """The rows of a run in peace, before and after its rejects were answered again."""
    output = folder / "peace"
    rows = []
    for arguments in (
        ["run", job, "--input", folder / "corpus", "--output", output],
        ["retry", output, *world.RETRY, "--set", world.MENDED],
    ):
        process = driver.start(arguments, {}, folder, "")
        process.join(_HANGS_S)
        if process.exitcode != ExitCode.FINISHED:
            raise RuntimeError(f"the undisturbed run failed: {driver.said(folder, process)}")
        rows.append(world.by_place(world.read_rows(LocalStore(str(output)))[0]))
    return rows[0], rows[1]
