"""What a run will take, told before it: the same figures as the run's own, nothing written."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, job_over, write_corpus
from pydantic import TypeAdapter
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.estimate.estimate import Estimate, estimate
from tokenmill.estimate.statistics import Interval
from tokenmill.estimate.throughput_table import Speed, speed_of
from tokenmill.job.job import Job
from tokenmill.run.summary import Summary
from tokenmill.storage.open import open_store
from typer.testing import CliRunner, Result

NUM_ROWS = 60


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three shards of twenty rows; every tenth text is blank."""
    texts = [" " if row % 10 == 3 else f"text {'word ' * (row % 7)}" for row in range(NUM_ROWS)]
    return write_corpus(
        tmp_path / "corpus", {f"{at}.parquet": texts[20 * at : 20 * at + 20] for at in range(3)}
    )


def job(corpus: Path, output: Path | str = "out", **changes: Any) -> Job:
    return Job.model_validate(job_over(corpus, output, **changes))


def write_job(path: Path, corpus: Path, output: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(job_over(corpus, output, **changes)))
    return path


def plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def exactly(number: int) -> Interval:
    return Interval(number, number, number)


def run_once(job: Job, output: Path) -> Summary:
    summary = drive(job, open_store(str(output)))
    assert summary is not None
    return summary


CHOICES = {"a": "the first", "b": "the second", "c": "the third"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": {"text": "{{ text }}"}},
        {"task": {"kind": "generate", "n": 3}, "sampling": {"max_tokens": 16, "seed": 1}},
        {"task": {"kind": "classify", "choices": CHOICES}, "sampling": None},
        {"task": {"kind": "tag", "choices": CHOICES}, "sampling": None},
        {
            "task": {"kind": "score", "window": 8},
            "sampling": None,
            "prompt": {"text": "{{ text }}"},
        },
        {"task": {"kind": "embed"}, "sampling": None, "prompt": {"text": "{{ text }}"}},
        {
            "length": {"policy": "truncate", "column": "text"},
            "model": {"source": "fake", "engine": {"max_model_len": 28}},
        },
        {"input": {"path": "", "where": "id < 9"}},
        {
            "tasks": [
                {"kind": "generate", "name": "one"},
                {"kind": "classify", "name": "two", "choices": CHOICES},
            ]
        },
    ],
    ids=lambda changes: "-".join(changes) or "generate",
)
def test_a_sample_of_all_rows_counts_what_the_run_counts(
    corpus: Path, tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    """Input tokens, rejects and rows of a job are the run's own, for each kind of task."""
    wanted = {"input": {"path": str(corpus)}, **changes}
    wanted["input"] = {**wanted["input"], "path": str(corpus)}
    asked = job(corpus, tmp_path / "out", **wanted)
    found = estimate(asked, 1000)
    summary = run_once(asked, tmp_path / "out")
    assert summary.totals is not None
    assert found.input_tokens == exactly(summary.input_tokens)
    assert found.passing_rows == exactly(summary.totals.rows)
    assert found.rejects == exactly(summary.rejected)
    assert {name: count.estimate for name, count in found.rejects_by_class.items()} == dict(
        summary.totals.rejects
    )
    assert summary.generated_tokens <= found.output_tokens.most


def test_an_interval_holds_what_the_run_counts(corpus: Path, tmp_path: Path) -> None:
    """A sample of a third tells of the whole, and another seed draws other rows."""
    asked = job(corpus, tmp_path / "out")
    tokens = run_once(asked, tmp_path / "out").input_tokens
    found = [estimate(asked, 20, seed).input_tokens for seed in range(20)]
    assert sum(each.low <= tokens <= each.high for each in found) >= 15
    assert len({each.estimate for each in found}) > 1
    assert estimate(asked, 20, 3) == estimate(asked, 20, 3)


def test_rows_that_are_cut_or_divided_are_counted(corpus: Path) -> None:
    """By what the length policy does to them."""
    model = {"source": "fake", "engine": {"max_model_len": 28}}
    cut = job(corpus, length={"policy": "truncate", "column": "text"}, model=model)
    chunk = {"policy": "chunk", "column": "text", "join": "concatenate"}
    divided = job(corpus, length=chunk, model=model)
    assert estimate(job(corpus), 1000).truncated == exactly(0)
    assert estimate(cut, 1000).truncated.estimate > 5
    assert estimate(divided, 1000).divided == estimate(cut, 1000).truncated
    assert estimate(divided, 1000).truncated == estimate(cut, 1000).divided == exactly(0)


def test_a_task_that_waits_for_another_is_named(corpus: Path) -> None:
    """Its prompts are not known before the first has answered."""
    second = {"kind": "generate", "name": "two", "prompt": {"user": "{{ one_generated_text }}"}}
    found = estimate(job(corpus, tasks=[{"kind": "generate", "name": "one"}, second]), 1000)
    assert found.input_tokens == estimate(job(corpus), 1000).input_tokens
    assert any("two" in note for note in found.notes)
    assert set(found.prompts[0].prompts) == {"one"}


def test_a_former_run_tells_how_long_answers_are(corpus: Path, tmp_path: Path) -> None:
    """Its mean holds for rows that were not in it; without one max_tokens is the bound."""
    small = job(corpus, tmp_path / "try", input={"path": str(corpus), "where": "id < 5"})
    summary = run_once(small, tmp_path / "try")
    # Of each of the three shards.
    mean = summary.generated_tokens / 15
    found = estimate(job(corpus), 1000, previous=str(tmp_path / "try"))
    assert found.output_tokens.estimate == round(mean * NUM_ROWS)
    assert found.output_tokens.is_measured
    # Six blank rows are never sent.
    assert found.output_tokens.most == 16 * (NUM_ROWS - 6)
    assert estimate(job(corpus), 1000).output_tokens.estimate == 16 * (NUM_ROWS - 6)


def test_a_former_run_tells_the_pace(corpus: Path, tmp_path: Path) -> None:
    """Tokens by the seconds that engines were there, over the replicas that it had."""
    asked = job(corpus, tmp_path / "try", model={"source": "fake", "replicas": 2})
    summary = run_once(asked, tmp_path / "try")
    (path,) = (tmp_path / "try").glob("_tokenmill/runs/*/summary.json")
    path.write_text(json.dumps({**asdict(summary), "engine_seconds": 10.0}))
    pace = (summary.input_tokens + summary.generated_tokens) / 20
    model = {"source": "fake", "replicas": 4, "gpus_per_replica": 8, "price_per_gpu_hour": 2.0}
    found = estimate(job(corpus, model=model), 1000, previous=str(tmp_path / "try"))
    assert found.speed is not None
    assert found.speed.input_tokens_per_s == pytest.approx(pace, abs=0.1)
    # The same tokens took two replicas ten seconds; four take five.
    assert found.seconds_per_replica == pytest.approx(5.0, abs=0.1)
    assert found.gpu_hours == pytest.approx(20 * 8 / 3600, rel=0.01)
    assert found.cost == pytest.approx(20 * 8 / 3600 * 2, abs=0.01)


def test_a_former_run_without_rows_is_refused(corpus: Path, tmp_path: Path) -> None:
    """And so is a folder in which none stands."""
    with pytest.raises(UserError, match="No tokenmill output"):
        estimate(job(corpus), previous=str(tmp_path / "nowhere"))
    run_once(job(corpus, tmp_path / "try"), tmp_path / "try")
    for unit in (tmp_path / "try" / "data").rglob("*.parquet"):
        unit.unlink()
    with pytest.raises(UserError, match="no row is answered"):
        estimate(job(corpus), previous=str(tmp_path / "try"))


def test_the_table_knows_models_near_to_its_own() -> None:
    """Twice the parameters take twice as long; of a model far from all there is no figure."""
    small, large = speed_of("h200", 8_000_000_000), speed_of("h200", 16_000_000_000)
    assert small is not None
    assert large is not None
    assert large.seconds(1000, 1000) == pytest.approx(2 * small.seconds(1000, 1000))
    assert speed_of("h200", 135_000_000) is None
    assert speed_of("cpu", 8_000_000_000) is None
    assert speed_of("abacus", 135_000_000) is None


def test_the_table_repeats_what_was_measured() -> None:
    """A row of 110 tokens in and 80 out at 495 tokens a second; docs/performance.md, W2."""
    speed = speed_of("cpu", 135_000_000)
    assert speed is not None
    assert 190 / speed.seconds(110, 80) == pytest.approx(495, rel=0.01)
    assert Speed(2.0, 4.0, "").seconds(8, 8) == 6.0


def test_the_price_changes_no_fingerprint(corpus: Path) -> None:
    """An output may be resumed at another price."""
    priced = job(corpus, model={"source": "fake", "price_per_gpu_hour": 2.5})
    assert priced.fingerprint == job(corpus, model={"source": "fake"}).fingerprint


def test_the_figures_fit_the_screen(corpus: Path, tmp_path: Path) -> None:
    """Rows, tokens with separators, rejects and three prompts, 100 columns wide at most."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    shown = plan(path, "--sample", "30")
    assert shown.exit_code == ExitCode.FINISHED, shown.output
    assert max(map(len, shown.stdout.replace(str(tmp_path), "").splitlines())) <= 100
    for part in ("60 in 3 shards", "30 units", "empty_input", "at most 8", "<|user|>"):
        assert part in shown.stdout
    assert shown.stdout.count(" row ") >= 3
    assert sorted(tmp_path.rglob("*")) == before


def test_json_is_as_its_schema_says_and_can_be_kept(corpus: Path, tmp_path: Path) -> None:
    """With the keys that a report sets beside the run; --save writes the same."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    saved = tmp_path / "plan.json"
    shown = plan(path, "--json", "--save", saved)
    assert shown.exit_code == ExitCode.FINISHED, shown.output
    figures = json.loads(shown.stdout)
    assert json.loads(saved.read_text()) == figures
    jsonschema.validate(figures, TypeAdapter(Estimate).json_schema())
    assert figures["rows"] == NUM_ROWS
    assert set(figures["input_tokens"]) == {"estimate", "low", "high"}
    assert figures["output_tokens"]["estimate"] == 16 * (NUM_ROWS - 6)
    assert (figures["gpu_hours"], figures["cost"]) == (None, None)
    assert figures["seconds_per_replica"] is None
    assert len(figures["prompts"]) == 3


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path) -> None:
    """No rows that pass, an unknown device, a place that cannot be written, a missing model."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    nowhere = {"path": str(corpus), "where": "id > 999"}
    empty = write_job(tmp_path / "empty.json", corpus, tmp_path / "out", input=nowhere)
    for arguments, part in (
        ([path, "--on", "abacus"], "h200"),
        ([empty], "no row to count"),
        ([path, "--save", tmp_path / "no" / "plan.json"], "--save"),
        ([path, "--set", "model={source: owner/unheard-of}"], "tokenmill models fetch owner/unhe"),
    ):
        done = plan(*arguments)
        assert done.exit_code == ExitCode.USER_ERROR, done.output
        (line,) = done.stderr.splitlines()
        assert part in line
    pq.write_table(pa.table({"id": [1][:0], "text": [""][:0]}), tmp_path / "none.parquet")
    assert "no row to count" in plan(path, "--input", tmp_path / "none.parquet").stderr
