"""`validate` and `preview`: checks of a job within seconds, and answers for a few rows."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.factories import strings_of_bytes
from helpers.inprocess import invoke, job_over, write_corpus
from rich.console import Console
from rich.text import Text
from tokenmill.commands.terminal import facts_table, plain_table
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.run.preview import PreviewedRow, preview

NUM_ROWS = 40


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards of ten rows; one text is blank."""
    texts = [f"text {row}" for row in range(NUM_ROWS)]
    texts[7] = " "
    shards = {f"{shard}.parquet": texts[10 * shard :][:10] for shard in range(4)}
    return write_corpus(tmp_path / "corpus", shards)


@pytest.fixture
def job_file(corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job_over(corpus, tmp_path / "out")))
    return path


def previewed(corpus: Path, count: int, seed: int = 0, **changes: Any) -> list[PreviewedRow]:
    return preview(Job.model_validate(job_over(corpus, "out", **changes)), count, seed)


def positions(rows: list[PreviewedRow]) -> list[tuple[str, int]]:
    return [(row.source_file, row.source_row) for row in rows]


def test_rows_are_drawn_from_the_whole_input_by_the_seed(corpus: Path) -> None:
    """The same seed draws the same rows, another seed others; no row is drawn twice."""
    rows = previewed(corpus, 8)
    assert len(set(positions(rows))) == 8
    assert len({row.source_file for row in rows}) > 1
    assert positions(previewed(corpus, 8)) == positions(rows)
    assert positions(previewed(corpus, 8, seed=1)) != positions(rows)


def test_text_that_is_not_utf8_is_shown_as_a_reject(tmp_path: Path) -> None:
    """The other rows are shown with their answers."""
    texts = strings_of_bytes([b"fine", b"caf\xe9"])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pq.write_table(pa.table({"id": range(2), "text": texts}), corpus / "a.parquet")
    fine, broken = sorted(previewed(corpus, 2), key=lambda row: row.source_row)
    assert fine.read["text"] == "fine" and fine.written["error"] is None
    assert broken.read["text"] == "(text that is not UTF-8)"
    assert broken.written["error"]["class"] == "bad_text"


def test_a_large_count_shows_all_rows(corpus: Path) -> None:
    """Each with what the job reads and what a run would write, rejects included."""
    rows = previewed(corpus, 1000)
    assert len(set(positions(rows))) == NUM_ROWS
    for row in rows:
        number = 10 * int(row.source_file[0]) + row.source_row
        is_blank = number == 7
        assert row.read == {"text": " " if is_blank else f"text {number}", "id": row.source_row}
        assert (row.written["generated_text"] is None) == is_blank
        assert (row.written["error"] is not None) == is_blank


def test_only_rows_that_pass_the_filter_are_drawn(corpus: Path) -> None:
    """If no row passes, the message says so."""
    where = {"path": str(corpus), "keep": ["id"], "where": "id = 3"}
    assert {row.source_row for row in previewed(corpus, 9, input=where)} == {3}
    with pytest.raises(UserError, match="no row to show"):
        previewed(corpus, 9, input={**where, "where": "id = 99"})


def test_a_preview_is_shown_and_nothing_is_written(job_file: Path, tmp_path: Path) -> None:
    """On the terminal in 100 columns, or as data with `--json`."""
    before = sorted(tmp_path.rglob("*"))
    shown = invoke("preview", job_file, "-n", "2", "--where", "id = 3")
    assert shown.exit_code == ExitCode.FINISHED, shown.stderr
    assert shown.stdout.count("row 3") == 3  # The prompt's title and two tables.
    assert max(map(len, shown.stdout.splitlines())) <= 100
    data = invoke("preview", job_file, "-n", "2", "--where", "id = 3", "--json")
    rows = json.loads(data.stdout)
    assert [row["source_row"] for row in rows] == [3, 3]
    assert all(row["written"]["generated_text"] in shown.stdout for row in rows)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_prompts_of_one_row_are_shown(job_file: Path) -> None:
    """As the model reads them; the data has those of every row that has one."""
    arguments = ("preview", job_file, "-n", "3", "--where", "id < 8")
    shown = invoke(*arguments).stdout
    assert shown.count("<|user|>") == 1
    rows = json.loads(invoke(*arguments, "--json").stdout)
    for row in rows:
        prompt = row["prompts"].get("generate")
        assert prompt is None if row["written"]["error"] else row["read"]["text"] in prompt
    assert any(row["prompts"] for row in rows)


def test_a_text_without_spaces_is_shown_completely(tmp_path: Path) -> None:
    """Chinese text is one word, longer than its column; it continues in the next line."""
    text = "".join(chr(0x4E00 + number) for number in range(120))
    corpus = write_corpus(tmp_path / "corpus", {"0.parquet": [text]})
    job_file = tmp_path / "job.json"
    job_file.write_text(json.dumps(job_over(corpus, tmp_path / "out")))
    shown = invoke("preview", job_file)
    assert shown.exit_code == ExitCode.FINISHED, shown.stderr
    assert set(text) <= set(shown.stdout)


@pytest.mark.parametrize("is_fact", [True, False])
def test_no_table_cuts_a_long_word(is_fact: bool) -> None:
    """A path or a text without spaces may be longer than the terminal is wide."""
    word = "".join(chr(0x4E00 + number) for number in range(120))
    if is_fact:
        table = facts_table({"output": word})
    else:
        table = plain_table("rows", "why", numbers=("rows",))
        table.add_row("1", Text(word))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table)
    assert set(word) <= set(console.export_text())


def test_a_valid_job_is_described(job_file: Path, tmp_path: Path) -> None:
    """With rows, shards, units and the output's columns; nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    done = invoke("validate", job_file)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert "40 in 4 shards and 20 units" in done.stdout
    facts = json.loads(invoke("validate", job_file, "--json").stdout)
    assert (facts["rows"], facts["shards"], facts["units"]) == (40, 4, 20)
    assert facts["columns"]["id"] == "int64"
    assert facts["columns"]["generated_text"] == "string"
    assert facts["models"] == [{"place": "model", "source": "fake", "is_fetched": True}]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_job_that_cannot_be_run_is_refused(job_file: Path, corpus: Path) -> None:
    """With the message and the exit code of a run."""
    for setting, part in (
        ("prompt.user={{ body }}", "body"),
        ("model.engine.step_seconds=1", "step_s"),
        ("input.keep=[error]", "rename"),
        ("sampling.max_token=5", "max_tokens"),
        ("task={kind: classify, choices: [a, a]}", "choices"),
    ):
        done = invoke("validate", job_file, "--set", setting)
        assert done.exit_code == ExitCode.USER_ERROR, done.stdout
        (line,) = done.stderr.splitlines()
        assert part in line
    pq.write_table(pa.table({"id": ["a"]}), corpus / "0.parquet")
    assert "0.parquet" in invoke("validate", job_file).stderr
