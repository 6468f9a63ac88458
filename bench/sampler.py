"""Run a job like the command line, and sample the memory and CPU time of its processes.

python -m bench.sampler JOB.yaml SAMPLES.jsonl
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
from tokenmill.cluster.ray_executor import RayExecutor
from tokenmill.commands.terminal import Terminal, stoppable
from tokenmill.job.loader import load_job
from tokenmill.observe.progress import Progress
from tokenmill.observe.screen import Screen
from tokenmill.run.run import run_job

from bench.watched import OURS, Sample


class _Watched(Terminal, Screen):
    """A terminal that writes a sample at each update of its screen."""

    def __init__(self, samples: Path) -> None:
        self._samples = samples
        self._peak_mib: defaultdict[str, float] = defaultdict(float)
        self._roles: dict[int, str] = {}
        self._cpu_s: dict[int, float] = {}
        self._sampling_s = 0.0
        self.last = Sample(time.monotonic())

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with super().watch(log) as self._screen:
            yield self

    def ticked(self, progress: Progress, now: float) -> None:
        self._screen.ticked(progress, now)
        loads = progress.pool.loads.values()
        self.last = Sample(
            at=now,
            ready_at=progress.first_load_at,
            replicas=len(loads),
            committed=progress.rows,
            answered=sum(load.answered_rows for load in loads),
            in_engine=sum(load.num_running for load in loads),
            units=sum(load.num_units for load in loads),
        )
        self.write()

    def close(self) -> None:
        """Do nothing: the terminal closes its screen itself."""

    def write(self) -> None:
        """Inspect the processes and write the last sample."""
        began = time.thread_time()
        mib: defaultdict[str, float] = defaultdict(float)
        shared_mib: defaultdict[str, float] = defaultdict(float)
        own = psutil.Process()
        for process in [own, *own.children(recursive=True)]:
            try:
                role = "driver" if process == own else self._role(process)
                resident, shared, peak = _held(process.pid)
                self._cpu_s[process.pid] = sum(process.cpu_times()[:2])
            except (psutil.Error, OSError, LookupError):
                # The process has ended in the meantime.
                continue
            self._roles[process.pid] = role
            mib[role] = max(mib[role], resident)
            shared_mib[role] = max(shared_mib[role], shared)
            self._peak_mib[role] = max(self._peak_mib[role], peak)
        cpu_s: defaultdict[str, float] = defaultdict(float)
        for pid, seconds in self._cpu_s.items():
            cpu_s[self._roles[pid]] += seconds
        # Sampling is not part of the run.
        cpu_s["driver"] -= self._sampling_s
        facts = {"mib": mib, "shared_mib": shared_mib, "peak_mib": self._peak_mib, "cpu_s": cpu_s}
        with self._samples.open("a") as file:
            file.write(json.dumps({**asdict(self.last), **facts}) + "\n")
        self._sampling_s += time.thread_time() - began

    def _role(self, process: psutil.Process) -> str:
        """Return the role by the title, which Ray changes: workers are idle between two tasks."""
        title = process.cmdline()[0]
        for role, mark in (("actor", "ReplicaActor"), ("board", "ray::Coordinator")):
            if mark in title:
                return role
        if not title.startswith("ray::"):
            return Path(title).name
        before = self._roles.get(process.pid, "")
        return before if before in OURS else "worker"


def _held(pid: int) -> Sequence[float]:
    """Return the resident MiB of a process, the shared part of it, and the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", maxsplit=1) for line in lines)
    return [int(facts[name].split()[0]) / 1024 for name in ("VmRSS", "RssShmem", "VmHWM")]


def main() -> None:
    """Run a job file; the last sample is taken after verification."""
    job_file, samples = map(Path, sys.argv[1:])
    watched = _Watched(samples)
    with stoppable():
        if run_job(load_job(job_file, []), RayExecutor(), watched) is None:
            raise SystemExit("the output already exists")
    watched.write()


if __name__ == "__main__":
    main()
