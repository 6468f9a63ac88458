"""Pages of HTML that stand alone: plotly's script, the figures and the text in one file.

What comes from rows is escaped by Jinja2; beyond that the page runs no script but its own two,
which its Content-Security-Policy names by their hashes, and loads nothing.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tokenmill.formatting import duration
from tokenmill.report import plots
from tokenmill.report.column_diff import Drift
from tokenmill.report.compare import Comparison, DriftLimits
from tokenmill.report.plots import Figure
from tokenmill.report.report import OutputReport

_FOLDER = Path(__file__).parent / "pages"
_GROUPED = 1000


def report_page(report: OutputReport) -> str:
    """The page of a report."""
    groups = {
        "throughput": [plots.throughput("throughput", report.replicas)] if report.replicas else [],
        "lengths": list(_lengths(report)),
        "rejects": [
            plots.bars(
                "rejects",
                "rows without an answer",
                {name: found.count for name, found in report.rejects.items()},
                plots.BAD,
            )
        ]
        if report.rejects
        else [],
        "labels": [
            plots.bars(f"label-{place}", name, counts)
            for place, (name, counts) in enumerate(report.labels.items())
        ],
        "scores": [
            plots.histogram(f"score-{place}", name, found)
            for place, (name, found) in enumerate(report.scores.items())
        ],
    }
    return render("report.html", report.facts(), groups, r=report)


def comparison_page(comparison: Comparison, limits: DriftLimits) -> str:
    """The page of a comparison, and whether it is within the limits."""
    groups = {
        "confusion": [
            plots.matrix(
                f"confusion-{place}", column.name, found.labels, found.counts, ("first", "second")
            )
            for place, column in enumerate(comparison.columns)
            if (found := column.confusion) is not None
        ],
        "drift": [
            figure
            for place, column in enumerate(comparison.columns)
            if column.drift is not None and column.drift.pairs
            for figure in _drift(f"drift-{place}", column.name, column.drift)
        ],
    }
    facts = {**comparison.facts(), **limits.verdict(comparison)}
    return render("compare.html", facts, groups, c=comparison, limits=limits)


def _drift(id_: str, name: str, drift: Drift) -> Iterator[Figure]:
    both = {"first": drift.first, "second": drift.second}
    yield plots.histograms(id_, name, both)
    yield plots.histogram(f"{id_}-difference", f"{name}: second minus first", drift.differences)


def _lengths(report: OutputReport) -> Iterator[Figure]:
    both = {"input-lengths": report.input_lengths, "output-lengths": report.output_lengths}
    for id_, found in both.items():
        if found.count:
            yield plots.histogram(id_, id_.replace("-", " "), found, "tokens a row")
    for place, (name, counts) in enumerate(report.finish_reasons.items()):
        yield plots.bars(f"finish-{place}", name, counts)


def render(
    name: str, facts: Mapping[str, Any], groups: Mapping[str, Sequence[Figure]], **values: Any
) -> str:
    """A template with its figures, and `facts` for programs that read the page."""
    # Slow to import: only who draws pays for it.
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"count": _count, "figure": _figure, "took": _took}
    scripts = [get_plotlyjs(), _asset("page.js")]
    return environment.get_template(name).render(
        **values,
        groups=groups,
        policy=_policy(scripts),
        style=Markup(_asset("page.css")),  # noqa: S704 - a file of ours
        plotly=Markup(scripts[0]),  # noqa: S704 - plotly's own
        script=Markup(scripts[1]),  # noqa: S704 - a file of ours
        facts=_json(facts),
        specs=_json([asdict(figure) for group in groups.values() for figure in group]),
    )


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing from anywhere but these scripts; plotly writes styles of its own."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Markup:
    """JSON that a script element may hold: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no character of markup is left


def _count(value: int) -> str:
    return f"{value:,}"


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)  # noqa: PLR2004


def _figure(value: float | None) -> str:
    """A number with as many places as it takes to tell it from its neighbours."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= _GROUPED:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"  # noqa: PLR2004
