"""An estimate equals what the run then counts, and writes nothing."""

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
def test_a_sample_of_all_rows_equals_the_run(
    corpus: Path, tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    """Input tokens, rejects and rows are those of the run, for each kind of task."""
    keys = {"input": {"path": str(corpus)}, **changes}
    keys["input"] = {**keys["input"], "path": str(corpus)}
    estimated = job(corpus, tmp_path / "out", **keys)
    result = estimate(estimated, 1000)
    summary = run_once(estimated, tmp_path / "out")
    assert summary.totals is not None
    assert result.input_tokens == exactly(summary.input_tokens)
    assert result.passing_rows == exactly(summary.totals.rows)
    assert result.rejects == exactly(summary.rejected)
    assert {name: count.estimate for name, count in result.rejects_by_class.items()} == dict(
        summary.totals.rejects
    )
    assert summary.generated_tokens <= result.output_tokens.most


CHAIN: dict[str, Any] = {
    "tasks": [
        {"kind": "generate", "name": "topic"},
        {"kind": "generate", "name": "title", "prompt": {"user": "{{ topic_generated_text }}"}},
        {
            "kind": "classify",
            "name": "mood",
            "choices": CHOICES,
            "prompt": {"user": "{{ title_generated_text }} {{ text }}"},
        },
    ]
}


def test_a_chain_of_tasks_takes_its_tokens_from_a_previous_run(
    corpus: Path, tmp_path: Path
) -> None:
    """Only the first task can be counted on a sample; the run of a part has the means of all."""
    output = tmp_path / "out"
    chain = job(corpus, output, **CHAIN)
    summary = run_once(chain, output)
    without = estimate(chain, 1000)
    assert without.input_tokens.estimate < summary.input_tokens / 2
    result = estimate(chain, 1000, previous=str(output))
    assert result.input_tokens.estimate == summary.input_tokens
    assert result.output_tokens.estimate == summary.generated_tokens
    assert result.not_counted == without.not_counted != ()
    assert all(name in result.not_counted[0] for name in ("title", "mood"))
    path = write_job(tmp_path / "job.json", corpus, output, **CHAIN)
    shown = " ".join(plan(path, "--from", output).stdout.split())
    assert f"input tokens {summary.input_tokens:,}" in shown
    assert "in first requests not counted title, mood" in shown


def test_what_the_sample_counts_is_not_replaced(corpus: Path, tmp_path: Path) -> None:
    """If nothing is left out, a previous run of other rows does not change the input tokens."""
    part = job(corpus, tmp_path / "out", input={"path": str(corpus), "limit": 3})
    run_once(part, tmp_path / "out")
    whole = job(corpus, tmp_path / "whole")
    with_previous = estimate(whole, 1000, previous=str(tmp_path / "out"))
    assert with_previous.input_tokens == estimate(whole, 1000).input_tokens


def test_an_interval_contains_what_the_run_counts(corpus: Path, tmp_path: Path) -> None:
    """A sample of a third of the rows is enough; another seed draws other rows."""
    estimated = job(corpus, tmp_path / "out")
    tokens = run_once(estimated, tmp_path / "out").input_tokens
    intervals = [estimate(estimated, 20, seed).input_tokens for seed in range(20)]
    assert sum(interval.low <= tokens <= interval.high for interval in intervals) >= 15
    assert len({interval.estimate for interval in intervals}) > 1
    assert estimate(estimated, 20, 3) == estimate(estimated, 20, 3)


def test_truncated_and_divided_rows_are_counted(corpus: Path) -> None:
    """They are the rows that the length policy changes."""
    model = {"source": "fake", "engine": {"max_model_len": 28}}
    truncated = job(corpus, length={"policy": "truncate", "column": "text"}, model=model)
    chunk = {"policy": "chunk", "column": "text", "join": "concatenate"}
    divided = job(corpus, length=chunk, model=model)
    assert estimate(job(corpus), 1000).truncated == exactly(0)
    assert estimate(truncated, 1000).truncated.estimate > 5
    assert estimate(divided, 1000).divided == estimate(truncated, 1000).truncated
    assert estimate(divided, 1000).truncated == estimate(truncated, 1000).divided == exactly(0)


def test_a_task_that_depends_on_another_is_named_in_the_notes(corpus: Path) -> None:
    """Its prompts are not known before the other task has answered."""
    second = {"kind": "generate", "name": "two", "prompt": {"user": "{{ one_generated_text }}"}}
    result = estimate(job(corpus, tasks=[{"kind": "generate", "name": "one"}, second]), 1000)
    assert result.input_tokens == estimate(job(corpus), 1000).input_tokens
    assert any("two" in names for names in result.not_counted)
    assert set(result.prompts[0].prompts) == {"one"}


def test_a_previous_run_gives_the_length_of_answers(corpus: Path, tmp_path: Path) -> None:
    """Its mean is used for all rows; without a previous run, max_tokens is the limit."""
    small = job(corpus, tmp_path / "try", input={"path": str(corpus), "where": "id < 5"})
    summary = run_once(small, tmp_path / "try")
    # Five rows of each of the three shards.
    mean = summary.generated_tokens / 15
    result = estimate(job(corpus), 1000, previous=str(tmp_path / "try"))
    assert result.output_tokens.estimate == round(mean * NUM_ROWS)
    assert result.output_tokens.is_measured
    # Six blank rows are never sent.
    assert result.output_tokens.most == 16 * (NUM_ROWS - 6)
    assert estimate(job(corpus), 1000).output_tokens.estimate == 16 * (NUM_ROWS - 6)


def test_a_previous_run_gives_the_speed(corpus: Path, tmp_path: Path) -> None:
    """It is tokens divided by the engines' seconds and by the number of replicas."""
    first = job(corpus, tmp_path / "try", model={"source": "fake", "replicas": 2})
    summary = run_once(first, tmp_path / "try")
    (path,) = (tmp_path / "try").glob("_tokenmill/runs/*/summary.json")
    path.write_text(json.dumps({**asdict(summary), "engine_seconds": 10.0}))
    rate = (summary.input_tokens + summary.generated_tokens) / 20
    model = {"source": "fake", "replicas": 4, "gpus_per_replica": 8, "price_per_gpu_hour": 2.0}
    result = estimate(job(corpus, model=model), 1000, previous=str(tmp_path / "try"))
    assert result.speed is not None
    assert result.speed.input_tokens_per_s == pytest.approx(rate, abs=0.1)
    # The same tokens took two replicas 10 s, so four replicas take 5 s.
    assert result.seconds_per_replica == pytest.approx(5.0, abs=0.1)
    assert result.gpu_hours == pytest.approx(20 * 8 / 3600, rel=0.01)
    assert result.cost == pytest.approx(20 * 8 / 3600 * 2, abs=0.01)


def test_a_previous_run_without_rows_is_refused(corpus: Path, tmp_path: Path) -> None:
    """So is a folder without an output."""
    with pytest.raises(UserError, match="No tokenmill output"):
        estimate(job(corpus), previous=str(tmp_path / "nowhere"))
    run_once(job(corpus, tmp_path / "try"), tmp_path / "try")
    for unit in (tmp_path / "try" / "data").rglob("*.parquet"):
        unit.unlink()
    with pytest.raises(UserError, match="no rows are committed"):
        estimate(job(corpus), previous=str(tmp_path / "try"))


def test_the_table_scales_to_similar_models() -> None:
    """Twice the parameters take twice as long; models of very different size have no speed."""
    small, large = speed_of("h200", 8_000_000_000), speed_of("h200", 16_000_000_000)
    assert small is not None
    assert large is not None
    assert large.seconds(1000, 1000) == pytest.approx(2 * small.seconds(1000, 1000))
    assert speed_of("h200", 135_000_000) is None
    assert speed_of("cpu", 8_000_000_000) is None
    assert speed_of("abacus", 135_000_000) is None


def test_the_table_agrees_with_the_measurements() -> None:
    """110 tokens in and 80 out at 495 tokens per second: docs/performance.md, W2."""
    speed = speed_of("cpu", 135_000_000)
    assert speed is not None
    assert 190 / speed.seconds(110, 80) == pytest.approx(495, rel=0.01)
    assert Speed(2.0, 4.0, "").seconds(8, 8) == 6.0


def test_the_price_is_not_part_of_the_fingerprint(corpus: Path) -> None:
    """An output may be resumed at another price."""
    priced = job(corpus, model={"source": "fake", "price_per_gpu_hour": 2.5})
    assert priced.fingerprint == job(corpus, model={"source": "fake"}).fingerprint


def test_the_printed_estimate_fits_the_screen(corpus: Path, tmp_path: Path) -> None:
    """It shows rows, tokens, rejects and three prompts in at most 100 columns."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    shown = plan(path, "--sample", "30")
    assert shown.exit_code == ExitCode.FINISHED, shown.output
    assert max(map(len, shown.stdout.replace(str(tmp_path), "").splitlines())) <= 100
    for part in ("60 in 3 shards", "30 units", "empty_input", "at most 8", "<|user|>"):
        assert part in shown.stdout
    assert shown.stdout.count(" row ") >= 3
    assert sorted(tmp_path.rglob("*")) == before


def test_tasks_with_the_same_prompt_share_its_box(corpus: Path, tmp_path: Path) -> None:
    """Four tasks on one prompt give a box a row, before the figures; another prompt has its own."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    tasks = [{"name": name, "kind": "generate"} for name in ("one", "two", "three")]
    tasks.append({"name": "other", "kind": "generate", "prompt": {"user": "Why? {{ text }}"}})
    lines = plan(path, "--set", f"tasks={json.dumps(tasks)}").stdout.splitlines()
    titles = [line for line in lines if line.startswith("╭")]
    assert ["one, two, three: " in title for title in titles] == [True, False] * 3
    assert all("other: " in title for title in titles[1::2])
    last_box = max(number for number, line in enumerate(lines) if line.startswith("╰"))
    assert all(not line.startswith("rows  ") for line in lines[:last_box])
    assert any(line.startswith("rows  ") for line in lines[last_box:])


def test_json_follows_its_schema_and_can_be_saved(corpus: Path, tmp_path: Path) -> None:
    """It has the keys that `report --plan` compares; --save writes the same JSON."""
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


def test_errors_are_one_line(corpus: Path, tmp_path: Path) -> None:
    """No rows, an unknown device, a file that cannot be written, a missing model."""
    path = write_job(tmp_path / "job.json", corpus, tmp_path / "out")
    nowhere = {"path": str(corpus), "where": "id > 999"}
    empty = write_job(tmp_path / "empty.json", corpus, tmp_path / "out", input=nowhere)
    for arguments, part in (
        ([path, "--on", "abacus"], "h200"),
        ([empty], "nothing to estimate"),
        ([path, "--save", tmp_path / "no" / "plan.json"], "--save"),
        ([path, "--set", "model={source: owner/unheard-of}"], "tokenmill models fetch owner/unhe"),
    ):
        done = plan(*arguments)
        assert done.exit_code == ExitCode.USER_ERROR, done.output
        (line,) = done.stderr.splitlines()
        assert part in line
    pq.write_table(pa.table({"id": [1][:0], "text": [""][:0]}), tmp_path / "none.parquet")
    assert "nothing to estimate" in plan(path, "--input", tmp_path / "none.parquet").stderr
