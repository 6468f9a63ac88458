"""The systems that are compared: each runs one job in a process of its own and prints its figures.

    python -m bench.systems SYSTEM JOB.yaml

SYSTEM is `tokenmill`; `llm`: one call of `vllm.LLM.generate` with all prompts, which is the limit;
`llm_in_groups`: the same in groups of sixteen; `prompt_logprobs`: the labels of a `classify` task
behind the prompts, scored by one such call; `replica`: one of the pipeline's replicas in this
process, without Ray, which tells what vLLM counts; `by_hand`: Ray Data's `map_batches` around
`LLM.generate`, sixteen rows each, as people write it first; `ray_llm`: `ray.data.llm` with its
defaults, and `ray_llm_tuned`: with batches of 16 rows, 64 of them at a time; `run_batch`: the
command `vllm run-batch`. Seconds count from the moment that the engine is ready.
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
    """`tokenmill run`, in this process, as the command line does it."""
    from tokenmill.cluster.ray_executor import RayExecutor  # noqa: PLC0415
    from tokenmill.commands.terminal import Terminal  # noqa: PLC0415
    from tokenmill.run.run import run_job  # noqa: PLC0415

    summary = run_job(load_job(job_file, []), RayExecutor(), Terminal())
    if summary is None:
        raise SystemExit("the output is there already")
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
    # Whatever the systems and their processes print, also while they end, is no figure.
    told = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    result = SYSTEMS[name](Path(path))
    with os.fdopen(told, "w") as stdout:
        print(json.dumps(asdict(result)), file=stdout)
