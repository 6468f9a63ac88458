"""Counts of units, rows and tokens, and the one place that adds them up."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Units, rows and tokens of one unit, of a run or of a whole output.

    `rows` are output rows, rejects included. `filtered` are the input rows that `input.where` left
    out. `rejects` counts the rejected rows by class. `_SUCCESS` holds exactly these fields.
    """

    units: int
    rows: int
    filtered: int
    rejects: Mapping[str, int]
    input_tokens: int
    generated_tokens: int

    def __add__(self, other: "Counts") -> "Counts":
        rejects = Counter(self.rejects)
        rejects.update(other.rejects)
        return Counts(
            units=self.units + other.units,
            rows=self.rows + other.rows,
            filtered=self.filtered + other.filtered,
            rejects=dict(sorted(rejects.items())),
            input_tokens=self.input_tokens + other.input_tokens,
            generated_tokens=self.generated_tokens + other.generated_tokens,
        )

    @property
    def input_rows(self) -> int:
        """Rows of the input that are accounted for: written or filtered out."""
        return self.rows + self.filtered

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.generated_tokens

    @property
    def rejected(self) -> int:
        """Rows without an answer."""
        return sum(self.rejects.values())

    @property
    def reject_rate(self) -> float:
        """Rejected rows as a share of the output rows."""
        return self.rejected / self.rows if self.rows else 0.0


NO_COUNTS = Counts(0, 0, 0, {}, 0, 0)


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """The sum of any number of counts."""
    return sum(counts, NO_COUNTS)
