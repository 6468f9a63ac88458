"""The report equals what the output's rows and records hold, and its page escapes rows."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from helpers.inprocess import drive, job_over, write_corpus
from plotly import graph_objects
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.output import open_output
from tokenmill.output.record import read_record
from tokenmill.output.status import StatusReader
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.report.html import report_page
from tokenmill.report.report import make_report
from tokenmill.stages.in_process import REPLICA_NAME
from tokenmill.storage.base import Store
from tokenmill.storage.local import LocalStore
from typer.testing import CliRunner

HOSTILE = "</script><script>alert('row')</script><!-- <b>"
TEXTS = {
    "a.parquet": ["one", "", HOSTILE, None, "five"],
    "b.parquet": ["   " if number % 3 == 2 else f"text {number}" for number in range(60)],
}


class Page(HTMLParser):
    """A page's elements, the text of its scripts, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def facts(self) -> Any:
        return json.loads(self.scripts[0])

    @property
    def figures(self) -> Any:
        return json.loads(self.scripts[1])


def finished(folder: Path) -> str:
    """The path of an output of 65 rows with text, labels and tags; 22 rows are empty."""
    corpus = write_corpus(folder / "corpus", TEXTS)
    tasks = [
        {"kind": "generate", "name": "sum"},
        {"kind": "classify", "name": "cls", "choices": ["good", "bad"]},
        {"kind": "tag", "name": "topic", "choices": ["x", "y"]},
    ]
    keys = job_over(corpus, folder / "out", tasks=tasks)
    keys["input"]["keep"] = ["text"]
    drive(Job.model_validate(keys), LocalStore(str(folder / "out")))
    return str(folder / "out")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(output: str) -> Page:
    return Page(report_page(make_report(open_output(LocalStore(str(output))))))


def rows_of(output: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        ds.dataset(f"{output}/data", format="parquet").to_table().to_pylist()
    )
    return rows


def test_the_report_counts_every_row_once(output: str, page: Page) -> None:
    """Rows, tokens, lengths, labels and finish reasons are those of the output's rows."""
    rows, facts = rows_of(output), page.facts
    answered = [row for row in rows if row["error"] is None]
    assert facts["rows"] == facts["answered"] + facts["rejected"] == 65
    assert facts["rejected"] == facts["rejects"]["empty_input"]["count"] == 22
    assert facts["answered"] == len(answered)
    assert facts["generated_tokens"] == sum(row["num_generated_tokens"] for row in answered)
    assert facts["input_lengths"]["count"] == len(answered)
    assert facts["input_lengths"]["total"] == facts["input_tokens"]
    assert facts["finish_reasons"]["sum_finish_reason"] == {"stop": len(answered)}
    labels = [row["cls_label"] for row in answered]
    assert facts["labels"]["cls_label"] == {name: labels.count(name) for name in set(labels)}
    tags = [tag for row in answered for tag in row["topic_tags"]]
    assert facts["labels"]["topic_tags"] == {name: tags.count(name) for name in set(tags)}
    assert "sum_generated_text" not in facts["labels"]
    scores = [row["cls_label_score"] for row in answered]
    assert facts["scores"]["cls_label_score"]["total"] == pytest.approx(sum(scores))


def test_the_replicas_are_reported(output: str, page: Page) -> None:
    """A replica's name, tokens and rows are those of its units' records."""
    store = LocalStore(output)
    records = [read_record(store, item.key) for item in store.list("data")]
    assert {record.replica for record in records} == {REPLICA_NAME}
    (replica,) = page.facts["replicas"]
    assert (replica["replica"], replica["units"]) == (REPLICA_NAME, len(records))
    assert replica["rows"] == 65
    assert replica["tokens"] == page.facts["input_tokens"] + page.facts["generated_tokens"]


def test_plotly_accepts_every_figure(page: Page) -> None:
    """Plotly knows every attribute, and the page has an element for each plot."""
    ids = {attributes.get("id") for tag, attributes in page.elements if tag == "div"}
    assert len(page.figures) > 6
    for figure in page.figures:
        graph_objects.Figure(data=figure["data"], layout=figure["layout"])
        assert figure["id"] in ids


def test_rows_are_escaped(page: Page) -> None:
    """Markup in a row makes no element, and the policy allows only the page's two scripts."""
    assert HOSTILE in page.text
    assert [tag for tag, _ in page.elements].count("script") == len(page.scripts) == 4
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert policy.count("'sha256-") == 2 and "unsafe-inline" not in policy.split("style-src")[0]


def test_a_page_loads_nothing(page: Page) -> None:
    """No element has a URL that a browser would fetch."""
    loading = [(tag, a) for tag, a in page.elements if a.keys() & {"src", "href", "srcset"}]
    assert loading == []


def test_twenty_sample_rows_include_five_rejects(output: str, page: Page) -> None:
    """Rejects have the error's message, and the cells are those of the output."""
    samples = page.facts["samples"]
    assert len(samples) == 20
    assert sum(row["rejected"] == "empty_input" for row in samples) == 5
    texts = {(row["source_file"], row["source_row"]): row["text"] for row in rows_of(output)}
    for row in samples:
        assert row["cells"].get("text") == texts[row["source_file"], row["source_row"]]
        assert ("error" in row["cells"]) == (row["rejected"] is not None)


def test_the_plan_is_compared_with_the_actual_values(output: str) -> None:
    """Quantities are matched by name; unknown ones are None."""
    plan = {
        "rows": 70,
        "input_tokens": {"estimate": 100, "low": 90, "high": 110},
        "output_tokens": {"estimate": 50},
        "seconds_per_replica": 2.5,
        "gpu_hours": 0.5,
        "cost": None,
    }
    report = make_report(open_output(LocalStore(str(output))), plan, price=2.0)
    lines = {line.name: line for line in report.plan}
    assert list(lines) == list(plan)
    tokens = lines["input_tokens"]
    assert (tokens.planned, tokens.low, tokens.high) == (100, 90, 110)
    assert tokens.actual == report.input_tokens
    assert lines["seconds_per_replica"].actual == pytest.approx(report.replica_seconds)
    assert (lines["rows"].planned, lines["rows"].actual) == (70, 65)
    assert lines["cost"].planned is None
    assert lines["cost"].actual == pytest.approx(2.0 * report.replica_seconds / 3600, abs=1e-4)
    assert "Plan vs. actual" in report_page(report)


def test_the_jobs_price_is_the_default(tmp_path: Path) -> None:
    """Without a price, `model.price_per_gpu_hour` gives the cost."""
    corpus = write_corpus(tmp_path / "corpus", TEXTS)
    model = {"source": "fake", "engine": {}, "price_per_gpu_hour": 3600.0}
    job = Job.model_validate(job_over(corpus, tmp_path / "out", model=model))
    drive(job, LocalStore(str(tmp_path / "out")))
    report = make_report(open_output(LocalStore(str(tmp_path / "out"))))
    assert report.gpu_hours is not None
    assert report.cost == pytest.approx(3600 * report.gpu_hours)


def test_an_unfinished_output_can_be_reported(tmp_path: Path) -> None:
    """The report covers the committed units; there may be none."""
    output = finished(tmp_path)
    Path(output, SUCCESS_KEY).unlink()
    lost = next(iter(LocalStore(output).list("data"))).key
    Path(output, lost).unlink()
    report = make_report(open_output(LocalStore(str(output))))
    assert not report.is_finished
    assert report.units == report.units_planned - 1
    assert report.rows == 63
    for item in LocalStore(output).list("data"):
        Path(output, item.key).unlink()
    empty = report_page(make_report(open_output(LocalStore(str(output)))))
    for text in ("No unit is committed", "No row has an answer", "There are no rows"):
        assert text in empty


def test_the_command_writes_the_page_and_prints_its_path(output: str, tmp_path: Path) -> None:
    """By default it is in the last run's folder; --to names a file, and --json prints JSON."""
    done = CliRunner().invoke(app, ["report", output])
    assert done.exit_code == ExitCode.FINISHED, done.output
    assert re.search(r"/_tokenmill/runs/[^/]+/report\.html$", done.stdout.strip())
    assert Path(done.stdout.strip()).read_text().startswith("<!doctype html>")
    target = tmp_path / "page.html"
    plan = tmp_path / "plan.json"
    plan.write_text('{"input_tokens": {"estimate": 1}}')
    arguments = ["report", output, "--to", str(target), "--plan", str(plan)]
    assert CliRunner().invoke(app, arguments).stdout == f"{target}\n"
    assert Page(target.read_text()).facts["plan"][1]["planned"] == 1
    facts = json.loads(CliRunner().invoke(app, ["report", output, "--json"]).stdout)
    assert facts["rows"] == 65


def test_the_page_is_written_to_every_kind_of_store(store: Store, tmp_path: Path) -> None:
    """The page in the run's folder does not change the status or a later report."""
    corpus = write_corpus(tmp_path / "corpus")
    drive(Job.model_validate(job_over(corpus, store.url)), store)
    done = CliRunner().invoke(app, ["report", store.url])
    assert done.exit_code == ExitCode.FINISHED, done.output
    key = done.stdout.strip().removeprefix(f"{store.url}/")
    assert Page(store.read(key).decode()).facts["rows"] == 8
    assert StatusReader(open_output(store)).read().state == "finished"
    again = make_report(open_output(store))
    assert [run.summary is not None for run in again.runs] == [True]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 1}'])
def test_a_file_that_is_no_estimate_is_refused(output: str, tmp_path: Path, text: str) -> None:
    """The error is one line that names the option and the file."""
    plan = tmp_path / "plan.json"
    plan.write_text(text)
    done = CliRunner().invoke(app, ["report", output, "--plan", str(plan)])
    assert done.exit_code == ExitCode.USER_ERROR
    assert f"--plan {plan}" in done.stderr and len(done.stderr.splitlines()) == 1
