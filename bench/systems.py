"""The systems to compare: each runs one job in its own process and prints its figures.

    python -m bench.systems SYSTEM JOB.yaml

SYSTEM is one of:

    tokenmill        `tokenmill run`
    llm              one call of `vllm.LLM.generate` with all prompts, the upper bound
    llm_in_groups    the same in groups of sixteen
    prompt_logprobs  the labels of a `classify` task, appended to the prompts and scored by one call
    replica          one tokenmill replica in this process, without Ray, with vLLM's counters
    by_hand          `map_batches` of Ray Data around `LLM.generate`, sixteen rows each
    ray_llm          `ray.data.llm` with its defaults
    ray_llm_tuned    `ray.data.llm` with batches of 16 rows, 64 of them at a time
    run_batch        the command `vllm run-batch`

Time is counted from the moment when the engine is ready.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tokenmill.job.loader import load_job

from bench.alone import Figures, llm, llm_in_groups, prompt_logprobs, replica
from bench.peers import by_hand, ray_llm, ray_llm_tuned, run_batch


def tokenmill(job_file: Path) -> Figures:
    """Run the job in this process, like `tokenmill run`."""
    from tokenmill.cluster.ray_executor import RayExecutor  # noqa: PLC0415
    from tokenmill.commands.terminal import Terminal  # noqa: PLC0415
    from tokenmill.run.run import run_job  # noqa: PLC0415

    summary = run_job(load_job(job_file, []), RayExecutor(), Terminal())
    if summary is None:
        raise SystemExit("the output already exists")
    return Figures(
        summary.engine_seconds,
        summary.rows,
        summary.input_tokens,
        summary.generated_tokens,
        summary.reused,
    )


SYSTEMS: dict[str, Callable[[Path], Figures]] = {
    system.__name__: system
    for system in (
        *(tokenmill, llm, llm_in_groups, prompt_logprobs, replica),
        *(by_hand, ray_llm, ray_llm_tuned, run_batch),
    )
}

if __name__ == "__main__":
    name, path = sys.argv[1:]
    # Only the figures go to stdout; anything that the systems and their processes print does not.
    told = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    result = SYSTEMS[name](Path(path))
    with os.fdopen(told, "w") as stdout:
        print(json.dumps(asdict(result)), file=stdout)
