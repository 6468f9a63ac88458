"""A measurement: what was found, in its unit, and the target that it is held against."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

# Whose fractions nobody reads.
_WHOLE = 1_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A named value; `least` and `most` are what it should be between, None where nothing is."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """The target in words; empty where there is none."""
        if self.least is not None:
            return f"≥ {_number(self.least)}"
        return "" if self.most is None else f"≤ {_number(self.most)}"

    @property
    def is_met(self) -> bool:
        """Whether the value is within its target."""
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    def to_json(self) -> Mapping[str, Any]:
        """As figures.json holds it."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "is_met": self.is_met,
        }


def at_least(least: float, name: str, value: float, unit: str) -> Figure:
    """A figure that should be as large at least."""
    return Figure(name, value, unit, least=least)


def at_most(most: float, name: str, value: float, unit: str) -> Figure:
    """A figure that should be as large at most."""
    return Figure(name, value, unit, most=most)


def print_figures(part: str, figures: Iterable[Figure]) -> None:
    """A line a figure; a target that is missed is said so."""
    table = Table(box=None, pad_edge=False)
    table.add_column(part)
    for heading in ("found", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("")
    for figure in figures:
        missed = "" if figure.is_met else "missed"
        table.add_row(figure.name, _number(figure.value), figure.target, figure.unit, missed)
    Console(width=100).print(table)


def _number(value: float) -> str:
    """Four digits, or as many as a whole number has."""
    return f"{value:,.0f}" if abs(value) >= _WHOLE or value == round(value) else f"{value:.4g}"
