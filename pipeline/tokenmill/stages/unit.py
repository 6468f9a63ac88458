"""What happens to one unit, stage by stage: read and render, answer, write.

The functions know nothing of Ray. Between the stages a unit is an Arrow table, and a stage's notes
for later ones travel in its metadata (`stages.notes`).
"""

import time
import uuid
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import __version__
from tokenmill.engine.base import EngineInfo
from tokenmill.errors import TokenmillError
from tokenmill.output.commit import (
    Commit,
    Repair,
    Stage,
    answered_counts,
    commit,
    commit_repair,
    committed_record,
)
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import counts_column, output_rows, output_schema
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.replica import AnsweredUnit
from tokenmill.stages.empty_answers import count_empty
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.notes import SKIPPED_UNIT, AnswerNotes, RenderNotes, StageTimes, is_skipped
from tokenmill.stages.render import Renderer
from tokenmill.storage.retry import persist
from tokenmill.tasks.row_tasks import RowTasks


def render_unit(spec: RunSpec, position: int, tasks: RowTasks) -> pa.Table:
    """Read the unit at `position` of the run and prepare its rows for the engine.

    `SKIPPED_UNIT` if another run has committed the unit.
    """
    if is_done_elsewhere(spec, position):
        return SKIPPED_UNIT
    renderer = Renderer(tasks, spec.kept_schema.names, spec.job.clean, counts_column(spec.job))
    unit = spec.units[position]
    began_at = time.time()
    rows = spec.source.read(unit)
    if spec.repair is not None:
        rejected = pa.array(spec.repair.rows[unit.key], pa.int64())
        rows = rows.filter(pc.is_in(rows.column(ROW_COLUMN), rejected))
    read_at = time.time()
    rendered = renderer.render(rows)
    times: StageTimes = {Stage.READ: (began_at, read_at), Stage.RENDER: (read_at, time.time())}
    return RenderNotes(times).attach(rendered)


def is_done_elsewhere(spec: RunSpec, position: int) -> bool:
    """Whether another run has committed the unit since this one was planned.

    One or two requests to the store, milliseconds for a unit that takes seconds. If the store does
    not answer, the unit counts as missing: its write will report the error.
    """
    if spec.repair is not None:
        return False
    try:
        spec.output.info(spec.units[position].key)
    except (FileNotFoundError, TokenmillError):
        return False
    return True


def with_notes(
    answered: AnsweredUnit, rendered: pa.Table, info: EngineInfo, replica: str
) -> pa.Table:
    """A unit's answered rows, with notes on how they were made for `commit_unit`."""
    now = time.time()
    engine_times: StageTimes = {Stage.ENGINE: (now - answered.seconds, now)}
    notes = AnswerNotes(
        stage_times={**RenderNotes.of(rendered).stage_times, **engine_times},
        engine=info,
        seconds=answered.seconds,
        num_reused=answered.num_reused,
        replica=replica,
    )
    return notes.attach(answered.rows)


def commit_unit(spec: RunSpec, position: int, answered: pa.Table) -> Commit:
    """Write or repair the unit's object, unless the unit was skipped.

    Raises as `commit` and `commit_repair` do.
    """
    unit = spec.units[position]
    if is_skipped(answered):
        record = committed_record(spec.output, unit, spec.job.fingerprint)
        return Commit(record, is_ours=False, was_skipped=True)
    notes = AnswerNotes.of(answered)
    began_at = time.time()
    written = _write_unit(spec, unit, answered, notes)
    times: StageTimes = {**notes.stage_times, Stage.WRITE: (began_at, time.time())}
    num_empty = count_empty(spec.job, answered)
    return replace(written, stage_times=times, num_empty=num_empty)


def _write_unit(spec: RunSpec, unit: Unit, answered: pa.Table, notes: AnswerNotes) -> Commit:
    schema = output_schema(spec.job, spec.kept_schema)
    rows = output_rows(answered, unit.shard, schema)
    if spec.repair is not None:
        repair = Repair(spec.run, uuid.uuid4().hex, spec.repair.changes)
        repaired = persist(lambda: commit_repair(spec.output, unit, rows, repair))
        return replace(repaired, repaired=answered_counts(rows))
    record = _record(spec, unit, answered, notes)
    return persist(lambda: commit(spec.output, unit, rows, record))


def _record(spec: RunSpec, unit: Unit, answered: pa.Table, notes: AnswerNotes) -> UnitRecord:
    counts = answered_counts(answered)
    return UnitRecord(
        version=__version__,
        run=spec.run,
        attempt=uuid.uuid4().hex,
        fingerprint=spec.job.fingerprint,
        model=spec.job.model.source,
        revision=spec.job.model.revision,
        engine=notes.engine.name,
        engine_version=notes.engine.version,
        unit=unit.key,
        shard_version=unit.version,
        num_rows=counts.rows,
        num_filtered=unit.num_rows - counts.rows,
        rejects=counts.rejects,
        input_tokens=counts.input_tokens,
        generated_tokens=counts.generated_tokens,
        seconds=round(notes.seconds, 3),
        num_reused=notes.num_reused,
        replica=notes.replica,
        written_at=round(time.time(), 3),
    )
