"""Plots as plotly's data and layouts, made by pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokenmill.report.streaming_stats import Histogram
from tokenmill.report.throughput import ReplicaThroughput

ACCENT, BAD, OTHER = "#2f5d9b", "#b3402a", "#d08b2c"
_COLOURS = (ACCENT, OTHER, "#3c8d6b", "#8a5aa8", BAD, "#4aa3b5", "#8c6d46", "#d46a92")
# More lines in one plot are hard to distinguish.
_MAX_LINES = 8
_ALL, _OTHERS = "all replicas", "others"
_HEIGHT = 290
# Longest name of a bar or a line.
_MAX_CHARACTERS = 28
_FONT = {"family": 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', "size": 12}
_AXIS = {"gridcolor": "#e6eaf0", "zeroline": False, "automargin": True, "linecolor": "#c5ccd6"}


@dataclass(frozen=True, slots=True)
class Figure:
    """What plotly draws in the element `id`, `height` pixels high and full width if `wide`."""

    id: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    wide: bool = False
    height: int = _HEIGHT


def throughput(id_: str, replicas: Sequence[ReplicaThroughput]) -> Figure:
    """Tokens per second over time: a line per replica, and their sum if there are several."""
    names = list(dict.fromkeys(replica.replica for replica in replicas))
    lines: dict[str, tuple[list[str | None], list[float | None]]] = {}
    for replica in replicas:
        for line in _lines_of(replica.replica, names):
            lines.setdefault(line, ([], []))
    runs = list(dict.fromkeys(replica.run for replica in replicas))
    for run in runs:
        for line, (times, rates) in lines.items():
            curves = [
                replica
                for replica in replicas
                if replica.run == run and line in _lines_of(replica.replica, names)
            ]
            if not curves:
                continue
            times.extend(map(_utc, curves[0].at))
            rates.extend(map(sum, zip(*(curve.tokens_per_s for curve in curves), strict=True)))
            # A gap between two runs.
            times.append(None)
            rates.append(None)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plot_label(line),
            "x": times,
            "y": rates,
            "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 2},
            "marker": {"size": 4},
        }
        for number, (line, (times, rates)) in enumerate(lines.items())
    ]
    layout = _layout("Input and output tokens per second", "", "tokens/s")
    return Figure(id_, data, {**layout, "showlegend": len(data) > 1}, wide=True)


def _utc(moment: float) -> str:
    """A Unix time in the format that plotly reads, which has no time zone."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")[:23]


def _lines_of(replica: str, names: Sequence[str]) -> list[str]:
    """The lines to which a replica's tokens add."""
    if len(names) == 1:
        return [replica or _ALL]
    has_line = names.index(replica) < _MAX_LINES - 2
    return [_ALL, (replica or "unknown") if has_line else _OTHERS]


def histogram(id_: str, title: str, values: Histogram, axis: str = "") -> Figure:
    """A histogram of one column."""
    return histograms(id_, title, {axis or title: values}, axis)


def histograms(
    id_: str, title: str, values_by_name: Mapping[str, Histogram], axis: str = ""
) -> Figure:
    """Several named histograms on top of each other."""
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [(number + 0.5) * values.width for number in sorted(values.bins)],
            "y": [values.bins[number] for number in sorted(values.bins)],
            "width": [values.width] * len(values.bins),
            "marker": {"color": colour},
            "opacity": 0.6 if len(values_by_name) > 1 else 1,
        }
        for (name, values), colour in zip(values_by_name.items(), _COLOURS, strict=False)
    ]
    layout = _layout(title, axis, "rows")
    overlay = {"barmode": "overlay", "bargap": 0, "showlegend": len(data) > 1}
    return Figure(id_, data, {**layout, **overlay})


def bars(id_: str, title: str, counts: Mapping[str, int], colour: str = ACCENT) -> Figure:
    """Horizontal bars, one per name, the first at the top."""
    names = list(counts)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": list(counts.values()),
            "y": list(range(len(names))),
            "text": [f"{count:,}" for count in counts.values()],
            "textposition": "auto",
            "hoverinfo": "x",
            "marker": {"color": colour},
        }
    ]
    layout = _layout(title, "rows", "")
    axis = {
        **_AXIS,
        # Room for four bars, so that a single one does not fill the plot.
        "range": [max(len(names), 4) - 0.5, -0.5],
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [plot_label(name) for name in names],
    }
    height = max(_HEIGHT, 90 + 22 * len(names))
    return Figure(id_, data, {**layout, "yaxis": axis, "bargap": 0.3}, height=height)


def matrix(
    id_: str,
    title: str,
    labels: Sequence[str],
    counts: Sequence[Sequence[int]],
    axes: tuple[str, str],
) -> Figure:
    """A confusion matrix: a row for each label of the first axis, a column for the second's."""
    positions = list(range(len(labels)))
    ticks = {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [plot_label(label) for label in labels],
        "showgrid": False,
    }
    data = [
        {
            "type": "heatmap",
            "x": positions,
            "y": positions,
            "z": [list(row) for row in counts],
            "text": [[f"{count:,}" if count else "" for count in row] for row in counts],
            "texttemplate": "%{text}",
            "hovertemplate": "%{z:,} rows<extra></extra>",
            "colorscale": [[0, "#ffffff"], [1, ACCENT]],
            "showscale": False,
            "zmin": 0,
        }
    ]
    layout = _layout(title, axes[1], axes[0])
    return Figure(
        id_,
        data,
        {
            **layout,
            "xaxis": {**layout["xaxis"], **ticks},
            "yaxis": {**layout["yaxis"], **ticks, "autorange": "reversed"},
        },
        wide=len(labels) > _MAX_LINES,
        height=max(_HEIGHT, 110 + 22 * len(labels)),
    )


def plot_label(name: str) -> str:
    """A name as a plot can show it: short, and without plotly's markup."""
    short = name if len(name) <= _MAX_CHARACTERS else f"{name[: _MAX_CHARACTERS - 2]} …"
    return _escaped(short)


def _escaped(text: str) -> str:
    """The text without characters that plotly reads as markup or as a formula."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;")


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    return {
        "title": {"text": _escaped(title), "font": {"size": 13}, "x": 0.02, "xanchor": "left"},
        "font": _FONT,
        "margin": {"l": 55, "r": 20, "t": 42, "b": 50},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "xaxis": {**_AXIS, "title": {"text": _escaped(x)}},
        "yaxis": {**_AXIS, "title": {"text": _escaped(y)}, "rangemode": "tozero"},
        "showlegend": False,
        "legend": {"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0},
    }
