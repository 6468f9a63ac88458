"""Systems side by side on a machine that is never quite quiet: in turns, each in its own process.

Before each block the machine is watched: a block begins when others take less than a tenth of a
core, and says how much they took if they never do.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import ROOT

#: The engine in the process that drives it, its threads on all cores: for every system alike.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
_QUIET_CORES = 0.1
_WATCH_S = 2.0
_MOST_WATCHES = 15


@dataclass(frozen=True, slots=True)
class Block:
    """One run of one system: its figures, its wall time, the cores others took before it began."""

    system: str
    figures: Mapping[str, Any]
    wall_s: float
    foreign_cores: float

    @property
    def seconds(self) -> float:
        """From the engine's being ready to the end."""
        return float(self.figures["seconds"])

    @property
    def rate(self) -> float:
        """Tokens a second, those read and those written."""
        tokens: int = self.figures["input_tokens"] + self.figures["output_tokens"]
        return tokens / self.seconds


def run_block(system: str, job_file: Path, log: Path) -> Block:
    """Run a system on a job. Raises `RuntimeError` with the end of its log where it fails."""
    foreign_cores = _wait_for_quiet()
    command = [sys.executable, "-m", "bench.systems", system, str(job_file)]
    began = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{system} failed: {log.read_text()[-2000:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return Block(system, figures, time.monotonic() - began, foreign_cores)


def _wait_for_quiet() -> float:
    """The cores that are busy while nothing of ours runs."""
    busy = 0.0
    for _ in range(_MOST_WATCHES):
        before = _busy_s()
        time.sleep(_WATCH_S)
        busy = (_busy_s() - before) / _WATCH_S
        if busy < _QUIET_CORES:
            break
    return busy


def _busy_s() -> float:
    """CPU seconds that the whole machine has worked since it started."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def alternate(
    systems: Sequence[str], run: Callable[[str, int], Block], rounds: int
) -> dict[str, list[Block]]:
    """A B A B …: so many blocks of each."""
    blocks: dict[str, list[Block]] = {system: [] for system in systems}
    for number in range(rounds):
        for system in systems:
            blocks[system].append(run(system, number))
    return blocks


def ratios(own: Sequence[Block], base: Sequence[Block]) -> list[float]:
    """By round: how many times faster than its neighbour the system did the same."""
    return [other.seconds / block.seconds for block, other in zip(own, base, strict=True)]


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """The median, and the least and the most."""
    median = statistics.median(numbers)
    return f"{median:,.{digits}f} ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"
