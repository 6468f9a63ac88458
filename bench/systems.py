"""The systems that are compared: each runs one job in a process of its own and prints its figures.

    python -m bench.systems SYSTEM JOB.yaml

SYSTEM is `tokenmill`; `llm`: one call of `vllm.LLM.generate` with all prompts, which is the limit;
`by_hand`: Ray Data's `map_batches` around that call, sixteen rows each, as people write it first;
`ray_llm`: `ray.data.llm` with its defaults, and `ray_llm_tuned`: with batches of 16 rows, 64 of
them at a time. Seconds count from the moment that the engine is ready.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.engine import vllm_params
from pipeline.job import Job
from pipeline.job_file import load_job
from pipeline.models import fetch
from pipeline.render import Renderer
from pipeline.rendered import RenderedRows
from pipeline.schema import Request
from pipeline.source import ROW_COLUMN
from pipeline.tools import load_tasks

_GROUP_ROWS = 16


@dataclass(frozen=True, slots=True)
class Figures:
    """What a system did with a job; `reused` counts requests that it did not send."""

    seconds: float
    rows: int
    input_tokens: int
    output_tokens: int
    reused: int = 0


def tokenmill(job_file: Path) -> Figures:
    """`tokenmill run`, in this process, as the command line does it."""
    from pipeline.commands.terminal import Terminal  # noqa: PLC0415
    from pipeline.run import run_job  # noqa: PLC0415

    summary = run_job(load_job(job_file, []), None, Terminal())
    if summary is None:
        raise SystemExit("the output is there already")
    return Figures(
        summary.engine_seconds,
        summary.rows,
        summary.input_tokens,
        summary.generated_tokens,
        summary.reused,
    )


def llm(job_file: Path) -> Figures:
    """All prompts in one call."""
    job = load_job(job_file, [])
    requests = _requests(job)
    engine = _llm(job)
    began = time.monotonic()
    outputs = _generate(engine, requests)
    return _figures(time.monotonic() - began, outputs)


def llm_in_groups(job_file: Path) -> Figures:
    """The same, sixteen prompts a call."""
    job = load_job(job_file, [])
    requests = _requests(job)
    engine = _llm(job)
    began = time.monotonic()
    outputs = [
        output
        for start in range(0, len(requests), _GROUP_ROWS)
        for output in _generate(engine, requests[start : start + _GROUP_ROWS])
    ]
    return _figures(time.monotonic() - began, outputs)


def ray_llm(job_file: Path) -> Figures:
    """Its documented set-up, the engine's settings as everywhere."""
    return _ray_llm(job_file, {})


def ray_llm_tuned(job_file: Path) -> Figures:
    """Small batches, many at a time."""
    return _ray_llm(job_file, {"batch_size": _GROUP_ROWS, "max_concurrent_batches": 64})


def _ray_llm(job_file: Path, options: dict[str, Any]) -> Figures:
    import ray  # noqa: PLC0415
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # noqa: PLC0415

    job = load_job(job_file, [])
    (step,) = job.steps
    sampling = dict(step.own_sampling.values)

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        # Compiled templates do not travel between processes.
        from bench.systems import templates_of  # noqa: PLC0415

        templates = templates_of(job_file)
        contents = templates.render(row)
        turns = zip(templates.roles, contents, strict=True)
        messages = [{"role": role, "content": content} for role, content in turns]
        own = {key: row[column] for key, column in (job.overrides or {}).items()}
        return {"messages": messages, "sampling_params": {**sampling, **own}}

    def told(row: dict[str, Any]) -> dict[str, Any]:
        names = ("num_input_tokens", "num_generated_tokens", "time_taken_llm", "generated_text")
        return {"ended": time.time(), **{name: row[name] for name in names}}

    # Each of its stages takes a core for itself, and waits for one without end.
    ray.init(num_cpus=8 + (os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    config = vLLMEngineProcessorConfig(
        model_source=str(fetch(job.model)),
        engine_kwargs=dict(job.model.engine),
        log_engine_metrics=False,
        **options,
    )
    dataset = build_processor(config, preprocess=ask, postprocess=told)(
        ray.data.read_parquet(job.input.path)
    )
    rows = dataset.take_all()
    # The engine is ready when the first request is sent.
    began = min(row["ended"] - row["time_taken_llm"] for row in rows)
    return Figures(
        max(row["ended"] for row in rows) - began,
        len(rows),
        sum(row["num_input_tokens"] for row in rows),
        sum(row["num_generated_tokens"] for row in rows),
    )


@lru_cache(maxsize=1)
def templates_of(job_file: Path) -> Any:
    """The prompts of a job's only task, compiled once in a process."""
    (step,) = load_job(job_file, []).steps
    return step.compiled


def by_hand(job_file: Path) -> Figures:
    """An actor with an `LLM`, groups of rows through it one after another."""
    import ray  # noqa: PLC0415

    job = load_job(job_file, [])

    class Answer:
        def __init__(self) -> None:
            self._engine = _llm(job)
            self._ready = time.time()

        def __call__(self, batch: pa.Table) -> pa.Table:
            outputs = _generate(self._engine, _requests_of(job, batch))
            figures = _figures(0, outputs)
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
        Answer, batch_size=_GROUP_ROWS, batch_format="pyarrow", concurrency=1, num_cpus=1
    )
    batches = dataset.take_all()
    return Figures(
        max(batch["ended"] for batch in batches) - batches[0]["ready"],
        sum(batch["rows"] for batch in batches),
        sum(batch["in"] for batch in batches),
        sum(batch["out"] for batch in batches),
    )


def _requests(job: Job) -> list[Request]:
    """What the job's rows ask in their first round."""
    return _requests_of(job, ds.dataset(job.input.path).to_table())


def _requests_of(job: Job, rows: pa.Table) -> list[Request]:
    tasks = load_tasks(job)
    numbered = rows.append_column(ROW_COLUMN, pa.array(range(len(rows)), pa.int64()))
    rendered = RenderedRows(Renderer(tasks, []).render(numbered))
    dialogues = (
        tasks.answer(rendered.entries(row), rendered.late(row)) for row in range(len(rendered))
    )
    return [request for dialogue in dialogues for request in next(dialogue)]


def _llm(job: Job) -> Any:
    from vllm import LLM  # noqa: PLC0415 - takes ten seconds

    return LLM(model=str(fetch(job.model)), disable_log_stats=True, **job.model.engine)


def _generate(engine: Any, requests: Sequence[Request]) -> list[Any]:
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    params = [vllm_params(request.params) for request in requests]
    outputs: list[Any] = engine.generate(prompts, params, use_tqdm=False)
    return outputs


def _figures(seconds: float, outputs: Sequence[Any]) -> Figures:
    return Figures(
        seconds,
        len(outputs),
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(output.outputs[0].token_ids) for output in outputs),
    )


SYSTEMS: dict[str, Callable[[Path], Figures]] = {
    system.__name__: system
    for system in (tokenmill, llm, llm_in_groups, by_hand, ray_llm, ray_llm_tuned)
}

if __name__ == "__main__":
    name, path = sys.argv[1:]
    result = SYSTEMS[name](Path(path))
    print(json.dumps(asdict(result)))
