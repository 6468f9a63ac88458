"""A run step by step: planned, rendered, answered by the fake engine, committed, verified."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from tokenmill.engine.fake import FakeEngine, fake_settings
from tokenmill.job.job import Job
from tokenmill.output.commit import commit, count_rejects
from tokenmill.output.output import OpenedOutput
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import counts_column, output_rows, output_schema
from tokenmill.output.verify import Level, expected_output, verify
from tokenmill.plan.keys import UNIT_KEY
from tokenmill.plan.plan import Unit
from tokenmill.run.checks import check_job
from tokenmill.run.planning import PreparedRun, prepare
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.stages.load import load_tasks
from tokenmill.stages.render import Renderer
from tokenmill.storage.open import open_store
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.unit_tables import answered_table


def planned(job: Job) -> PreparedRun:
    """The run after all that happens before Ray or an engine starts."""
    check_job(job)
    return prepare(job, open_store(job.output.path), has_gpus=False)


def run_unit(opened: OpenedOutput, tasks: RowTasks, unit: Unit) -> None:
    """Read, render, answer and commit one unit."""
    job = opened.job
    kept = opened.kept_schema
    renderer = Renderer(tasks, kept.names, job.clean, counts_column(job))
    rendered = renderer.render(opened.source.read(unit))
    scheduler = Scheduler(FakeEngine(fake_settings(job.model.engine)), tasks)
    flight = scheduler.submit(rendered)
    while scheduler.has_work:
        scheduler.step()
    answers = [answer for answer in flight.answers if answer is not None]
    schema = output_schema(job, kept)
    rows = output_rows(answered_table(rendered, answers, tasks.fields), unit.shard, schema)
    facts: dict[str, Any] = dict.fromkeys(UnitRecord.__dataclass_fields__, "")
    facts |= {"unit": unit.key, "fingerprint": job.fingerprint, "shard_version": unit.version}
    facts |= {"num_rows": rows.num_rows, "num_filtered": unit.num_rows - rows.num_rows}
    facts |= {"rejects": count_rejects(rows), "input_tokens": 0, "generated_tokens": 0}
    facts |= {"seconds": 0.0, "revision": None, "repairs": ()}
    commit(opened.store, unit, rows, UnitRecord(**facts))


def run(job: Job, prepared: PreparedRun) -> pa.Table:
    """Run all units and verify the output; returns its rows in the order of the input."""
    tasks = load_tasks(job)
    for unit in prepared.missing:
        run_unit(prepared.opened, tasks, unit)
    proof = verify(prepared.opened.store, expected_output(prepared.opened), Level.INPUT)
    assert proof.is_whole, proof.findings
    assert all(UNIT_KEY.fullmatch(key) for key in proof.units)
    schema = output_schema(job, prepared.opened.kept_schema)
    if not prepared.missing:
        return schema.empty_table()
    return ds.dataset(Path(job.output.path) / "data", format="parquet").to_table()
