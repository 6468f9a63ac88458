"""What it takes to find the one unit of an output that is missing, and that none is.

    python bench/resume.py [UNITS]

The output has 10,000 units if no number is given. Prints seconds and memory of a resume up to its
start of Ray, in a process of its own, and the seconds of `tokenmill run` on the finished output.
"""

import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from yaml import safe_dump

from pipeline.job import Job
from pipeline.output import Totals, write_success
from pipeline.prepare import prepare
from pipeline.store import LocalStore


def main(num_units: int) -> None:
    """Plan an output, let all but one of its units stand, and go on with it."""
    with tempfile.TemporaryDirectory() as folder:
        job, store = _job_over(Path(folder), num_units), LocalStore(f"{folder}/out")
        units = prepare(job, store, has_gpus=False).opened.plan.units
        for unit in units[1:]:
            store.replace(unit.key, b"")
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            num_missing, seconds, mib = process.submit(_resume, job, store).result()
        print(f"{num_units:,} units, {num_missing:,} missing: {seconds:.2f} s, {mib:.0f} MiB")
        store.replace(units[0].key, b"")
        write_success(store, Totals(len(units), num_units, 0, {}, 0, 0))
        print(f"{num_units:,} units, finished: {_run_again(job, Path(folder)):.2f} s")


def _resume(job: Job, store: LocalStore) -> tuple[int, float, float]:
    """How many units are missing; the seconds, and the most MiB on top of what the imports hold."""
    before = psutil.Process().memory_info().rss
    started_at = time.perf_counter()
    prepared = prepare(job, store, has_gpus=False)
    seconds = time.perf_counter() - started_at
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return len(prepared.missing), seconds, (most - before) / 2**20


def _run_again(job: Job, folder: Path) -> float:
    file = folder / "job.yaml"
    file.write_text(safe_dump(job.model_dump(mode="json", exclude_unset=True)))
    started_at = time.perf_counter()
    subprocess.run([sys.executable, "-m", "pipeline", "run", file], check=True)
    return time.perf_counter() - started_at


def _job_over(folder: Path, num_rows: int) -> Job:
    """Of one row a unit."""
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": ["a"] * num_rows}), folder / "corpus" / "a.parquet")
    return Job.model_validate(
        {
            "name": "resume",
            "input": {"path": f"{folder}/corpus"},
            "model": {"source": "fake"},
            "prompt": {"user": "{{ text }}"},
            "sampling": {"max_tokens": 1},
            "output": {"path": f"{folder}/out"},
            "units": {"rows": 1},
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
