"""Measure how many prompt tokens the real engine finds in its prefix cache, by vLLM's counters.

The prompts are in the order in which one replica sends them. The figure is the number of tokens
found, divided by the number that an unlimited cache would find.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenmill.job.loader import load_job

from bench import timing, workloads
from bench.alone import requests_of
from bench.measure import Figure, at_least
from bench.prefixes import found_by_unlimited
from bench.workloads import ENGINE, Workload

# vLLM's default on a CPU, set explicitly so that the figure is the same on every machine.
_BLOCK_TOKENS = 128


def figures() -> Iterator[Figure]:
    """Run the part `cached`: a few minutes, with the real model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = workloads.tagging(folder, num_rows=64)
        yield from _found(one, "one instruction of 400 tokens", folder)
        yield from _found(workloads.questions(folder), "five questions about each document", folder)


def _found(workload: Workload, name: str, folder: Path) -> Iterator[Figure]:
    engine = {**ENGINE, "block_size": _BLOCK_TOKENS}
    model = {**workload.job["model"], "engine": engine}
    own = workload.with_keys({"model": model})
    job_file = own.write_job(folder / f"{name}.yaml", "replica", str(folder / name))
    block = timing.run_block("replica", job_file, folder / f"{name}.log")
    prompts = [request.prompt_token_ids for request in requests_of(load_job(job_file, []))]
    found = block.figures["cached_tokens"]
    unlimited = found_by_unlimited(prompts, _BLOCK_TOKENS)
    yield at_least(0.95, name, found / unlimited, "of unlimited")
    yield Figure("  share of all prompt tokens", found / sum(map(len, prompts)), "")
