"""Answers of a real engine without Ray, in a process of its own.

`main` reads {"jobs": [...], "rows": [...]} and prints, in its last line, the answered rows of each
job and the engine's usage. All jobs share one engine, that of the first.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from tokenmill.engine.base import Engine, EngineResources, EngineUsage
from tokenmill.job.job import Job
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.stages.load import load_engine, load_tasks
from tokenmill.stages.render import Renderer
from tokenmill.tasks.unit_tables import answered_table

from helpers.fork_server import printed


def answered(
    jobs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, Any]]]:
    """The answered rows of each job, maps as dicts."""
    answers, _ = answered_with_usage(jobs, rows)
    return answers


def answered_with_usage(
    jobs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[list[dict[str, Any]]], EngineUsage]:
    """The answered rows of each job, and the engine's usage at the end."""
    script = "from helpers.answering import main; main()"
    answers, usage = printed(script, {"jobs": jobs, "rows": rows})
    return answers, EngineUsage(**usage)


def answer(engine: Engine, job: Job, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answered rows of one job."""
    tasks = load_tasks(job)
    positions = pa.array(range(len(rows)), pa.int64())
    input_rows = pa.Table.from_pylist([dict(row) for row in rows])
    rendered = Renderer(tasks, []).render(input_rows.append_column(ROW_COLUMN, positions))
    scheduler = Scheduler(engine, tasks)
    unit = scheduler.submit(rendered)
    while scheduler.has_work:
        scheduler.step()
    answers = [answer for answer in unit.answers if answer is not None]
    table = answered_table(rendered, answers, tasks.fields)
    return table.to_pylist(maps_as_pydicts="strict")


def main() -> None:
    """Read jobs and rows from standard input and answer them."""
    data = json.load(sys.stdin)
    jobs = [Job.model_validate(job) for job in data["jobs"]]
    engine = load_engine(jobs[0], EngineResources(0, len(os.sched_getaffinity(0))))
    answers = [answer(engine, job, data["rows"]) for job in jobs]
    print(json.dumps([answers, asdict(engine.usage)]))


if __name__ == "__main__":
    main()
