"""Rows of a plan that were drawn, rendered as a run renders them, and begun: what each asks first.

A row's dialogue is begun and dropped; no engine is there. Nothing is written.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

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
from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.output.output import Opened
from tokenmill.plan.plan import Unit
from tokenmill.reject import Reject
from tokenmill.request import Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.stages.load import load_context
from tokenmill.stages.render import Renderer
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.chunk import CHUNKS_NOTE
from tokenmill.tasks.length.truncate import TRUNCATED_NOTE
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import MEDIA_COLUMN, RenderedRows

# Reading is waiting for the store; more units at a time would be held in memory.
_THREADS = 8
_SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A row's prompts as text, as the model reads them, by the names of the tasks."""

    source_file: str
    source_row: int
    prompts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """What one row asks of the engine first."""

    input_tokens: int = 0
    most_output_tokens: int = 0
    reject: str | None = None
    is_truncated: bool = False
    is_divided: bool = False


@dataclass(frozen=True, slots=True)
class RowSample:
    """Drawn rows, unit by unit, and the rendered table of all of them."""

    units: Sequence[tuple[Unit, int, Sequence[SampledRow]]]
    population: Population
    rows: Sequence[SampledRow]
    prompts: tuple[ShownPrompt, ...]
    notes: tuple[str, ...]

    def drawn(self, number: Callable[[SampledRow], float]) -> list[DrawnUnit]:
        """One number a row, by units."""
        return [
            DrawnUnit(unit.num_rows, num_passing, [float(number(row)) for row in rows])
            for unit, num_passing, rows in self.units
        ]

    @property
    def passing(self) -> Interval:
        """The rows that pass the job's filter."""
        return estimate_passing(self.drawn(lambda _: 1), self.population)

    def sum(self, number: Callable[[SampledRow], float]) -> Interval:
        """A number's sum over all of them."""
        return estimate_sum(self.drawn(number), self.population)

    def count(self, mark: Callable[[SampledRow], bool]) -> Interval:
        """How many of them have a mark."""
        return estimate_count(self.drawn(mark), self.passing.estimate, self.population)


def take_sample(ahead: Opened, num_rows: int, seed: int) -> RowSample:
    """Draw rows, render them, and begin their dialogues."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    plan, job, source = ahead.plan, ahead.job, ahead.source
    if not plan.units:
        raise UserError(f"no row to count: {source.store.url} has none")
    units = draw_units(plan.units, num_rows, draw)
    seeds = [draw.random() for _ in units]
    tools = load_context(job, source.store)
    tasks = RowTasks(job.steps, tools)

    def read(unit: Unit, seed: float) -> tuple[int, pa.Table]:
        return _draw_rows(source, unit, rows_of(unit, units, num_rows), seed)

    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = list(pool.map(read, units, seeds))
    table = pa.concat_tables(rows for _, rows in drawn)
    if not table.num_rows:
        raise UserError(
            f"no row to count: {len(units):,} units of {source.store.url} have none that passes "
            "input.where"
        )
    table = Renderer(tasks, (), job.clean).render(table)
    rendered = RenderedRows(table)
    rows = [_begun(tasks, tools, rendered, at) for at in range(len(rendered))]
    each = iter(rows)
    places = _places(units, drawn)
    return RowSample(
        [
            (unit, num_passing, [next(each) for _ in range(part.num_rows)])
            for unit, (num_passing, part) in zip(units, drawn, strict=True)
        ],
        Population(len(plan.units), plan.num_rows),
        rows,
        tuple(_shown_prompts(job, tools, rendered, places, draw)),
        tuple(_notes(job, tasks, has_media=MEDIA_COLUMN in table.schema.names)),
    )


def _draw_rows(source: Source, unit: Unit, count: int, seed: float) -> tuple[int, pa.Table]:
    """How many of a unit's rows pass, and some of those, in order."""
    rows = source.read(unit)
    draw = random.Random(seed)  # noqa: S311 - no secret
    chosen = sorted(draw.sample(range(rows.num_rows), min(rows.num_rows, count)))
    return rows.num_rows, rows.take(pa.array(chosen, pa.int64()))


def _places(units: Sequence[Unit], drawn: Sequence[tuple[int, pa.Table]]) -> list[tuple[str, int]]:
    return [
        (unit.shard, row)
        for unit, (_, rows) in zip(units, drawn, strict=True)
        for row in rows.column(ROW_COLUMN).to_pylist()
    ]


def _begun(
    tasks: RowTasks, tools: TaskContext, rendered: RenderedRows, position: int
) -> SampledRow:
    """What the row's dialogue asks first; nothing is answered."""
    entries = rendered.entries(position)
    dialogue = tasks.answer(entries, rendered.late(position))
    requests: Sequence[Request] = ()
    reject = next((entry for entry in entries if isinstance(entry, Reject)), None)
    # Of a row whose every task has rejected it, nothing is asked.
    with closing(dialogue), suppress(StopIteration):
        requests = next(dialogue)
    notes = [entry.notes for entry in entries if isinstance(entry, PreparedRow)]
    return SampledRow(
        input_tokens=sum(len(request.prompt_token_ids) for request in requests),
        most_output_tokens=sum(_longest_answer(request, tools) for request in requests),
        reject=None if reject is None else str(reject.reject_class),
        is_truncated=any(TRUNCATED_NOTE in each for each in notes),
        is_divided=any(CHUNKS_NOTE in each for each in notes),
    )


def _longest_answer(request: Request, tools: TaskContext) -> int:
    limit = request.params.max_tokens
    if limit is not None:
        return limit
    own = tools if request.model is None else tools.auxiliary[request.model]
    return max(0, own.max_model_len - len(request.prompt_token_ids))


def _shown_prompts(
    job: Job,
    tools: TaskContext,
    rendered: RenderedRows,
    places: Sequence[tuple[str, int]],
    draw: random.Random,
) -> Iterator[ShownPrompt]:
    """Some rows' prompts; of a row with several for a task the first."""
    asking = [at for at in range(len(rendered)) if any(map(_has_prompt, rendered.entries(at)))]
    for at in sorted(draw.sample(asking, min(_SHOWN_ROWS, len(asking)))):
        yield ShownPrompt(*places[at], _texts(job.steps, tools, rendered.entries(at)))


def _has_prompt(entry: PreparedRow | Reject | None) -> bool:
    return isinstance(entry, PreparedRow) and len(entry.prompts) > 0


def _texts(
    steps: Sequence[TaskStep[Any]],
    tools: TaskContext,
    entries: Sequence[PreparedRow | Reject | None],
) -> dict[str, str]:
    texts = {}
    for step, entry in zip(steps, entries, strict=True):
        if isinstance(entry, PreparedRow) and _has_prompt(entry):
            place = step.model_key
            own = tools if place is None else tools.auxiliary[place]
            texts[step.section.name or step.kind.name] = own.tokenizer.decode(entry.prompts[0])
    return texts


def _notes(job: Job, tasks: RowTasks, *, has_media: bool) -> Iterator[str]:
    """What the figures leave out."""
    names = [step.section.name or step.kind.name for step in job.steps]
    waiting = [name for name, waits in zip(names, tasks.waiting, strict=True) if waits]
    if waiting:
        yield f"not counted: {', '.join(waiting)}, whose prompts hold an earlier task's answer"
    if any(step.section.retries or step.final for step in job.steps) or job.auxiliary_models:
        yield "not counted: retries, second prompts, and what models beside the job's own judge"
    if has_media:
        yield "not counted: the tokens that the model makes of an image or a recording"
