"""What happens to one unit, stage by stage: read and render, answer, commit.

The functions know nothing of Ray. Between the stages a unit is an Arrow table; what a stage notes
for the next one travels in the metadata of its schema.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill import __version__
from tokenmill.engine.base import EngineInfo
from tokenmill.output.commit import (
    Commit,
    Repair,
    Stage,
    column_sum,
    commit,
    commit_repair,
    count_rejects,
)
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import added_fields, output_rows, output_schema
from tokenmill.plan.plan import Unit
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.replica import AnsweredUnit
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.render import Renderer
from tokenmill.storage.retry import persist
from tokenmill.tasks.row_tasks import RowTasks

_FACTS_KEY = b"tokenmill"


def render_unit(spec: RunSpec, position: int, tasks: RowTasks) -> pa.Table:
    """Read the unit at `position` of the run and prepare its rows for the engine."""
    renderer = Renderer(tasks, spec.job.input.keep, spec.job.clean)
    unit = spec.units[position]
    began_at = time.time()
    rows = spec.source.read(unit)
    if spec.repair is not None:
        wanted = pa.array(spec.repair.rows[unit.key], pa.int64())
        rows = rows.filter(pc.is_in(rows.column(ROW_COLUMN), wanted))
    read_at = time.time()
    rendered = renderer.render(rows)
    times = {Stage.READ: (began_at, read_at), Stage.RENDER: (read_at, time.time())}
    return rendered.replace_schema_metadata({_FACTS_KEY: json.dumps(times)})


def with_facts(
    answered: AnsweredUnit, rendered: pa.Table, info: EngineInfo, replica: str
) -> pa.Table:
    """A unit's answered rows; in their metadata, for the commit, how they were made."""
    now = time.time()
    facts = {
        "stage_times": {**_facts(rendered), Stage.ENGINE: (now - answered.seconds, now)},
        "engine": asdict(info),
        "seconds": answered.seconds,
        "num_reused": answered.num_reused,
        "replica": replica,
    }
    return answered.rows.replace_schema_metadata({_FACTS_KEY: json.dumps(facts)})


def _facts(rows: pa.Table) -> dict[str, Any]:
    """What the stage before noted of a unit."""
    facts: dict[str, Any] = json.loads((rows.schema.metadata or {})[_FACTS_KEY])
    return facts


def commit_unit(spec: RunSpec, position: int, answered: pa.Table) -> Commit:
    """Write or repair the unit's object. Raises as `commit` and `commit_repair` do."""
    unit = spec.units[position]
    facts = _facts(answered)
    began_at = time.time()
    made = _write_unit(spec, unit, answered, facts)
    return replace(made, stage_times={**facts["stage_times"], Stage.WRITE: (began_at, time.time())})


def _write_unit(spec: RunSpec, unit: Unit, answered: pa.Table, facts: Mapping[str, Any]) -> Commit:
    schema = output_schema(spec.kept_schema, added_fields(spec.job))
    rows = output_rows(answered, unit.shard, schema)
    if spec.repair is not None:
        repair = Repair(spec.run, uuid.uuid4().hex, spec.repair.changes)
        return persist(lambda: commit_repair(spec.output, unit, rows, repair))
    record = _record(spec, unit, answered, facts)
    return persist(lambda: commit(spec.output, unit, rows, record))


def _record(spec: RunSpec, unit: Unit, answered: pa.Table, facts: Mapping[str, Any]) -> UnitRecord:
    engine = EngineInfo(**facts["engine"])
    return UnitRecord(
        version=__version__,
        run=spec.run,
        attempt=uuid.uuid4().hex,
        fingerprint=spec.job.fingerprint,
        model=spec.job.model.source,
        revision=spec.job.model.revision,
        engine=engine.name,
        engine_version=engine.version,
        unit=unit.key,
        shard_version=unit.version,
        num_rows=answered.num_rows,
        num_filtered=unit.num_rows - answered.num_rows,
        rejects=count_rejects(answered),
        input_tokens=column_sum(answered, "num_input_tokens"),
        generated_tokens=column_sum(answered, "num_generated_tokens"),
        seconds=round(facts["seconds"], 3),
        num_reused=facts["num_reused"],
        replica=facts["replica"],
        written_at=round(time.time(), 3),
    )
