"""Measure the time until a run's engines are ready, compared with vLLM alone."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import fetch_model

from bench.measure import Figure, at_most
from bench.timing import ENVIRONMENT
from bench.watched import launch, read
from bench.workloads import ENGINE, MODEL

_ROUNDS = 3
_MOST_LATER_S = 5
_MOST_OF_TWO = 1.3
_LOOK_S = 0.05
# Takes longer than any start: the first replica must not finish all the work.
_TOKENS = 2_000
# time.monotonic() is the same clock for all processes of a machine.
_BARE = """
import json, sys, time
from vllm import LLM
engine = LLM(model=sys.argv[1], disable_log_stats=True, **json.loads(sys.argv[2]))
print(time.monotonic())
"""
_REAL = {"source": MODEL, "engine": {**ENGINE, "max_model_len": 4_096}}
_FAKE = {"source": "fake", "engine": {"step_s": 0.1, "output_tokens": 1_000_000}}


def figures() -> Iterator[Figure]:
    """Run the part `start`: ten minutes."""
    folder = str(fetch_model(ModelSource(source=MODEL)))
    bare, ours = [], []
    for _ in range(_ROUNDS):
        bare.append(_bare_s(folder))
        ours.append(_ready_s(_REAL, 1))
    yield Figure("vLLM alone", statistics.median(bare), "seconds")
    yield Figure("a run's engine", statistics.median(ours), "seconds")
    later = statistics.median(own - other for own, other in zip(ours, bare, strict=True))
    yield at_most(_MOST_LATER_S, "  later than vLLM alone", later, "seconds")
    for name, model in (("fake engine", _FAKE), (MODEL, _REAL)):
        seconds = {number: _median_s(model, number) for number in (1, 2)}
        ratio = seconds[2] / seconds[1]
        yield at_most(_MOST_OF_TWO, f"two replicas relative to one, {name}", ratio, "")
        yield Figure("  one replica", seconds[1], "seconds")


def _median_s(model: Mapping[str, Any], num_replicas: int) -> float:
    return statistics.median(_ready_s(model, num_replicas) for _ in range(_ROUNDS))


def _bare_s(model: str) -> float:
    """Return the seconds from the start of a process to its engine."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BARE, model, json.dumps(ENGINE)],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1]) - began


def _ready_s(model: Mapping[str, Any], num_replicas: int) -> float:
    """Return the seconds until `num_replicas` are ready; for several, accurate to a second."""
    with tempfile.TemporaryDirectory() as folder:
        job_file = _write_job(Path(folder), {**model, "replicas": num_replicas})
        samples = job_file.with_suffix(".jsonl")
        began = time.monotonic()
        process = launch(job_file, samples)
        try:
            while process.poll() is None:
                for sample in read(samples):
                    if sample.replicas == num_replicas and sample.ready_at is not None:
                        return (sample.ready_at if num_replicas == 1 else sample.at) - began
                time.sleep(_LOOK_S)
            raise RuntimeError(samples.with_suffix(".log").read_text()[-2000:])
        finally:
            process.terminate()
            process.wait()


def _write_job(folder: Path, model: Mapping[str, Any]) -> Path:
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"]}), folder / "corpus" / "rows.parquet")
    job = {
        "name": "start",
        "input": {"path": str(folder / "corpus")},
        "model": dict(model),
        "prompt": {"user": "{{ text }}"},
        "sampling": {"max_tokens": _TOKENS, "ignore_eos": True},
        "output": {"path": str(folder / "out")},
        "units": {"rows": 1},
    }
    job_file = folder / "job.yaml"
    job_file.write_text(json.dumps(job))
    return job_file
