"""Plots as plotly's data and layouts: pure functions of figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokenmill.report.streaming_stats import Histogram
from tokenmill.report.throughput import ReplicaThroughput

ACCENT, BAD, OTHER = "#2f5d9b", "#b3402a", "#d08b2c"
_COLOURS = (ACCENT, OTHER, "#3c8d6b", "#8a5aa8", BAD, "#4aa3b5", "#8c6d46", "#d46a92")
# More lines than this nobody tells apart.
_MOST_LINES = 8
_HEIGHT = 290
# Of a bar's name.
_MOST_CHARACTERS = 28
_FONT = {"family": 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif', "size": 12}
_AXIS = {"gridcolor": "#e6eaf0", "zeroline": False, "automargin": True, "linecolor": "#c5ccd6"}


@dataclass(frozen=True, slots=True)
class Figure:
    """What plotly draws in the element `id`: `height` pixels high, a whole line if `wide`."""

    id: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    wide: bool = False
    height: int = _HEIGHT


def throughput(id_: str, paces: Sequence[ReplicaThroughput]) -> Figure:
    """Tokens a second over the time: a line a replica, and their sum where there are several."""
    names = list(dict.fromkeys(pace.replica for pace in paces))
    lines: dict[str, tuple[list[str | None], list[float | None]]] = {}
    for pace in paces:
        for name in _lines_of(pace.replica, names):
            lines.setdefault(name, ([], []))
    runs = list(dict.fromkeys(pace.run for pace in paces))
    for run in runs:
        for name, (at, rates) in lines.items():
            own = [
                pace for pace in paces if pace.run == run and name in _lines_of(pace.replica, names)
            ]
            if not own:
                continue
            at += [_in_utc(moment) for moment in own[0].at]
            rates += [sum(each) for each in zip(*(pace.tokens_per_s for pace in own), strict=True)]
            # Between two runs there is no line.
            at.append(None)
            rates.append(None)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plot_label(name),
            "x": at,
            "y": rates,
            "line": {"color": _COLOURS[place % len(_COLOURS)], "width": 2},
            "marker": {"size": 4},
        }
        for place, (name, (at, rates)) in enumerate(lines.items())
    ]
    layout = _layout("tokens a second, input and output", "", "tokens/s")
    return Figure(id_, data, {**layout, "showlegend": len(data) > 1}, wide=True)


def _in_utc(moment: float) -> str:
    """A Unix time as plotly reads it, which knows no zones."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")[:23]


def _lines_of(replica: str, names: Sequence[str]) -> list[str]:
    """The lines that a replica is part of."""
    if len(names) == 1:
        return [replica or "all replicas"]
    own = replica or "not told"
    return ["all replicas", own if names.index(replica) < _MOST_LINES - 2 else "others"]


def histogram(id_: str, title: str, found: Histogram, axis: str = "") -> Figure:
    """A histogram of one column."""
    return histograms(id_, title, {axis or title: found}, axis)


def histograms(id_: str, title: str, found: Mapping[str, Histogram], axis: str = "") -> Figure:
    """Several histograms over each other."""
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [(place + 0.5) * one.width for place in sorted(one.bins)],
            "y": [one.bins[place] for place in sorted(one.bins)],
            "width": [one.width] * len(one.bins),
            "marker": {"color": colour},
            "opacity": 0.6 if len(found) > 1 else 1,
        }
        for (name, one), colour in zip(found.items(), _COLOURS, strict=False)
    ]
    layout = _layout(title, axis, "rows")
    more = {"barmode": "overlay", "bargap": 0, "showlegend": len(data) > 1}
    return Figure(id_, data, {**layout, **more})


def bars(id_: str, title: str, counts: Mapping[str, int], colour: str = ACCENT) -> Figure:
    """A horizontal bar a value, the most frequent one at the top."""
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
        # A single bar must not fill the plot.
        "range": [max(len(names), 4) - 0.5, -0.5],
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [plot_label(name) for name in names],
    }
    height = max(_HEIGHT, 90 + 22 * len(names))
    return Figure(id_, data, {**layout, "yaxis": axis, "bargap": 0.3}, height=height)


def matrix(
    id_: str, title: str, names: Sequence[str], counts: Sequence[Sequence[int]], axes: Sequence[str]
) -> Figure:
    """A confusion matrix: a line for each label of the first, a column for each of the second."""
    places = list(range(len(names)))
    ticks = {
        "tickmode": "array",
        "tickvals": places,
        "ticktext": [plot_label(name) for name in names],
        "showgrid": False,
    }
    data = [
        {
            "type": "heatmap",
            "x": places,
            "y": places,
            "z": [list(line) for line in counts],
            "text": [[f"{count:,}" if count else "" for count in line] for line in counts],
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
        wide=len(names) > _MOST_LINES,
        height=max(_HEIGHT, 110 + 22 * len(names)),
    )


def plot_label(name: str) -> str:
    """A value as a plot may write it: short, and without plotly's own markup."""
    short = name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 2]} …"
    return _plain(short)


def _plain(text: str) -> str:
    """Text in which plotly finds no markup and no formula."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;")


def _layout(title: str, x: str, y: str) -> dict[str, Any]:
    return {
        "title": {"text": _plain(title), "font": {"size": 13}, "x": 0.02, "xanchor": "left"},
        "font": _FONT,
        "margin": {"l": 55, "r": 20, "t": 42, "b": 50},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "xaxis": {**_AXIS, "title": {"text": _plain(x)}},
        "yaxis": {**_AXIS, "title": {"text": _plain(y)}, "rangemode": "tozero"},
        "showlegend": False,
        "legend": {"orientation": "h", "y": -0.18, "yanchor": "top", "x": 0},
    }
