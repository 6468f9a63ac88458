"""A run in a process of its own, and what it tells of itself, second by second (`sampler`)."""

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
    """A moment of a run, `at` by the clock that all processes of a machine share (monotonic).

    `committed` are the rows whose commits this run has seen; `answered` those of all replicas. By
    role of a process (`OURS`, and Ray's own by their names): the MiB of the largest one, those of
    them that are pages of Ray's shared memory, the most that one has held, the CPU seconds of all
    that were seen.
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
    """A watched run in a process group of its own; its log stands beside the samples."""
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
    """A run's samples once it has ended. Raises `RuntimeError` with its log where it failed."""
    samples = job_file.with_suffix(".jsonl")
    samples.unlink(missing_ok=True)
    if launch(job_file, samples).wait():
        raise RuntimeError(samples.with_suffix(".log").read_text()[-2000:])
    return read(samples)


def read(samples: Path) -> list[Sample]:
    """What a run has told so far."""
    whole = samples.read_text().rpartition("\n")[0] if samples.exists() else ""
    return [Sample(**json.loads(line)) for line in whole.splitlines()]
