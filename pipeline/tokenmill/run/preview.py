"""Real answers for a few rows, without Ray and without an output: a look before a run.

The rows go through the same stages as in a run, in this process and with an engine of its own.
"""

import math
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.schema import added_fields, output_rows, output_schema
from tokenmill.plan.plan import Plan
from tokenmill.run.planning import plan_ahead
from tokenmill.stages.in_process import local_replica
from tokenmill.stages.load import load_tasks
from tokenmill.stages.render import Renderer

# With a condition that hardly any row meets, the search for some must end.
_MOST_UNITS_READ = 50


@dataclass(frozen=True, slots=True)
class PreviewedRow:
    """A row's place in the input, what the job reads of it, and what it would write."""

    source_file: str
    source_row: int
    read: Mapping[str, Any]
    written: Mapping[str, Any]


def preview(job: Job, count: int, seed: int) -> list[PreviewedRow]:
    """Answer so many rows, drawn by the seed from all over the input; fewer if there are fewer.

    Raises `UserError` for what a run would refuse, and where no row is found.
    """
    ahead = plan_ahead(job)
    job, source = ahead.job, ahead.source
    drawn = _draw(ahead.plan, source, count, random.Random(seed))  # noqa: S311 - no secret
    tasks = load_tasks(job, source.store)
    shown = list(dict.fromkeys([*tasks.columns, *job.input.keep]))
    renderer = Renderer(tasks, shown, job.clean)
    rendered = [renderer.render(rows) for _, rows in drawn]
    replica = local_replica(job, tasks)
    with ThreadPoolExecutor(len(rendered)) as pool:
        answered = list(pool.map(replica.answer, rendered))
    previewed: list[PreviewedRow] = []
    for (shard, _), rows, unit in zip(drawn, rendered, answered, strict=True):
        schema = output_schema(rows.select(shown).schema, added_fields(job))
        table = output_rows(unit.rows, shard, schema)
        previewed += map(partial(_previewed, shown), _rows(table))
    return previewed


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return [
        {name: _value(table.column(name)[row]) for name in table.column_names}
        for row in range(table.num_rows)
    ]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        # The row is a reject; the others are shown all the same.
        return "(text that is not UTF-8)"


def _previewed(shown: Sequence[str], row: dict[str, Any]) -> PreviewedRow:
    place = row.pop("source_file"), row.pop("source_row")
    read = {name: row.pop(name) for name in shown}
    return PreviewedRow(*place, read, row)


def _draw(
    plan: Plan, source: Source, count: int, draw: random.Random
) -> list[tuple[str, pa.Table]]:
    """Rows by shard, in a random order; as few of each unit as there are units for."""
    units = draw.sample(plan.units, min(len(plan.units), _MOST_UNITS_READ))
    per_unit = math.ceil(count / max(1, len(units)))
    drawn: list[tuple[str, pa.Table]] = []
    for unit in units:
        if count <= 0:
            break
        rows = source.read(unit)
        chosen = draw.sample(range(rows.num_rows), min(rows.num_rows, per_unit, count))
        if chosen:
            drawn.append((unit.shard, rows.take(pa.array(sorted(chosen), pa.int64()))))
            count -= len(chosen)
    if not drawn:
        raise UserError(
            f"no row to show: {len(units):,} units of {source.store.url} have none that passes "
            "input.where"
        )
    return drawn
