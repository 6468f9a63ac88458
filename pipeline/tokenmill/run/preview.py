"""Answer a few rows without Ray and without an output, to see what a run would write.

The rows go through the same stages as in a run, in this process and with its own engine.
"""

import math
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.formatting import plural
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.schema import counts_column, output_rows, output_schema
from tokenmill.plan.plan import Plan
from tokenmill.row_columns import SOURCE_FILE, SOURCE_ROW
from tokenmill.run.planning import plan_ahead
from tokenmill.stages.in_process import local_replica
from tokenmill.stages.load import load_context
from tokenmill.stages.prompt_texts import prompt_texts
from tokenmill.stages.render import Renderer
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.unit_tables import RenderedRows

# The search for rows must end even if hardly any row passes input.where.
_MAX_UNITS_READ = 50


@dataclass(frozen=True, slots=True)
class PreviewedRow:
    """A row of the input: where it is, what the job reads of it, and what a run would write.

    `prompts` are the first prompts of the row as text, by task. A task that reads another's answer
    has none here.
    """

    source_file: str
    source_row: int
    prompts: Mapping[str, str]
    read: Mapping[str, Any]
    written: Mapping[str, Any]


def preview(job: Job, count: int, seed: int) -> list[PreviewedRow]:
    """Answer `count` random rows of the whole input, or all rows if there are fewer.

    The seed determines which. Raises `UserError` for what a run would refuse, and if no row is
    found.
    """
    opened, _ = plan_ahead(job)
    job, source = opened.job, opened.source
    drawn = _draw(opened.plan, source, count, random.Random(seed))  # noqa: S311 - no secret
    context = load_context(job, source.store)
    tasks = RowTasks(job.steps, context, job.output.columns)
    shown = list(dict.fromkeys([*tasks.columns, *opened.kept_schema.names]))
    # What is read is shown from the input: an answer may have the name of a column that is read.
    renderer = Renderer(tasks, (), job.clean, counts_column(job))
    schema = output_schema(job, pa.schema([]))
    rendered = [renderer.render(rows) for _, rows in drawn]
    replica = local_replica(job, tasks)
    with ThreadPoolExecutor(len(rendered)) as pool:
        answered = list(pool.map(replica.answer, rendered))
    previewed: list[PreviewedRow] = []
    for (shard, rows), unit, answers in zip(drawn, rendered, answered, strict=True):
        entries = RenderedRows(unit)
        prompts = (
            prompt_texts(job.steps, context, entries.entries(row)) for row in range(len(entries))
        )
        written = _rows(output_rows(answers.rows, shard, schema))
        previewed += map(_previewed, prompts, _rows(rows.select(shown)), written)
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
        # This row is rejected; the others are shown.
        return "(text that is not UTF-8)"


def _previewed(
    prompts: Mapping[str, str], read: Mapping[str, Any], written: dict[str, Any]
) -> PreviewedRow:
    source_file, source_row = written.pop(SOURCE_FILE), written.pop(SOURCE_ROW)
    return PreviewedRow(source_file, source_row, prompts, read, written)


def _draw(
    plan: Plan, source: Source, count: int, draw: random.Random
) -> list[tuple[str, pa.Table]]:
    """Random rows with their shards, in random order, spread over as many units as possible."""
    units = draw.sample(plan.units, min(len(plan.units), _MAX_UNITS_READ))
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
            f"no row to show: in {plural(len(units), 'unit')} of {source.store.url} no row passes "
            "input.where"
        )
    return drawn
