"""Self-contained HTML pages: plotly's script, the figures and the text in one file.

Jinja2 escapes everything that comes from rows. In addition, the page's Content-Security-Policy
allows only its own two scripts, by their hashes, and loads nothing.
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


def report_page(report: OutputReport) -> str:
    """The page of a report."""
    groups = {
        "throughput": [plots.throughput("throughput", report.replicas)] if report.replicas else [],
        "lengths": list(_lengths(report)),
        "rejects": [
            plots.bars(
                "rejects",
                "Rejected rows by class",
                {name: rejected.count for name, rejected in report.rejects.items()},
                plots.BAD,
            )
        ]
        if report.rejects
        else [],
        "labels": [
            plots.bars(f"label-{number}", name, counts)
            for number, (name, counts) in enumerate(report.labels.items())
        ],
        "scores": [
            plots.histogram(f"score-{number}", name, histogram)
            for number, (name, histogram) in enumerate(report.scores.items())
        ],
    }
    return render("report.html", report.facts(), groups, r=report)


def comparison_page(comparison: Comparison, limits: DriftLimits) -> str:
    """The page of a comparison, with whether it is within the limits."""
    outputs = ("first output", "second output")
    groups = {
        "confusion": [
            plots.matrix(
                f"confusion-{number}", column.name, confusion.labels, confusion.counts, outputs
            )
            for number, column in enumerate(comparison.columns)
            if (confusion := column.confusion) is not None
        ],
        "drift": [
            figure
            for number, column in enumerate(comparison.columns)
            if column.drift is not None and column.drift.pairs
            for figure in _drift(f"drift-{number}", column.name, column.drift)
        ],
    }
    facts = {**comparison.facts(), **limits.verdict(comparison)}
    return render("compare.html", facts, groups, c=comparison, limits=limits)


def _drift(id_: str, name: str, drift: Drift) -> Iterator[Figure]:
    both = {"first output": drift.first, "second output": drift.second}
    yield plots.histograms(id_, name, both)
    yield plots.histogram(f"{id_}-difference", f"{name}: second minus first", drift.differences)


def _lengths(report: OutputReport) -> Iterator[Figure]:
    for id_, title, histogram in (
        ("input-lengths", "Input length", report.input_lengths),
        ("output-lengths", "Output length", report.output_lengths),
    ):
        if histogram.count:
            yield plots.histogram(id_, title, histogram, "tokens per row")
    for number, (name, counts) in enumerate(report.finish_reasons.items()):
        yield plots.bars(f"finish-{number}", name, counts)


def render(
    name: str, facts: Mapping[str, Any], groups: Mapping[str, Sequence[Figure]], **values: Any
) -> str:
    """Render a template with its figures; `facts` is embedded as JSON for programs."""
    # Imported here because it is slow to import and only pages need it.
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "count": _count,
        "money": _money,
        "number": _number,
        "seconds": _seconds,
    }
    scripts = [get_plotlyjs(), _asset("page.js")]
    return environment.get_template(name).render(
        **values,
        groups=groups,
        policy=_policy(scripts),
        style=Markup(_asset("page.css")),  # noqa: S704 - our own file
        plotly=Markup(scripts[0]),  # noqa: S704 - plotly's script
        script=Markup(scripts[1]),  # noqa: S704 - our own file
        facts=_json(facts),
        specs=_json([asdict(figure) for group in groups.values() for figure in group]),
    )


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """A policy that allows only these scripts; plotly also needs inline styles and images."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _json(value: Any) -> Markup:
    """JSON for a script element, escaped so that it cannot end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - no character of markup is left


def _count(value: int) -> str:
    return f"{value:,}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)  # noqa: PLR2004


def _number(value: float | None) -> str:
    """A number with about three significant digits; a dash if it is not known."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 1000:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"  # noqa: PLR2004
