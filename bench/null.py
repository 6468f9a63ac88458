"""Measure the cost of a row without inference, with an engine that answers immediately.

Runs the stages of a unit one after another in one process and reports rows per second of CPU time;
then the same with Ray (`with_ray`).
"""

import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenmill.engine.base import EngineResources
from tokenmill.job.job import Job
from tokenmill.output.commit import commit
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import output_rows, output_schema
from tokenmill.run.planning import prepare
from tokenmill.scheduling.dedup.registry import InFlightRegistry
from tokenmill.scheduling.dedup.transport import LocalConnection
from tokenmill.scheduling.replica import Replica
from tokenmill.stages.block import from_block, to_block
from tokenmill.stages.load import collect_seldom, load_engine, load_tasks
from tokenmill.stages.render import Renderer
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import RowTasks

from bench import with_ray, workloads
from bench.measure import Figure, at_least

_ROW_BYTES = 1_000
_UNIT_ROWS = 2_000
_NULL = {"source": "fake", "engine": {"instant": True, "max_num_seqs": 256}}
# About 190 tokens with the chat template.
_CHARACTERS = 800


def plain_job(folder: Path, num_rows: int) -> Job:
    """Return a job over rows of 1 kB of letters; a token is three bytes, the prompt is the text."""
    letters = np.random.default_rng(1).integers(97, 123, (num_rows, _ROW_BYTES), np.uint8)
    texts = [bytes(row).decode() for row in letters]
    return _job(folder, texts, {"text": "{{ text }}"})


def chat_job(folder: Path, num_rows: int) -> Job:
    """Return a job over English texts of 190 tokens in a chat."""
    corpus = (text for _ in range(num_rows) for text in workloads.corpus())
    joined = " ".join(text for _, text in zip(range(num_rows), corpus, strict=False))
    pieces = [joined[at : at + _CHARACTERS] for at in range(0, len(joined), _CHARACTERS)]
    texts = [f"{row} {pieces[row % len(pieces)]}" for row in range(num_rows)]
    return _job(folder, texts, {"user": "Sum up:\n\n{{ text }}"})


def _job(folder: Path, texts: list[str], prompt: dict[str, str]) -> Job:
    corpus = folder / "corpus"
    corpus.mkdir()
    table = pa.table({"id": pa.array(range(len(texts))), "text": texts})
    pq.write_table(table, corpus / "rows.parquet", row_group_size=_UNIT_ROWS)
    return Job.model_validate(
        {
            "name": "null",
            "input": {"path": str(corpus), "keep": ["id", "text"]},
            "model": _NULL,
            "prompt": prompt,
            "sampling": {"max_tokens": 8, "temperature": 0},
            "output": {"path": str(folder / "out")},
            "units": {"rows": _UNIT_ROWS},
        }
    )


def cpu_by_stage(job: Job, tasks: RowTasks) -> dict[str, float]:
    """Return the CPU microseconds per row of each stage, including threads."""
    seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds[name] += time.process_time() - began

    store = open_store(job.output.path)
    with stage("plan"):
        prepared = prepare(job, store, has_gpus=False)
    opened, renderer = prepared.opened, Renderer(tasks, job.input.keep)
    replica = _replica(job, tasks)
    # The extra cost of having several replicas, except for the calls between processes.
    one_of_many = _replica(
        job, tasks, LocalConnection(InFlightRegistry(), threading.Condition(), "one")
    )
    schema = output_schema(job, opened.kept_schema)
    collect_seldom()
    for position, unit in enumerate(prepared.missing):
        with stage("read"):
            rows = opened.source.read(unit)
        with stage("render"):
            rendered = renderer.render(rows)
        with stage("transfer"):
            ((_, rendered),) = from_block(to_block(position, rendered))
        with stage("answer"):
            answered = replica.answer(rendered).rows
        with stage("answer, as one of several replicas"):
            one_of_many.answer(rendered)
        with stage("transfer"):
            ((_, answered),) = from_block(to_block(position, answered))
        with stage("commit"):
            record = UnitRecord(
                *("1", "run", "attempt", job.fingerprint, "fake", None, "fake", "1", unit.key),
                *(unit.version, answered.num_rows, 0, {}, 0, 0, 0.0),
            )
            commit(store, unit, output_rows(answered, unit.shard, schema), record)
    return {name: 1e6 * spent / opened.plan.num_rows for name, spent in seconds.items()}


def figures() -> Iterator[Figure]:
    """Run the part `null`: two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        job = plain_job(Path(folder), 40_000)
        plain = cpu_by_stage(job, load_tasks(job))
    yield from _figures("1 kB, no tokenizer", 8_000, plain)
    with tempfile.TemporaryDirectory() as folder:
        job = chat_job(Path(folder), 10_000)
        # The engine does nothing; templates and tokenizer are those of a real model.
        model = {"source": workloads.MODEL}
        real = Job.model_validate({**job.model_dump(exclude_unset=True), "model": model})
        chat = cpu_by_stage(job, load_tasks(real))
    yield from _figures("190 tokens, chat", 1_000, chat)
    yield from with_ray.figures(plain_job, _UNIT_ROWS, sum(plain.values()), sum(chat.values()))


def _replica(job: Job, tasks: RowTasks, registry: LocalConnection | None = None) -> Replica:
    share = EngineResources(0, 1)
    return Replica(lambda: load_engine(job, share), tasks, _ignore, _ignore, registry=registry)


def _figures(name: str, least: float, microseconds: dict[str, float]) -> Iterator[Figure]:
    # A row is answered once: leave out the second measurement.
    whole = sum(spent for stage, spent in microseconds.items() if "several" not in stage)
    yield at_least(least, name, 1e6 / whole, "rows/s per core")
    for part, spent in microseconds.items():
        yield Figure(f"  {part}", spent, "µs per row")


def _ignore(_: Any) -> None:
    """Ignore the call."""
