"""Baselines in a single process: vLLM alone, and one tokenmill replica without Ray.

Time is counted from the moment when the engine is ready.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from tokenmill.engine.base import EngineResources
from tokenmill.engine.vllm_params import vllm_params
from tokenmill.hardware import has_local_gpus
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.models.fetch import fetch_model
from tokenmill.reject import Reject
from tokenmill.request import Request, Sampling
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.replica import Replica
from tokenmill.stages.load import load_context, load_engine, load_tasks
from tokenmill.stages.render import Renderer
from tokenmill.tasks.labels.choices import labels_of
from tokenmill.tasks.labels.classify import Classify, label_tokens, softmax
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.unit_tables import RenderedRows

#: Rows per call if a corpus is processed in groups.
GROUP_ROWS = 16
#: Suffix of the file next to a job's output in which `prompt_logprobs` writes the label scores.
SCORES = ".scores.json"


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of a system on a job.

    `reused` counts requests that were not sent because their answer was known, `cached_tokens`
    prompt tokens found in the engine's cache, and `preemptions` requests that the engine removed
    from its batch.
    """

    seconds: float
    rows: int
    input_tokens: int
    output_tokens: int
    reused: int = 0
    cached_tokens: int = 0
    preemptions: int = 0


def llm(job_file: Path) -> Figures:
    """Run all prompts in one call of `LLM.generate`."""
    job = load_job(job_file, [])
    requests = requests_of(job)
    engine = load_llm(job)
    began = time.monotonic()
    outputs = generate(engine, requests)
    return figures_of(time.monotonic() - began, outputs)


def llm_in_groups(job_file: Path) -> Figures:
    """Run sixteen prompts per call of `LLM.generate`."""
    job = load_job(job_file, [])
    requests = requests_of(job)
    engine = load_llm(job)
    began = time.monotonic()
    outputs = [
        output
        for start in range(0, len(requests), GROUP_ROWS)
        for output in generate(engine, requests[start : start + GROUP_ROWS])
    ]
    return figures_of(time.monotonic() - began, outputs)


def prompt_logprobs(job_file: Path) -> Figures:
    """Score each label as the end of each prompt, in one call with `prompt_logprobs`."""
    job = load_job(job_file, [])
    (step,) = job.steps
    if not isinstance(step.section, Classify) or step.section.choices is None:
        raise SystemExit("the job has no labels")
    labels, prompter = labels_of(step.section.choices), step.encoder(load_context(job))
    sequences = label_tokens(labels, prompter, step.prompt.text, "")
    prompts = prompter.encode(ds.dataset(job.input.path).to_table().to_pylist())
    # The least that can be requested: no text, and no log-probabilities of other tokens.
    sampling = Sampling(
        {"temperature": 0, "max_tokens": 1, "detokenize": False, "prompt_logprobs": 0}
    )
    requests = [
        Request([*prompt, *label], sampling)
        for prompt in prompts
        if not isinstance(prompt, Reject)
        for label in sequences
    ]
    engine = load_llm(job)
    began = time.monotonic()
    outputs = generate(engine, requests)
    logprobs = [
        _logprob_of_end(output.prompt_logprobs, len(label))
        for output, label in zip(outputs, sequences * len(prompts), strict=True)
    ]
    scores = [
        dict(zip(labels, softmax(logprobs[row : row + len(labels)]), strict=True))
        for row in range(0, len(logprobs), len(labels))
    ]
    figures = figures_of(time.monotonic() - began, outputs)
    Path(job.output.path + SCORES).write_text(json.dumps(scores))
    return replace(figures, rows=len(prompts))


def _logprob_of_end(logprobs: Any, num_tokens: int) -> float:
    """Sum the log-probabilities of the last tokens; a position lists the prompt's token first."""
    return math.fsum(logprobs.logprobs[start] for start in logprobs.start_indices[-num_tokens:])


def replica(job_file: Path) -> Figures:
    """Run one replica in this process, where vLLM's counters can be read."""
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot  # noqa: PLC0415

    job = load_job(job_file, ["model.engine.disable_log_stats=false"])
    tasks = load_tasks(job)
    rendered = _rendered(tasks, ds.dataset(job.input.path).to_table())
    share = EngineResources(int(has_local_gpus()), os.cpu_count() or 1)
    answering = Replica(lambda: load_engine(job, share), tasks, _ignore, _ignore)
    began = time.monotonic()
    answered = answering.answer(rendered)
    seconds = time.monotonic() - began
    counted = {
        metric.name: metric.value
        for metric in get_metrics_snapshot()
        if isinstance(metric, Counter)
    }
    return Figures(
        seconds,
        answered.rows.num_rows,
        counted["vllm:prompt_tokens"],
        counted["vllm:generation_tokens"],
        answered.num_reused,
        counted["vllm:prefix_cache_hits"],
        counted["vllm:num_preemptions"],
    )


def _ignore(_: Any) -> None:
    """Ignore the call."""


def requests_of(job: Job) -> list[Request]:
    """Return the requests of the first round of all rows of the job."""
    return requests_in(job, ds.dataset(job.input.path).to_table())


def requests_in(job: Job, rows: pa.Table) -> list[Request]:
    """Return the requests of the first round of these rows."""
    tasks = load_tasks(job)
    rendered = RenderedRows(_rendered(tasks, rows))
    dialogues = (
        tasks.answer(rendered.entries(row), rendered.late(row)) for row in range(len(rendered))
    )
    return [request for dialogue in dialogues for request in next(dialogue)]


def _rendered(tasks: RowTasks, rows: pa.Table) -> pa.Table:
    numbered = rows.append_column(ROW_COLUMN, pa.array(range(len(rows)), pa.int64()))
    return Renderer(tasks, []).render(numbered)


def load_llm(job: Job) -> Any:
    """Load the engine as in vLLM's documentation."""
    from vllm import LLM  # noqa: PLC0415 - takes ten seconds

    return LLM(model=str(fetch_model(job.model)), disable_log_stats=True, **job.model.engine)


def generate(engine: Any, requests: Sequence[Request]) -> list[Any]:
    """Call `LLM.generate` once."""
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    params = [vllm_params(request.params) for request in requests]
    outputs: list[Any] = engine.generate(prompts, params, use_tqdm=False)
    return outputs


def figures_of(seconds: float, outputs: Sequence[Any]) -> Figures:
    """Return the figures of a call from its duration and outputs."""
    return Figures(
        seconds,
        len(outputs),
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(output.outputs[0].token_ids) for output in outputs),
    )
