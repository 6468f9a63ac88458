"""Time several systems on a machine that is never idle: alternately, each in its own process.

A block (one run of a system) begins when other processes use less than a tenth of a core. If that
never happens, the block records how much they used.
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

#: For every system: the engine runs in the process that drives it, with threads on all cores.
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
    """One run of one system: its figures, its wall time, and the other load before it began."""

    system: str
    figures: Mapping[str, Any]
    wall_s: float
    foreign_cores: float

    @property
    def seconds(self) -> float:
        """Seconds from the engine's being ready to the end."""
        return float(self.figures["seconds"])

    @property
    def rate(self) -> float:
        """Tokens per second, input and output."""
        tokens: int = self.figures["input_tokens"] + self.figures["output_tokens"]
        return tokens / self.seconds


def run_block(system: str, job_file: Path, log: Path) -> Block:
    """Run a system on a job. Raises `RuntimeError` with the end of its log if it fails."""
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
    """Wait until the machine is quiet, and return the cores that are still busy."""
    busy = 0.0
    for _ in range(_MOST_WATCHES):
        before = _busy_s()
        time.sleep(_WATCH_S)
        busy = (_busy_s() - before) / _WATCH_S
        if busy < _QUIET_CORES:
            break
    return busy


def _busy_s() -> float:
    """Return the CPU seconds that the machine has used since it started."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def alternate(
    systems: Sequence[str], run: Callable[[str, int], Block], rounds: int
) -> dict[str, list[Block]]:
    """Run the systems alternately (A B A B …), `rounds` blocks of each."""
    blocks: dict[str, list[Block]] = {system: [] for system in systems}
    for number in range(rounds):
        for system in systems:
            blocks[system].append(run(system, number))
    return blocks


def ratios(own: Sequence[Block], base: Sequence[Block]) -> list[float]:
    """Return, for each round, the speedup of the system over the baseline."""
    return [other.seconds / block.seconds for block, other in zip(own, base, strict=True)]


def spread(numbers: Sequence[float], digits: int = 2) -> str:
    """Format the median, minimum and maximum."""
    median = statistics.median(numbers)
    return f"{median:,.{digits}f} ({min(numbers):,.{digits}f} to {max(numbers):,.{digits}f})"
