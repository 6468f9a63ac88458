"""A round of chaos over real Ray: parts of a run are killed, then the run, until it is finished.

Slower than `rounds` by two orders of magnitude, and so there are few: what is tested here is what
goes through Ray's processes.
"""

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from helpers.command import tokenmill
from tokenmill.errors import ExitCode
from tokenmill.storage.s3 import S3Store

from faults import driver as inline
from faults import real, world
from faults.proxy import Fault, Storm
from faults.rounds import GRACE_S, Stage, Verdict
from faults.world import Place

_MOST_DRIVERS = 6
_HANGS_S = 240.0
_FAULT_RATE = 0.02
# An answer that never comes costs 15 s of a run that lasts for twenty.
_STORM = [fault for fault in Fault if fault not in {Fault.EXPIRED, Fault.HANG}]


class Deed(StrEnum):
    """What happens to a run."""

    REPLICA = "kill -9 of a replica's process"
    RENDER = "kill -9 of a worker that renders"
    COMMIT = "kill -9 of a worker that commits"
    BOARD = "kill -9 of the coordinator"
    DRIVER = "kill -9 of the driver over Ray"
    TERMINATE = "SIGTERM of the driver over Ray"
    SECOND = "a second driver over Ray"


_PARTS = {
    Deed.REPLICA: real.REPLICA,
    Deed.RENDER: real.RENDER,
    Deed.COMMIT: real.COMMIT,
    Deed.BOARD: real.BOARD,
}


class RayRound:
    """Runs on one bucket, whose input is there already."""

    def __init__(self, stage: Stage, bucket: str) -> None:
        self._stage = stage
        self._bucket = bucket
        self._draw = random.Random(bucket)
        self._store = S3Store(f"s3://{bucket}/out", stage.environment["AWS_ENDPOINT_URL"])
        self.verdict = Verdict(bucket)

    def run(self) -> Verdict:
        """Disturb drivers until one finishes; judge."""
        started_at = time.monotonic()
        self._stage.proxy.storms[self._bucket] = Storm(self._bucket, _FAULT_RATE, _STORM)
        for number in range(_MOST_DRIVERS):
            if number == _MOST_DRIVERS - 1:
                del self._stage.proxy.storms[self._bucket]
            if self._disturbed(is_last=number >= _MOST_DRIVERS - 2) == ExitCode.FINISHED:
                break
        else:
            self._fail("not finished")
        self._judge(self._stage.after_run)
        self.verdict.seconds = round(time.monotonic() - started_at, 1)
        return self.verdict

    def _disturbed(self, is_last: bool) -> int | None:
        """One driver's life; its exit code."""
        driver = self._start()
        self._until_it_commits(driver)
        for deed in self._draw.sample(list(_PARTS), 2):
            self._wait(driver, self._draw.uniform(0.2, 2.0))
            if real.kill_one(driver, _PARTS[deed]):
                self.verdict.fates[deed] += 1
        deed = self._draw.choice([Deed.DRIVER, Deed.TERMINATE, Deed.SECOND])
        if is_last or driver.poll() is not None:
            return self._ended(driver, _HANGS_S)
        self.verdict.fates[deed] += 1
        if deed is Deed.SECOND:
            second = self._start()
            self._ended(second, _HANGS_S)
            return self._ended(driver, _HANGS_S)
        driver.send_signal(signal.SIGKILL if deed is Deed.DRIVER else signal.SIGTERM)
        return self._ended(driver, GRACE_S)

    def _start(self) -> "subprocess.Popen[str]":
        self.verdict.drivers += 1
        environment: Mapping[str, str] = {
            **self._stage.environment,
            "AWS_ENDPOINT_URL": self._stage.proxy.endpoint_url,
        }
        source, output = f"s3://{self._bucket}/corpus", f"s3://{self._bucket}/out"
        return real.start(self._stage.job, source, output, env=environment)

    def _until_it_commits(self, driver: "subprocess.Popen[str]") -> None:
        before = len(list(self._store.list("data")))
        while driver.poll() is None and len(list(self._store.list("data"))) == before:
            self._wait(driver, 0.2)

    def _wait(self, driver: "subprocess.Popen[str]", seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(seconds)

    def _ended(self, driver: "subprocess.Popen[str]", within_s: float) -> int | None:
        try:
            said, _ = driver.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            driver.kill()
            said, _ = driver.communicate()
            self._fail(f"a driver hung for {within_s:.0f} s: {said}")
        self.verdict.exit_codes[str(driver.returncode)] += 1
        if inline.is_unexplained(said):
            self._fail(f"a driver ended without a reason of ours: {said}")
        return driver.returncode

    def _judge(self, undisturbed: dict[Place, dict[str, Any]]) -> None:
        output = f"s3://{self._bucket}/out"
        proof = tokenmill("verify", output, "--deep", env=self._stage.environment)
        if proof.returncode != ExitCode.FINISHED:
            self._fail(f"not whole: {proof.stdout}{proof.stderr}")
        self.verdict.losses = world.losses(self._store, undisturbed)
        self.verdict.units = len(list(self._store.list("data")))
        if not self.verdict.losses.none:
            lines = list(world.differing(self._store, undisturbed))[:5]
            self._fail(f"{self.verdict.losses}: {lines}")

    def _fail(self, text: str) -> None:
        self.verdict.failures.append(f"{self._bucket}: {text}")
