"""Run a job in its own process and read its samples, taken every second (`sampler`)."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import ROOT
from bench.timing import ENVIRONMENT

OURS = ("driver", "actor", "board", "worker")


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of a run at a moment; `at` is the monotonic clock, shared by all processes.

    `committed` counts the rows whose commits this run has seen, `answered` those of all replicas.
    The mappings are by role of a process (`OURS`, and Ray's own processes by name): `mib` is the
    memory of the largest process, `shared_mib` the part of it in Ray's shared memory, `peak_mib`
    the most that any process has used, and `cpu_s` the CPU seconds of all processes.
    """

    at: float
    ready_at: float | None = None
    replicas: int = 0
    committed: int = 0
    answered: int = 0
    in_engine: int = 0
    units: int = 0
    mib: Mapping[str, float] = field(default_factory=dict)
    shared_mib: Mapping[str, float] = field(default_factory=dict)
    peak_mib: Mapping[str, float] = field(default_factory=dict)
    cpu_s: Mapping[str, float] = field(default_factory=dict)


def launch(job_file: Path, samples: Path) -> subprocess.Popen[bytes]:
    """Start a sampled run in its own process group; its log is next to the samples."""
    with samples.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.sampler", job_file, samples],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def watch(job_file: Path) -> list[Sample]:
    """Wait for a run and return its samples. Raises `RuntimeError` with its log if it fails."""
    samples = job_file.with_suffix(".jsonl")
    samples.unlink(missing_ok=True)
    if launch(job_file, samples).wait():
        raise RuntimeError(samples.with_suffix(".log").read_text()[-2000:])
    return read(samples)


def read(samples: Path) -> list[Sample]:
    """Return the samples that a run has written so far."""
    whole = samples.read_text().rpartition("\n")[0] if samples.exists() else ""
    return [Sample(**json.loads(line)) for line in whole.splitlines()]
