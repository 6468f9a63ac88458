"""Comparing two outputs over the same rows: agreement, changes, drift, and the limits."""

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
    """Change cells in rows of an output."""
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
    """Two outputs of one job, with different units."""
    return output(tmp_path, "one"), output(tmp_path, "two", units=3)


def compared(pair: tuple[str, str], *on: str) -> Comparison:
    one, two = (open_output(LocalStore(folder)) for folder in pair)
    return compare(one, two, on)


def column(comparison: Comparison, name: str) -> Any:
    return next(column for column in comparison.columns if column.name == name)


def row(output: str, file: str, number: int) -> dict[str, Any]:
    rows = pq.ParquetDataset(Path(output, "data")).read().to_pylist()
    return next(r for r in rows if (r["source_file"], r["source_row"]) == (file, number))


def scores_of(output: str, name: str) -> list[float]:
    """The numbers of a column, in the order of the input."""
    rows = pq.ParquetDataset(Path(output, "data")).read().to_pylist()
    rows.sort(key=lambda row: (row["source_file"], row["source_row"]))
    return [row[name] for row in rows if row["error"] is None]


def test_equal_answers_agree(pair: tuple[str, str]) -> None:
    """The units do not matter, and a row that both outputs reject is no change."""
    result = compared(pair)
    assert (result.rows, result.answered, result.rejected_in_both) == (40, 39, 1)
    assert (result.changed, result.only_a, result.only_b) == (0, 0, 0)
    assert all(column.agreement == 1 and column.rows == 39 for column in result.columns)
    drift = column(result, "cls_label_score").drift
    assert drift.mean_difference == 0 and drift.correlation == pytest.approx(1)
    assert DriftLimits(0.0, 0.0).allows(result)


def test_a_changed_label_is_in_the_confusion_matrix(pair: tuple[str, str]) -> None:
    """Its row is the first output's label, its column the second's; the row is a sample."""
    before = row(pair[0], "a.parquet", 3)["cls_label"]
    after = "ugly" if before != "ugly" else "bad"
    edit(pair[1], {("a.parquet", 3): {"cls_label": after}})
    result = compared(pair, "cls_label")
    changed = column(result, "cls_label")
    labels = changed.confusion.labels
    assert changed.confusion.counts[labels.index(before)][labels.index(after)] == 1
    assert sum(map(sum, changed.confusion.counts)) == 39
    assert (changed.changed, result.changed) == (1, 1)
    (shown,) = result.samples
    assert (shown.source_file, shown.source_row) == ("a.parquet", 3)
    assert shown.columns == ("cls_label",)
    assert (shown.first["cls_label"], shown.second["cls_label"]) == (before, after)
    assert result.changed_share == pytest.approx(1 / 40)
    assert not DriftLimits(0.02).allows(result) and DriftLimits(0.03).allows(result)


def test_only_the_compared_columns_count(pair: tuple[str, str]) -> None:
    """Changes in other columns are reported only; by default scores do not count."""
    edit(pair[1], {("a.parquet", 3): {"sum_generated_text": "other", "cls_label_score": 0.0}})
    assert compared(pair, "cls_label").changed == 0
    assert compared(pair, "cls_label_score").changed == 1
    by_default = compared(pair)
    gated = {column.name for column in by_default.columns if column.is_gated}
    assert gated == {"sum_generated_text", "cls_label", "topic_tags"}
    assert by_default.changed == 1
    assert "--on" in refusal(UserError, lambda: compared(pair, "label"))


def test_drift_is_measured_on_the_pairs(pair: tuple[str, str]) -> None:
    """Means, the largest difference and Pearson's r are as numpy computes them."""
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
    assert not DriftLimits(1.0, 0.04).allows(compared(pair))
    assert DriftLimits(1.0, 0.05).allows(compared(pair))


def test_lists_are_compared_regardless_of_order(pair: tuple[str, str]) -> None:
    """Added and removed elements are counted."""
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


def test_texts_have_a_similarity(pair: tuple[str, str]) -> None:
    """It is the mean over all rows, in which an equal text counts as 1."""
    before = row(pair[0], "a.parquet", 3)["sum_generated_text"]
    edit(pair[1], {("a.parquet", 3): {"sum_generated_text": f"{before} and more"}})
    text = column(compared(pair), "sum_generated_text")
    assert text.likeness == pytest.approx((38 + chrf(before, f"{before} and more")) / 39)


def test_a_row_that_one_output_rejects_has_changed(pair: tuple[str, str]) -> None:
    """Rejects in only one of the outputs are counted by class."""
    error = {"class": "timeout", "message": "too slow", "attempts": 1}
    edit(pair[0], {("a.parquet", 3): {"error": error}})
    edit(pair[1], {("a.parquet", 4): {"error": error}, ("b.parquet", 1): {"error": error}})
    result = compared(pair)
    assert (result.rejects_gained, result.rejects_lost) == ({"timeout": 1}, {"timeout": 1})
    assert (result.changed, result.answered, result.rejected_in_both) == (2, 37, 1)


def test_a_row_that_one_output_lacks_counts_as_changed(pair: tuple[str, str]) -> None:
    """An unfinished output or another filter counts toward the limit."""
    lost = open_output(LocalStore(pair[1])).plan.units[0]
    Path(pair[1], lost.key).unlink()
    result = compared(pair)
    assert (result.rows, result.only_a, result.only_b) == (37, 3, 0)
    assert result.changed_share == pytest.approx(3 / 40)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"limit": 30}, ("b.parquet", "20 rows", "10 in the second")),
        ({"limit": 20}, ("b.parquet is not in",)),
    ],
)
def test_outputs_of_different_rows_are_refused(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    """The error names the first difference."""
    pair = output(tmp_path, "one"), output(tmp_path, "two", **changes)
    message = refusal(UserError, lambda: compared(pair))
    assert all(part in message for part in parts)


def test_a_shard_that_was_overwritten_is_refused(tmp_path: Path) -> None:
    """A copy of the corpus in another folder may be compared."""
    one = output(tmp_path, "one")
    path = tmp_path / "corpus" / "b.parquet"
    path.write_bytes(path.read_bytes())
    pair = one, output(tmp_path, "two")
    assert "b.parquet was overwritten" in refusal(UserError, lambda: compared(pair))
    (tmp_path / "elsewhere").mkdir()
    pair = one, output(tmp_path / "elsewhere", "two")
    assert compared(pair).changed == 0


def test_the_exit_code_says_whether_the_limits_are_kept(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    """0 within the limits, 1 beyond them, 2 for a user error; JSON holds the verdict."""
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


def comparable(
    folder: Path,
    name: str,
    tasks: list[dict[str, Any]],
    columns: dict[str, str] | None = None,
    **keys: Any,
) -> str:
    """A finished output of the same 40 rows with other tasks, and other names for columns."""
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus, TEXTS)
    data = job_over(corpus, folder / name, tasks=tasks, **keys)
    data["output"]["columns"] = columns
    job = Job.model_validate(data)
    drive(job, LocalStore(str(folder / name)))
    return str(folder / name)


GENERATE = {"kind": "generate", "name": "sum"}
RERANK = {"kind": "rerank", "name": "pair", "query": "a word", "document": "{{ text }}"}
EMBED = {"kind": "embed", "name": "vector", "prompt": {"text": "{{ text }}"}}


@pytest.mark.parametrize(
    ("one", "other", "keys"),
    [
        (GENERATE, {**GENERATE, "name": "title"}, {}),
        # Both have the column `cleaned`, which is no answer.
        (
            GENERATE,
            {**GENERATE, "name": "title"},
            {"clean": {"columns": ["text"], "steps": ["nfc"]}},
        ),
        (
            GENERATE,
            {**GENERATE, "name": "title"},
            {
                "clean": {"columns": ["text"], "steps": ["nfc"]},
                "columns": {"cleaned": "changes"},
            },
        ),
        (GENERATE, {**GENERATE, "n": 2}, {"sampling": {"max_tokens": 16, "seed": 1}}),
        (EMBED, EMBED, {"sampling": None}),
    ],
    ids=["names", "cleaned", "cleaned with another name", "fields", "vectors"],
)
def test_outputs_without_a_common_answer_are_refused(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], keys: dict[str, Any]
) -> None:
    """A gate must not pass because there was nothing to compare: exit code 2, and no page."""
    pair = comparable(tmp_path, "one", [one], **keys), comparable(tmp_path, "two", [other], **keys)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["compare", *pair, "--to", str(page)])
    assert done.exit_code == ExitCode.USER_ERROR, done.stdout
    assert all(path in done.stderr for path in pair)
    assert not page.exists()


def test_scores_are_compared_only_if_a_limit_applies_to_them(tmp_path: Path) -> None:
    """Fractional numbers count with `--on`, and their means with `--max-drift`."""
    keys: dict[str, Any] = {"sampling": None, "prompt": None}
    one, two = (comparable(tmp_path, name, [RERANK], **keys) for name in ("one", "two"))
    pair = one, two
    done = CliRunner().invoke(app, ["compare", *pair])
    assert done.exit_code == ExitCode.USER_ERROR
    assert "--on" in done.stderr and "--max-drift" in done.stderr
    for option, value in (("--on", "pair_relevance"), ("--max-drift", "0.1")):
        done = CliRunner().invoke(app, ["compare", *pair, option, value])
        assert done.exit_code == ExitCode.FINISHED, done.stderr


@pytest.mark.parametrize("reason", ["other units", "other rows", "all rejected"])
def test_outputs_without_a_common_answered_row_are_refused(tmp_path: Path, reason: str) -> None:
    """Units that only one output has, filters that exclude each other, or only rejects."""
    if reason == "all rejected":
        model = {"source": "fake", "engine": {"error_rate": 1.0}}
        pair = [comparable(tmp_path, name, [GENERATE], model=model) for name in ("one", "two")]
    else:
        filters = (
            {"a": "id < 5", "b": "id > 5"} if reason == "other rows" else {"a": None, "b": None}
        )
        pair = [output(tmp_path, name, where=where) for name, where in filters.items()]
        units = open_output(LocalStore(pair[0])).plan.units if reason == "other units" else ()
        for number, unit in enumerate(units):
            Path(pair[number % 2], unit.key).unlink()
    done = CliRunner().invoke(app, ["compare", *pair, "--max-changed", "1"])
    assert done.exit_code == ExitCode.USER_ERROR, done.stdout
    assert all(path in done.stderr for path in pair)


def test_rows_are_escaped_in_the_page(pair: tuple[str, str]) -> None:
    """Markup in the cells of either output stays text."""
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
def test_similarity_is_chrf(one: str, other: str) -> None:
    """The score equals sacreBLEU's with beta 1, for either order."""
    reference = CHRF(beta=1, eps_smoothing=False).sentence_score(one, [other]).score / 100
    assert chrf(one, other) == pytest.approx(reference, abs=1e-6)
    assert chrf(one, other) == pytest.approx(chrf(other, one))


def test_texts_without_common_characters_have_similarity_0() -> None:
    """Equal texts, empty ones included, have similarity 1."""
    assert chrf("abc", "xyz") == 0
    assert chrf("abc", "abc") == chrf("", " ") == 1
    assert chrf("", "abc") == 0
    assert not math.isnan(chrf("a", "b"))
