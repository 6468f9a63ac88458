"""Measured figures, their units and their targets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

# From this size on, numbers are printed without decimals.
_WHOLE = 1_000


@dataclass(frozen=True, slots=True)
class Figure:
    """A named value with optional lower and upper targets, `least` and `most`."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """The target as text; empty without one."""
        if self.least is not None:
            return f"≥ {_number(self.least)}"
        return "" if self.most is None else f"≤ {_number(self.most)}"

    @property
    def is_met(self) -> bool:
        """Whether the value meets its target."""
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    def to_json(self) -> Mapping[str, Any]:
        """Return the figure as it is written to figures.json."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "is_met": self.is_met,
        }


def at_least(least: float, name: str, value: float, unit: str) -> Figure:
    """Return a figure whose target is a minimum."""
    return Figure(name, value, unit, least=least)


def at_most(most: float, name: str, value: float, unit: str) -> Figure:
    """Return a figure whose target is a maximum."""
    return Figure(name, value, unit, most=most)


def print_figures(part: str, figures: Iterable[Figure]) -> None:
    """Print one line per figure; missed targets are marked."""
    table = Table(box=None, pad_edge=False)
    table.add_column(part)
    for heading in ("measured", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("")
    for figure in figures:
        missed = "" if figure.is_met else "missed"
        table.add_row(figure.name, _number(figure.value), figure.target, figure.unit, missed)
    Console(width=100).print(table)


def _number(value: float) -> str:
    """Format with four significant digits, or all digits of a whole number."""
    return f"{value:,.0f}" if abs(value) >= _WHOLE or value == round(value) else f"{value:.4g}"
