"""What comparisons with the real engine say without it: agreement, options, jobs of variants."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tokenmill.job.job import Job

from bench import workloads
from bench.agreement import largest_difference, same_best
from bench.peers import engine_options
from bench.prefixes import found_by_unlimited

OURS = [{"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.5}]
THEIRS = [{"a": 0.74, "b": 0.26}, {"a": 0.45, "b": 0.55}]


def test_probabilities_differ_by_their_largest_difference() -> None:
    """Over all rows and labels; the likeliest label is another in one row of two."""
    assert largest_difference(OURS, THEIRS) == pytest.approx(0.05)
    assert largest_difference(OURS, OURS) == 0
    assert same_best(OURS, THEIRS) == 0.5


def test_rows_that_one_of_two_systems_lacks_are_no_agreement() -> None:
    """They are not passed over."""
    with pytest.raises(ValueError, match="shorter"):
        largest_difference(OURS, THEIRS[:1])


def test_the_engines_arguments_become_options() -> None:
    """A truth value is an option or its opposite."""
    words = engine_options({"max_num_seqs": 64, "enforce_eager": True, "async_scheduling": False})
    assert words == ["--max-num-seqs", "64", "--enforce-eager", "--no-async-scheduling"]


def test_a_larger_block_finds_less() -> None:
    """Of 300 tokens in common blocks of 128 find two; the first prompt finds nothing."""
    prompts = [[*range(300), own] for own in (1_000, 1_001, 1_002)]
    assert found_by_unlimited(prompts, 128) == 2 * 256
    assert found_by_unlimited(prompts, 16) == 2 * 288


def test_both_orders_ask_the_same_questions(tmp_path: Path) -> None:
    """Five tasks over a document are five rows, each question with each document once."""
    made = workloads.questions(tmp_path, num_documents=2)
    jobs = {
        system: Job.model_validate(yaml.safe_load(job_file.read_text()))
        for system in ("tokenmill", "tokenmill-shuffled")
        for job_file in [made.write_job(tmp_path / f"{system}.yaml", system, "out")]
    }
    assert len(jobs["tokenmill"].steps) == 5
    assert len(jobs["tokenmill-shuffled"].steps) == 1
    documents = pq.read_table(jobs["tokenmill"].input.path)["text"].to_pylist()
    pairs = pq.read_table(jobs["tokenmill-shuffled"].input.path)
    assert sorted(pairs["text"].to_pylist()) == sorted(documents * 5)
    assert len(set(zip(*pairs.to_pydict().values(), strict=True))) == 10
