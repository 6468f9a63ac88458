"""Measure the work before a run: planning many shards in S3, and resuming many units.

S3 is SeaweedFS on the same machine, and uses part of its cores. The resume is timed in a separate
process, up to the point where it would start Ray.
"""

import importlib.util
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from tokenmill.job.job import Job
from tokenmill.output.output import OpenedOutput
from tokenmill.run.planning import prepare
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.open import open_store

from bench import ROOT
from bench.measure import Figure, at_least, at_most

_SHARDS = 10_000
_UNITS = 100_000
_BUCKET = "bench"
_UPLOADS = 16


def figures() -> Iterator[Figure]:
    """Run the part `planning`: one minute."""
    with tempfile.TemporaryDirectory() as folder, _s3(Path(folder) / "s3") as server:
        _upload(server)
        job = _job(f"s3://{_BUCKET}/corpus", f"{folder}/out", {"tokens": 16_384})
        began, cpu_began = time.monotonic(), time.process_time()
        opened = _prepared(job, LocalStore(f"{folder}/out"))
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu_began
        if opened.plan.num_shards != _SHARDS:
            raise RuntimeError(f"{opened.plan.num_shards} shards were planned, not {_SHARDS}")
    yield at_least(500, f"{_SHARDS:,} shards in S3 planned", _SHARDS / seconds, "shards/s")
    yield Figure("  cores used, without the server", cpu / seconds, "cores")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus").mkdir()
        pq.write_table(pa.table({"text": ["a"] * _UNITS}), f"{folder}/corpus/a.parquet")
        job = _job(f"{folder}/corpus", f"{folder}/out", {"rows": 1})
        first, *committed = _prepared(job, LocalStore(f"{folder}/out")).plan.units
        for unit in committed:
            path = Path(folder, "out", unit.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            missing, seconds, mib = process.submit(_resume, job).result()
        if missing != [first.key]:
            raise RuntimeError(f"{len(missing)} units are missing")
    yield at_most(30, f"resume with {_UNITS:,} units committed", seconds, "seconds")
    yield Figure("  memory on top of the imports", mib, "MiB")


def _prepared(job: Job, store: Store) -> OpenedOutput:
    return prepare(job, store, has_gpus=False).opened


def _resume(job: Job) -> tuple[list[str], float, float]:
    """Return the missing units, the seconds, and the peak MiB on top of the imports."""
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    prepared = prepare(job, open_store(job.output.path), has_gpus=False)
    missing = [unit.key for unit in prepared.missing]
    seconds = time.monotonic() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return missing, seconds, (most - before) / 2**20


def _job(corpus: str, output: str, units: dict[str, int]) -> Job:
    return Job.model_validate(
        {
            "name": "planning",
            "input": {"path": corpus},
            "model": {"source": "fake"},
            "prompt": {"user": "{{ text }}"},
            "sampling": {"max_tokens": 1},
            "output": {"path": output},
            "units": units,
        }
    )


def _upload(server: Any) -> None:
    """Upload shards of one row group each."""
    sink = BytesIO()
    pq.write_table(pa.table({"text": ["a word or two"] * 10}), sink)

    def put(number: int) -> None:
        key = f"corpus/{number:05}.parquet"
        server.client.put_object(Bucket=_BUCKET, Key=key, Body=sink.getvalue())

    server.create_bucket(_BUCKET)
    with ThreadPoolExecutor(_UPLOADS) as threads:
        for _ in threads.map(put, range(_SHARDS)):
            pass


@contextmanager
def _s3(folder: Path) -> Iterator[Any]:
    """Run a server, and point the AWS environment of this process to it."""
    before = dict(os.environ)
    with _serve().local_s3(folder) as server:
        os.environ.update(server.environment)
        try:
            yield server
        finally:
            os.environ.clear()
            os.environ.update(before)


def _serve() -> ModuleType:
    """Load the script infra/local-s3/serve.py as a module."""
    name = "local_s3_serve"
    spec = importlib.util.spec_from_file_location(name, ROOT / "infra" / "local-s3" / "serve.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("infra/local-s3/serve.py was not found")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module while it is being loaded.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
