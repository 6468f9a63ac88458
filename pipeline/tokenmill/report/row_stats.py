"""Statistics of an output's rows, collected batch by batch: lengths, labels, scores, samples.

Memory is bounded by the sizes of histograms and samples, not by the number of rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.output.output import OpenedOutput, batches
from tokenmill.output.rejects import describe_reject
from tokenmill.output.schema import added_fields, task_names
from tokenmill.plan.plan import Unit
from tokenmill.report.cells import is_textual, is_unreadable, shorten, shown_cells, value_counts
from tokenmill.report.streaming_stats import Histogram, Reservoir, ValueCounts
from tokenmill.row_columns import (
    ERROR,
    NUM_GENERATED_TOKENS,
    NUM_INPUT_TOKENS,
    SOURCE_FILE,
    SOURCE_ROW,
)

_NUM_SAMPLES = 20
# Rejects among the samples, if there are that many.
_NUM_REJECTED_SAMPLES = 5
_NUM_EXAMPLES = 3
# Values that a bar plot can show, and characters of its labels.
_MAX_LABELS = 50
_MAX_LABEL_LENGTH = 100
# Columns that are known to hold labels, however few rows there are.
_LABEL_NAMES = ("label", "tags", "language", "origin", "failed_checks", "stop_reason")
_FINISH_NAMES = ("finish_reason", "finish_reasons")
_LENGTH_NAMES = (NUM_INPUT_TOKENS, NUM_GENERATED_TOKENS)


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A sample row. `rejected` is the class of its error, or null if it has an answer."""

    source_file: str
    source_row: int
    rejected: str | None
    cells: Mapping[str, str]


class RowStats:
    """Statistics of the rows added so far. `columns` are those that it needs of each row."""

    def __init__(self, opened: OpenedOutput) -> None:
        answers = added_fields(opened.job)
        self._task_names = task_names(opened.job)
        columns = [*opened.kept_schema, *answers]
        self._shown = [field.name for field in columns if not is_unreadable(field.type)]
        needed = [*self._shown, *_LENGTH_NAMES, ERROR, SOURCE_FILE, SOURCE_ROW]
        self.columns = list(dict.fromkeys(needed))
        self.lengths = {name: Histogram.of_integers() for name in _LENGTH_NAMES}
        floats = [field.name for field in answers if pa.types.is_floating(field.type)]
        self._scores = {name: Histogram() for name in floats}
        textual = [field.name for field in answers if is_textual(field.type)]
        self._values = {name: ValueCounts(_MAX_LABELS, _MAX_LABEL_LENGTH) for name in textual}
        self.examples: dict[str, Reservoir[str]] = {}
        self._answered: Reservoir[ShownRow] = Reservoir(_NUM_SAMPLES, seed=0)
        self._rejected: Reservoir[ShownRow] = Reservoir(_NUM_SAMPLES, seed=1)

    @classmethod
    def of_units(cls, opened: OpenedOutput, units: Iterable[Unit]) -> "RowStats":
        """Read the units' rows once and collect their statistics."""
        stats = cls(opened)
        for unit in units:
            for batch in batches(opened.store, unit, stats.columns):
                stats.add(batch)
        return stats

    @property
    def finish_reasons(self) -> dict[str, dict[str, int]]:
        """How often each finish reason occurs, by column; the most frequent first."""
        return self._counts(is_finish=True)

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """How often each label occurs, by column; the most frequent first."""
        return self._counts(is_finish=False)

    @property
    def scores(self) -> dict[str, Histogram]:
        """The histograms of the numeric columns that hold any number."""
        return {name: histogram for name, histogram in self._scores.items() if histogram.count}

    @property
    def samples(self) -> tuple[ShownRow, ...]:
        """Random rows, answered ones first."""
        answered, rejected = self._answered.items, self._rejected.items
        num_rejected = max(_NUM_REJECTED_SAMPLES, _NUM_SAMPLES - len(answered))
        num_rejected = min(len(rejected), num_rejected)
        return (*answered[: _NUM_SAMPLES - num_rejected], *rejected[:num_rejected])

    def add(self, batch: pa.RecordBatch) -> None:
        """Add a batch that has `columns`."""
        for histograms in (self.lengths, self._scores):
            for name, histogram in histograms.items():
                numbers = batch.column(name).drop_null().cast(pa.float64())
                histogram.add(numbers.to_numpy(zero_copy_only=False))
        for name, values in self._values.items():
            if values.is_few:
                values.add(value_counts(batch.column(name)))
        is_answered = batch.column(ERROR).is_null()
        self._sample(self._answered, batch.filter(is_answered))
        rejected = batch.filter(pc.invert(is_answered))
        self._sample(self._rejected, rejected)
        for row in rejected.select([ERROR, SOURCE_FILE, SOURCE_ROW]).to_pylist():
            name = row[ERROR]["class"]
            self.examples.setdefault(name, Reservoir(_NUM_EXAMPLES, seed=2)).offer(
                shorten(describe_reject(row))
            )

    def _counts(self, *, is_finish: bool) -> dict[str, dict[str, int]]:
        """The columns of few values: known ones, and those whose values recur.

        In a column that is not known to hold labels, each value must occur twice on average.
        """
        return {
            name: dict(values.counts.most_common())
            for name, values in self._values.items()
            if self._task_names[name].endswith(_FINISH_NAMES) == is_finish
            and values.counts
            and (
                self._task_names[name].endswith((*_LABEL_NAMES, *_FINISH_NAMES))
                or values.counts.total() >= 2 * len(values.counts)
            )
        }

    def _sample(self, reservoir: Reservoir[ShownRow], rows: pa.RecordBatch) -> None:
        for position, key in reservoir.choose(rows.num_rows):
            (row,) = rows.slice(position, 1).to_pylist()
            reservoir.keep(key, _shown_row(row, self._shown))


def _shown_row(row: Mapping[str, Any], names: Sequence[str]) -> ShownRow:
    cells = shown_cells(row, names)
    error = row[ERROR]
    if error is not None:
        cells[ERROR] = shorten(error["message"])
    rejected = None if error is None else error["class"]
    return ShownRow(row[SOURCE_FILE], row[SOURCE_ROW], rejected, cells)
