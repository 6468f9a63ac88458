"""Measure the cost of a kill in the middle of a run: the rows computed again, and the time.

The engine takes the same time for every step, whatever else the machine does, and units have their
default size. The whole process group of the run is killed, and the same command is run again.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bench import lost
from bench.measure import Figure, at_most
from bench.watched import Sample, launch, read, watch

_STEP_S = 0.02
# About 110 tokens, as in W2.
_CHARACTERS = 440
_NUM_ROWS = 2_000
_SHARE = 0.5
_LOOK_S = 0.05
_MOST_TIME = 1.05


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The wall time of a run, and its samples."""

    wall_s: float
    samples: Sequence[Sample]

    @property
    def engine_s(self) -> float:
        """Seconds from the engine's being ready to the last sample."""
        last = self.samples[-1]
        return 0.0 if last.ready_at is None else last.at - last.ready_at


def figures() -> Iterator[Figure]:
    """Run the part `restart`: eight minutes."""
    yield from lost.figures()
    yield from _figures("killed halfway, equal lengths", lost.equal_lengths(_NUM_ROWS))
    yield from _figures("killed halfway, log-normal lengths", lost.skewed_lengths(_NUM_ROWS))


def _figures(name: str, lengths: Sequence[int]) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        job_file = _write_job(Path(folder), lengths)
        undisturbed = _whole(job_file)
    with tempfile.TemporaryDirectory() as folder:
        job_file = _write_job(Path(folder), lengths)
        killed = _killed(job_file)
        again = _whole(job_file)
        num_units = len(list(Path(folder).glob("out/data/**/*.parquet")))
    at_kill, last = killed.samples[-1], again.samples[-1]
    kept = len(lengths) - last.committed
    aim = 2 * lost.SEQS + len(lengths) / num_units
    begun = at_kill.answered - kept + min(at_kill.in_engine, lost.SEQS)
    yield at_most(aim, f"{name}: rows started and lost", begun, "rows")
    yield Figure("  of these, answered", at_kill.answered - kept, "rows")
    yield Figure("  rows per unit", len(lengths) / num_units, "rows")
    start_s = undisturbed.wall_s - undisturbed.engine_s
    both_s = killed.wall_s + again.wall_s - start_s
    ratio = both_s / undisturbed.wall_s
    yield at_most(_MOST_TIME, "  time without one start, relative to an undisturbed run", ratio, "")
    engines_s = killed.engine_s + again.engine_s
    yield Figure("  additional engine seconds", engines_s - undisturbed.engine_s, "seconds")
    yield Figure("  seconds per start", start_s, "seconds")


def _whole(job_file: Path) -> _Attempt:
    began = time.monotonic()
    samples = watch(job_file)
    return _Attempt(time.monotonic() - began, samples)


def _killed(job_file: Path) -> _Attempt:
    """Run the job and kill it once half of the rows are committed."""
    samples = job_file.with_suffix(".jsonl")
    began = time.monotonic()
    process = launch(job_file, samples)
    while process.poll() is None:
        seen = read(samples)
        if seen and seen[-1].committed >= _SHARE * _NUM_ROWS:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return _Attempt(time.monotonic() - began, seen)
        time.sleep(_LOOK_S)
    raise RuntimeError(samples.with_suffix(".log").read_text()[-2000:])


def _write_job(folder: Path, lengths: Sequence[int]) -> Path:
    (folder / "corpus").mkdir()
    texts = [f"{row} ".ljust(_CHARACTERS, "x") for row in range(len(lengths))]
    table = pa.table({"text": texts, "length": lengths})
    pq.write_table(table, folder / "corpus" / "rows.parquet")
    engine = {"max_num_seqs": lost.SEQS, "step_s": _STEP_S, "output_tokens": 1_000_000}
    job = {
        "name": "restart",
        "input": {"path": str(folder / "corpus")},
        "model": {"source": "fake", "engine": engine},
        "prompt": {"user": "{{ text }}"},
        "sampling": {"max_tokens": max(lengths)},
        "overrides": {"max_tokens": "length"},
        "output": {"path": str(folder / "out")},
    }
    job_file = folder / "job.yaml"
    job_file.write_text(yaml.safe_dump(job))
    return job_file
