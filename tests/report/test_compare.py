"""Two outputs over the same rows: what agrees, flips and drifts, and when the gate closes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import refusal
from sacrebleu.metrics import CHRF
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.output.commit import encode
from tokenmill.output.output import open_output
from tokenmill.output.record import UnitRecord, read_record
from tokenmill.report.column_diff import chrf
from tokenmill.report.compare import Comparison, DriftLimits, compare
from tokenmill.report.html import comparison_page
from tokenmill.storage.local import LocalStore
from typer.testing import CliRunner

TEXTS: dict[str, list[str | None]] = {
    "a.parquet": [f"word {number}" for number in range(20)],
    "b.parquet": ["<script>alert(1)</script>", "", *(f"more {number}" for number in range(18))],
}


def output(folder: Path, name: str, units: int = 7, **changes: Any) -> str:
    """An output of 40 rows with text, labels and tags; one row is empty."""
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus, TEXTS)
    tasks = [
        {"kind": "generate", "name": "sum"},
        {"kind": "classify", "name": "cls", "choices": ["good", "bad", "ugly"]},
        {"kind": "tag", "name": "topic", "choices": ["x", "y"]},
    ]
    keys = job_over(corpus, folder / name, tasks=tasks, units={"rows": units})
    keys["input"] |= {"keep": ["text"], **changes}
    drive(Job.model_validate(keys), LocalStore(str(folder / name)))
    return str(folder / name)


def edit(output: str, cells: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Put other cells into rows of an output."""
    store = LocalStore(output)
    for item in list(store.list("data")):
        record: UnitRecord = read_record(store, item.key)
        table = pq.read_table(Path(output, item.key))
        rows = table.to_pylist()
        for row in rows:
            row.update(cells.get((row["source_file"], row["source_row"]), {}))
        store.replace(item.key, encode(pa.Table.from_pylist(rows, table.schema), record))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Two nights of one job, whose units are cut differently."""
    return output(tmp_path, "one"), output(tmp_path, "two", units=3)


def compared(pair: tuple[str, str], *on: str) -> Comparison:
    one, two = (open_output(LocalStore(folder)) for folder in pair)
    return compare(one, two, on)


def column(found: Comparison, name: str) -> Any:
    return next(each for each in found.columns if each.name == name)


def row(output: str, file: str, number: int) -> dict[str, Any]:
    rows = pq.ParquetDataset(Path(output, "data")).read().to_pylist()
    return next(r for r in rows if (r["source_file"], r["source_row"]) == (file, number))


def scores_of(output: str, name: str) -> list[float]:
    """A column's numbers, by the rows' places."""
    rows = pq.ParquetDataset(Path(output, "data")).read().to_pylist()
    rows.sort(key=lambda row: (row["source_file"], row["source_row"]))
    return [row[name] for row in rows if row["error"] is None]


def test_two_nights_of_the_same_answers_agree(pair: tuple[str, str]) -> None:
    """However their units are cut; a row that both reject is no change."""
    found = compared(pair)
    assert (found.rows, found.answered, found.rejected_in_both) == (40, 39, 1)
    assert (found.changed, found.only_a, found.only_b) == (0, 0, 0)
    assert all(each.agreement == 1 and each.rows == 39 for each in found.columns)
    drift = column(found, "cls_label_score").drift
    assert drift.mean_difference == 0 and drift.correlation == pytest.approx(1)
    assert DriftLimits(0.0, 0.0).is_kept_by(found)


def test_a_flip_is_a_cell_of_the_confusion_matrix(pair: tuple[str, str]) -> None:
    """The line is the first output's label, the column the second's; the row is shown."""
    before = row(pair[0], "a.parquet", 3)["cls_label"]
    after = "ugly" if before != "ugly" else "bad"
    edit(pair[1], {("a.parquet", 3): {"cls_label": after}})
    found = compared(pair, "cls_label")
    flipped = column(found, "cls_label")
    labels = flipped.confusion.labels
    assert flipped.confusion.counts[labels.index(before)][labels.index(after)] == 1
    assert sum(map(sum, flipped.confusion.counts)) == 39
    assert (flipped.changed, found.changed) == (1, 1)
    (shown,) = found.samples
    assert (shown.source_file, shown.source_row) == ("a.parquet", 3)
    assert shown.columns == ("cls_label",)
    assert (shown.first["cls_label"], shown.second["cls_label"]) == (before, after)
    assert found.changed_share == pytest.approx(1 / 40)
    assert not DriftLimits(0.02).is_kept_by(found) and DriftLimits(0.03).is_kept_by(found)


def test_only_the_named_columns_count(pair: tuple[str, str]) -> None:
    """Of others is told how much they changed; by default scores do not count."""
    edit(pair[1], {("a.parquet", 3): {"sum_generated_text": "other", "cls_label_score": 0.0}})
    assert compared(pair, "cls_label").changed == 0
    assert compared(pair, "cls_label_score").changed == 1
    by_default = compared(pair)
    gated = {each.name for each in by_default.columns if each.is_gated}
    assert gated == {"sum_generated_text", "cls_label", "topic_tags"}
    assert by_default.changed == 1
    assert "--on" in refusal(UserError, lambda: compared(pair, "label"))


def test_scores_drift(pair: tuple[str, str]) -> None:
    """Means, the largest difference and Pearson's r are those of the pairs."""
    rows = [row(pair[0], "a.parquet", number)["cls_label_score"] for number in range(20)]
    moved = [score + 0.01 * number for number, score in enumerate(rows)]
    edit(
        pair[1],
        {("a.parquet", n): {"cls_label_score": score} for n, score in enumerate(moved)},
    )
    drift = column(compared(pair), "cls_label_score").drift
    assert drift.pairs == 39
    assert drift.mean_difference == pytest.approx(0.01 * 190 / 39)
    assert drift.largest_difference == pytest.approx(0.19)
    assert drift.mean_b - drift.mean_a == pytest.approx(drift.mean_difference)
    ones, others = (scores_of(path, "cls_label_score") for path in pair)
    assert drift.correlation == pytest.approx(np.corrcoef(ones, others)[0, 1])
    assert not DriftLimits(1.0, 0.04).is_kept_by(compared(pair))
    assert DriftLimits(1.0, 0.05).is_kept_by(compared(pair))


def test_tags_are_gained_and_lost(pair: tuple[str, str]) -> None:
    """Their order says nothing."""
    edit(
        pair[0],
        {("a.parquet", 1): {"topic_tags": ["x", "y"]}, ("a.parquet", 2): {"topic_tags": ["x"]}},
    )
    edit(
        pair[1],
        {("a.parquet", 1): {"topic_tags": ["y", "x"]}, ("a.parquet", 2): {"topic_tags": ["y"]}},
    )
    tags = column(compared(pair), "topic_tags")
    assert (tags.changed, tags.gained, tags.lost) == (1, {"y": 1}, {"x": 1})


def test_texts_that_differ_are_more_or_less_alike(pair: tuple[str, str]) -> None:
    """Likeness is the mean over all rows; an equal text counts 1."""
    before = row(pair[0], "a.parquet", 3)["sum_generated_text"]
    edit(pair[1], {("a.parquet", 3): {"sum_generated_text": f"{before} and more"}})
    text = column(compared(pair), "sum_generated_text")
    assert text.likeness == pytest.approx((38 + chrf(before, f"{before} and more")) / 39)


def test_rejects_are_gained_and_lost(pair: tuple[str, str]) -> None:
    """A row that only one output rejects has changed, and is told by class."""
    error = {"class": "timeout", "message": "too slow", "attempts": 1}
    edit(pair[0], {("a.parquet", 3): {"error": error}})
    edit(pair[1], {("a.parquet", 4): {"error": error}, ("b.parquet", 1): {"error": error}})
    found = compared(pair)
    assert (found.rejects_gained, found.rejects_lost) == ({"timeout": 1}, {"timeout": 1})
    assert (found.changed, found.answered, found.rejected_in_both) == (2, 37, 1)


def test_a_row_that_one_output_lacks_counts_as_changed(pair: tuple[str, str]) -> None:
    """An unfinished output, or another filter, closes the gate."""
    lost = open_output(LocalStore(pair[1])).plan.units[0]
    Path(pair[1], lost.key).unlink()
    found = compared(pair)
    assert (found.rows, found.only_a, found.only_b) == (37, 3, 0)
    assert found.changed_share == pytest.approx(3 / 40)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"limit": 30}, "b.parquet has 20 rows, and 10"), ({"limit": 20}, "b.parquet is not in")],
)
def test_outputs_of_other_rows_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """One line names the first difference."""
    pair = output(tmp_path, "one"), output(tmp_path, "two", **changes)
    assert said in refusal(UserError, lambda: compared(pair))


def test_a_shard_that_was_written_again_is_refused(tmp_path: Path) -> None:
    """A copy of the corpus elsewhere is the same corpus, one that changed in its place is not."""
    one = output(tmp_path, "one")
    path = tmp_path / "corpus" / "b.parquet"
    path.write_bytes(path.read_bytes())
    pair = one, output(tmp_path, "two")
    assert "b.parquet was written again" in refusal(UserError, lambda: compared(pair))
    (tmp_path / "elsewhere").mkdir()
    pair = one, output(tmp_path / "elsewhere", "two")
    assert compared(pair).changed == 0


def test_the_command_is_a_gate(pair: tuple[str, str], tmp_path: Path) -> None:
    """0 within the limits, 1 beyond, 2 for a mistake; JSON holds the verdict."""
    run = CliRunner().invoke
    assert run(app, ["compare", *pair]).exit_code == ExitCode.FINISHED
    edit(pair[1], {("a.parquet", 3): {"sum_generated_text": "other"}})
    target = tmp_path / "page.html"
    beyond = run(app, ["compare", *pair, "--to", str(target)])
    assert beyond.exit_code == ExitCode.FAILED
    assert "OVER THE LIMIT" in beyond.stdout and max(map(len, beyond.stdout.splitlines())) <= 100
    assert target.read_text().startswith("<!doctype html>")
    assert run(app, ["compare", *pair, "--max-changed", "0.1"]).exit_code == ExitCode.FINISHED
    assert run(app, ["compare", *pair, "--on", "cls_label"]).exit_code == ExitCode.FINISHED
    facts = json.loads(run(app, ["compare", *pair, "--json"]).stdout)
    assert (facts["within_limits"], facts["changed"]) == (False, 1)
    assert run(app, ["compare", pair[0], str(tmp_path)]).exit_code == ExitCode.USER_ERROR


def test_a_hostile_row_is_text_in_the_page(pair: tuple[str, str]) -> None:
    """Cells of both outputs are escaped."""
    edit(pair[1], {("b.parquet", 0): {"sum_generated_text": "</td><script>alert(2)</script>"}})
    page = comparison_page(compared(pair), DriftLimits(0.02))
    assert "&lt;script&gt;alert(1)" in page and "&lt;script&gt;alert(2)" in page
    assert page.count("<script>alert") == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the quick brown fox", "the quick brown dog"),
        ("a mill by the river", "by the river a mill"),
        ("wholly", "another"),
        ("ab", "abc"),
    ],
)
def test_likeness_is_chrf(one: str, other: str) -> None:
    """The reference implementation's figure, with beta 1, for texts of six letters and more."""
    reference = CHRF(beta=1, eps_smoothing=False).sentence_score(one, [other]).score / 100
    assert chrf(one, other) == pytest.approx(reference, abs=1e-6)
    assert chrf(one, other) == pytest.approx(chrf(other, one))


def test_texts_without_a_common_letter_are_not_alike() -> None:
    """And equal ones are wholly, empty ones too."""
    assert chrf("abc", "xyz") == 0
    assert chrf("abc", "abc") == chrf("", " ") == 1
    assert chrf("", "abc") == 0
    assert not math.isnan(chrf("a", "b"))
