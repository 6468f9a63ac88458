"""The pages of `report` and `compare` in a real browser: plots, console, filters, print."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import NAMES, Tab, browser, chromium
from helpers.inprocess import drive, job_over, write_corpus
from tokenmill.job.job import Job
from tokenmill.output.output import open_output
from tokenmill.report.compare import DriftLimits, compare
from tokenmill.report.html import comparison_page, report_page
from tokenmill.report.report import make_report
from tokenmill.storage.local import LocalStore

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"

pytestmark = pytest.mark.integration


def outputs(folder: Path) -> list[str]:
    """The outputs of two jobs over 40 rows, of which one holds markup and one is empty."""
    texts = [HOSTILE, "", *(f"word {number}" for number in range(38))]
    corpus = write_corpus(folder / "corpus", {"a.parquet": texts})
    paths = []
    for name, labels in (("one", ["good", "bad"]), ("two", ["bad", "good"])):
        tasks = [
            {"kind": "generate", "name": "sum"},
            {"kind": "classify", "name": "cls", "choices": labels},
        ]
        keys = job_over(corpus, folder / name, tasks=tasks)
        keys["input"]["keep"] = ["text"]
        drive(Job.model_validate(keys), LocalStore(str(folder / name)))
        paths.append(str(folder / name))
    return paths


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of both pages, by name."""
    folder = tmp_path_factory.mktemp("pages")
    one, two = (open_output(LocalStore(path)) for path in outputs(folder))
    texts = {
        "report": report_page(make_report(one, {"rows": 40, "input_tokens": {"estimate": 9}})),
        "compare": comparison_page(compare(one, two), DriftLimits(0.02)),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    executable = chromium()
    if executable is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)}")
    with browser(executable, tmp_path / "profile") as opened:
        yield opened


@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_is_drawn_filtered_and_printed(pages: dict[str, Path], tab: Tab, name: str) -> None:
    """All plots are drawn, no error is logged, no row runs a script, filters and print work."""
    tab.open(pages[name])
    num_plots = tab.value("document.querySelectorAll('.plot').length")
    assert num_plots > 3
    traces = ".scatterlayer .trace, .barlayer .trace path, .heatmaplayer .hm image"
    drawn = f"[...document.querySelectorAll('.plot')].filter(p => p.querySelector('{traces}'))"
    assert tab.value(f"{drawn}.length") == num_plots
    shown = "[...document.querySelectorAll('.sample')].filter((row) => row.offsetHeight > 0)"
    num_rows = tab.value(f"{shown}.length")
    assert 0 < num_rows <= 20
    tab.value("outcome.value = 'rejected'; outcome.dispatchEvent(new Event('change'))")
    outcomes = tab.value(f"{shown}.map((row) => row.dataset.outcome)")
    assert set(outcomes) <= {"rejected"} and len(outcomes) < num_rows
    tab.value(
        "outcome.value = 'all'; search.value = 'WORD 1'; search.dispatchEvent(new Event('input'))"
    )
    texts = tab.value(f"{shown}.map((row) => row.textContent)")
    assert texts and len(texts) < num_rows
    assert all("word 1" in text for text in texts)
    assert tab.pdf().startswith(b"%PDF")
    assert tab.value("document.title") != "taken"
    assert tab.value("performance.getEntriesByType('resource').length") == 0
    assert tab.errors == []


def test_the_policy_blocks_a_script_that_was_not_escaped(
    pages: dict[str, Path], tab: Tab, tmp_path: Path
) -> None:
    """The page's Content-Security-Policy runs only scripts whose hashes it lists."""
    broken = tmp_path / "broken.html"
    text = pages["report"].read_text()
    broken.write_text(text.replace("<h1>", f"{HOSTILE}<h1>", 1))
    tab.open(broken)
    assert tab.value("document.title") != "taken"
    assert any("Content Security Policy" in error for error in tab.errors)
