"""A random sample of a plan's rows, rendered as in a run, with each row's first requests.

A row's dialogue is started and dropped: there is no engine. Nothing is written.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.estimate.statistics import (
    DrawnUnit,
    Interval,
    Population,
    draw_units,
    estimate_count,
    estimate_passing,
    estimate_sum,
    rows_of,
)
from tokenmill.formatting import plural
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.output import OpenedOutput
from tokenmill.plan.plan import Unit
from tokenmill.reject import Reject
from tokenmill.request import Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.stages.load import load_context
from tokenmill.stages.prompt_texts import has_prompt, prompt_texts
from tokenmill.stages.render import Renderer
from tokenmill.tasks.length.chunk import CHUNKS_NOTE
from tokenmill.tasks.length.truncate import TRUNCATED_NOTE
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import MEDIA_COLUMN, RenderedRows

# Reading is mostly waiting for the store, but units that are read are held in memory.
_THREADS = 8
_NUM_SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A row's prompts as text, as the model reads them, by task."""

    source_file: str
    source_row: int
    prompts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row's first requests: their input tokens and the most output tokens they allow."""

    input_tokens: int = 0
    max_output_tokens: int = 0
    reject: str | None = None
    is_truncated: bool = False
    is_divided: bool = False


@dataclass(frozen=True, slots=True)
class RowSample:
    """The drawn rows.

    `units` holds each drawn unit, the number of its rows that pass the filter, and its drawn rows;
    `rows` all drawn rows.
    """

    units: Sequence[tuple[Unit, int, Sequence[SampledRow]]]
    population: Population
    rows: Sequence[SampledRow]
    prompts: tuple[ShownPrompt, ...]
    not_counted: tuple[str, ...]

    def drawn(self, number: Callable[[SampledRow], float]) -> list[DrawnUnit]:
        """The drawn units, with one number per drawn row."""
        return [
            DrawnUnit(unit.num_rows, num_passing, [float(number(row)) for row in rows])
            for unit, num_passing, rows in self.units
        ]

    @property
    def passing(self) -> Interval:
        """The estimated number of rows that pass the job's filter."""
        return estimate_passing(self.drawn(lambda _: 1), self.population)

    def sum(self, number: Callable[[SampledRow], float]) -> Interval:
        """The estimated sum of a number over all rows that pass."""
        return estimate_sum(self.drawn(number), self.population)

    def count(self, has_property: Callable[[SampledRow], bool]) -> Interval:
        """The estimated number of rows that pass and have a property."""
        return estimate_count(self.drawn(has_property), self.passing.estimate, self.population)


def take_sample(opened: OpenedOutput, num_rows: int, seed: int) -> RowSample:
    """Draw rows, render them and start their dialogues. Raises `UserError` if there are no rows."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    plan, job, source = opened.plan, opened.job, opened.source
    if not plan.units:
        raise UserError(f"nothing to estimate: {source.store.url} has no rows")
    units = draw_units(plan.units, num_rows, draw)
    seeds = [draw.random() for _ in units]
    context = load_context(job, source.store)
    tasks = RowTasks(job.steps, context)

    def read(unit: Unit, seed: float) -> tuple[int, pa.Table]:
        return _draw_rows(source, unit, rows_of(unit, units, num_rows), seed)

    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = list(pool.map(read, units, seeds))
    table = pa.concat_tables(rows for _, rows in drawn)
    if not table.num_rows:
        raise UserError(
            f"nothing to estimate: no row in {plural(len(units), 'unit')} of {source.store.url} "
            "passes input.where"
        )
    table = Renderer(tasks, (), job.clean).render(table)
    rendered = RenderedRows(table)
    rows = [_sampled_row(tasks, context, rendered, row) for row in range(len(rendered))]
    rows_left = iter(rows)
    return RowSample(
        [
            (unit, num_passing, [next(rows_left) for _ in range(part.num_rows)])
            for unit, (num_passing, part) in zip(units, drawn, strict=True)
        ],
        Population(len(plan.units), plan.num_rows),
        rows,
        tuple(_shown_prompts(job, context, rendered, _sources(units, drawn), draw)),
        tuple(_not_counted(job, tasks, has_media=MEDIA_COLUMN in table.schema.names)),
    )


def _draw_rows(source: Source, unit: Unit, count: int, seed: float) -> tuple[int, pa.Table]:
    """The number of a unit's rows that pass the filter, and a random sample of them, in order."""
    rows = source.read(unit)
    draw = random.Random(seed)  # noqa: S311 - no secret
    chosen = sorted(draw.sample(range(rows.num_rows), min(rows.num_rows, count)))
    return rows.num_rows, rows.take(pa.array(chosen, pa.int64()))


def _sources(units: Sequence[Unit], drawn: Sequence[tuple[int, pa.Table]]) -> list[tuple[str, int]]:
    """The shard and the position of each drawn row."""
    return [
        (unit.shard, row)
        for unit, (_, rows) in zip(units, drawn, strict=True)
        for row in rows.column(ROW_COLUMN).to_pylist()
    ]


def _sampled_row(
    tasks: RowTasks, context: TaskContext, rendered: RenderedRows, position: int
) -> SampledRow:
    entries = rendered.entries(position)
    dialogue = tasks.answer(entries, rendered.late(position))
    requests: Sequence[Request] = ()
    reject = next((entry for entry in entries if isinstance(entry, Reject)), None)
    # The dialogue ends at once if every task has rejected the row.
    with closing(dialogue), suppress(StopIteration):
        requests = next(dialogue)
    notes = [entry.notes for entry in entries if isinstance(entry, PreparedRow)]
    return SampledRow(
        input_tokens=sum(len(request.prompt_token_ids) for request in requests),
        max_output_tokens=sum(_max_output_tokens(request, context) for request in requests),
        reject=None if reject is None else str(reject.reject_class),
        is_truncated=any(TRUNCATED_NOTE in names for names in notes),
        is_divided=any(CHUNKS_NOTE in names for names in notes),
    )


def _max_output_tokens(request: Request, context: TaskContext) -> int:
    """The request's `max_tokens`, or what the model's context leaves."""
    limit = request.params.max_tokens
    if limit is not None:
        return limit
    model = context if request.model is None else context.auxiliary[request.model]
    return max(0, model.max_model_len - len(request.prompt_token_ids))


def _shown_prompts(
    job: Job,
    context: TaskContext,
    rendered: RenderedRows,
    sources: Sequence[tuple[str, int]],
    draw: random.Random,
) -> Iterator[ShownPrompt]:
    """The prompts of a few random rows; if a task has several for a row, the first."""
    rows = [row for row in range(len(rendered)) if any(map(has_prompt, rendered.entries(row)))]
    for row in sorted(draw.sample(rows, min(_NUM_SHOWN_ROWS, len(rows)))):
        yield ShownPrompt(*sources[row], prompt_texts(job.steps, context, rendered.entries(row)))


def _not_counted(job: Job, tasks: RowTasks, *, has_media: bool) -> Iterator[str]:
    """What is not counted on a sample."""
    names = [step.name for step in job.steps]
    waiting = [name for name, waits in zip(names, tasks.waiting, strict=True) if waits]
    if waiting:
        yield f"{', '.join(waiting)}, whose prompts contain another task's answer"
    if any(step.section.retries or step.final for step in job.steps) or job.auxiliary_models:
        yield "retries, second prompts, and requests to additional models"
    if has_media:
        yield "the tokens that the model makes of an image or a recording"
