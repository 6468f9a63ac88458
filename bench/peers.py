"""Other ways to run a corpus through vLLM, as their documentation shows them.

Time is counted from the moment when the engine is ready.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.models.fetch import fetch_model
from tokenmill.reject import Reject

from bench.alone import GROUP_ROWS, Figures, figures_of, generate, load_llm, requests_in

# The module behind `vllm run-batch`, because vLLM's CPU build lacks the command itself.
_RUN_BATCH = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch"]
# The log line between the engine's being ready and the first request.
_ENGINE_IS_READY = "Reading batch from"


def ray_llm(job_file: Path) -> Figures:
    """Run `ray.data.llm` as documented, with the same engine settings as the other systems."""
    return _ray_llm(job_file, {})


def ray_llm_tuned(job_file: Path) -> Figures:
    """Run `ray.data.llm` with small batches, many at a time."""
    return _ray_llm(job_file, {"batch_size": GROUP_ROWS, "max_concurrent_batches": 64})


def _ray_llm(job_file: Path, options: dict[str, Any]) -> Figures:
    import ray  # noqa: PLC0415
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # noqa: PLC0415

    job = load_job(job_file, [])

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        # Compiled templates cannot be pickled.
        from bench.peers import job_of, messages, sampling  # noqa: PLC0415

        own = job_of(job_file)
        return {"messages": messages(own, row), "sampling_params": sampling(own, row)}

    def told(row: dict[str, Any]) -> dict[str, Any]:
        names = ("num_input_tokens", "num_generated_tokens", "time_taken_llm", "generated_text")
        return {"ended": time.time(), **{name: row[name] for name in names}}

    # Each stage reserves a core, and waits forever if there is none.
    ray.init(num_cpus=8 + (os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    if "GPU" not in ray.cluster_resources():
        # Otherwise it waits forever for a GPU.
        options = {**options, "placement_group_config": {"bundles": [{"CPU": 1}]}}
    config = vLLMEngineProcessorConfig(
        model_source=str(fetch_model(job.model)),
        engine_kwargs=dict(job.model.engine),
        log_engine_metrics=False,
        **options,
    )
    dataset = build_processor(config, preprocess=ask, postprocess=told)(
        ray.data.read_parquet(job.input.path)
    )
    rows = dataset.take_all()
    # The engine is ready by the time the first request is sent.
    began = min(row["ended"] - row["time_taken_llm"] for row in rows)
    return Figures(
        max(row["ended"] for row in rows) - began,
        len(rows),
        sum(row["num_input_tokens"] for row in rows),
        sum(row["num_generated_tokens"] for row in rows),
    )


@lru_cache(maxsize=1)
def job_of(job_file: Path) -> Job:
    """Load a job, once per process."""
    return load_job(job_file, [])


def messages(job: Job, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the chat of a row in the job's only task."""
    templates = job.steps[0].templates["prompt"]
    contents = templates.render(row)
    if isinstance(contents, Reject):
        raise SystemExit(contents.message)
    turns = zip(templates.roles, contents, strict=True)
    return [{"role": role, "content": content} for role, content in turns]


def sampling(job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the task's sampling parameters with the row's overrides."""
    own = {key: row[column] for key, column in (job.overrides or {}).items()}
    return {**job.steps[0].sampling.values, **own}


def by_hand(job_file: Path) -> Figures:
    """Run an actor with an `LLM` that processes groups of rows one after another."""
    import ray  # noqa: PLC0415

    job = load_job(job_file, [])

    class Answer:
        def __init__(self) -> None:
            self._engine = load_llm(job)
            self._ready = time.time()

        def __call__(self, batch: pa.Table) -> pa.Table:
            outputs = generate(self._engine, requests_in(job, batch))
            figures = figures_of(0, outputs)
            return pa.table(
                {
                    "ready": [self._ready],
                    "ended": [time.time()],
                    "rows": [len(outputs)],
                    "in": [figures.input_tokens],
                    "out": [figures.output_tokens],
                }
            )

    ray.init(include_dashboard=False, log_to_driver=False)
    dataset = ray.data.read_parquet(job.input.path).map_batches(
        Answer, batch_size=GROUP_ROWS, batch_format="pyarrow", concurrency=1, num_cpus=1
    )
    batches = dataset.take_all()
    return Figures(
        max(batch["ended"] for batch in batches) - batches[0]["ready"],
        sum(batch["rows"] for batch in batches),
        sum(batch["in"] for batch in batches),
        sum(batch["out"] for batch in batches),
    )


def run_batch(job_file: Path) -> Figures:
    """Run an OpenAI batch file through `vllm run-batch`, until the answers are written.

    Writing the batch file and parsing the answers are not counted.
    """
    job = load_job(job_file, [])
    model = str(fetch_model(job.model))
    asked, answered = job_file.with_suffix(".asked.jsonl"), job_file.with_suffix(".answered.jsonl")
    rows = ds.dataset(job.input.path).to_table().to_pylist()
    asked.write_text("".join(_batch_line(job, model, at, row) for at, row in enumerate(rows)))
    files = ["-i", str(asked), "-o", str(answered)]
    began = _run([*_RUN_BATCH, *files, "--model", model, *engine_options(job.model.engine)])
    bodies = [json.loads(line)["response"]["body"] for line in answered.read_text().splitlines()]
    return Figures(
        answered.stat().st_mtime - began,
        len(bodies),
        sum(body["usage"]["prompt_tokens"] for body in bodies),
        sum(body["usage"]["completion_tokens"] for body in bodies),
    )


def _batch_line(job: Job, model: str, position: int, row: Mapping[str, Any]) -> str:
    line = {
        "custom_id": str(position),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, "messages": messages(job, row), **sampling(job, row)},
    }
    return json.dumps(line) + "\n"


def _run(command: list[str]) -> float:
    """Run `vllm run-batch` to its end, and return the Unix time at which its engine was ready."""
    ready_at = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            sys.stderr.write(line)
            if ready_at is None and _ENGINE_IS_READY in line:
                ready_at = time.time()
    if process.returncode or ready_at is None:
        raise SystemExit(f"vllm run-batch failed with exit code {process.returncode}")
    return ready_at


def engine_options(engine: Mapping[str, Any]) -> list[str]:
    """Return the engine's arguments as options of vLLM's command line."""
    words = []
    for name, value in engine.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return words
