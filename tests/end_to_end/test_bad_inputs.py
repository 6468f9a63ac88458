"""Bad inputs (`bad_inputs`): each becomes what its table says, and never something silent.

Driven without Ray and processes: the job is checked, planned, read, rendered, answered by the fake
engine, committed, and the output held against the input row by row.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import yaml
from helpers.bad_inputs import BAD_INPUTS, BadInput, Refused, Rejected, Stopped, Unchanged
from helpers.command import ROOT
from helpers.factories import job_data
from helpers.whole_runs import planned, run
from tokenmill.errors import RunFailed, TokenmillError, UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import stored_job


def job_of(bad: BadInput, folder: Path) -> Job:
    changes = {"input.path": str(folder / "in"), "output.path": str(folder / "out"), **bad.job}
    return stored_job(yaml.safe_dump(job_data(changes)), "job.yaml")


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_a_bad_input_becomes_what_the_table_says(bad: BadInput, tmp_path: Path) -> None:
    """A reject among answers, a refusal, a stop that names the shard, or an unchanged value."""
    source = tmp_path / "in"
    source.mkdir()
    bad.make(source)
    job = None
    match bad.fate:
        case Refused(words):
            with pytest.raises(UserError) as refused:
                planned(job_of(bad, tmp_path))
            check_line(refused.value, words)
            assert not list(tmp_path.glob("out/data/**/*.parquet"))
        case Stopped(words):
            job = job_of(bad, tmp_path)
            prepared = planned(job)
            if bad.during is not None:
                bad.during(source)
            with pytest.raises((UserError, RunFailed)) as stopped:
                run(job, prepared)
            check_line(stopped.value, ["a.parquet", words])
            assert not list(tmp_path.glob("out/data/**/*.parquet"))
        case Rejected(reject_class, words):
            job = job_of(bad, tmp_path)
            one, error, other = run(job, planned(job)).column("error").to_pylist()
            assert (one, other) == (None, None)
            assert error["class"] == reject_class
            assert words in error["message"]
            assert "\n" not in error["message"]
            assert len(error["message"]) < 500
        case Unchanged(num_rows):
            job = job_of(bad, tmp_path)
            rows = run(job, planned(job))
            assert rows.num_rows == num_rows
            assert rows.column("error").null_count == num_rows
            assert pc.all(pc.greater(rows.column("num_input_tokens"), 0)).as_py() is not False
            check_nothing_escaped(tmp_path)


GARBAGE: tuple[dict[str, Any], ...] = (
    *({"regex": regex} for regex in ("(", "[a", "a\0", "(?=a)b")),
    *({"grammar": grammar} for grammar in ("", "not a grammar", "root ::= nope")),
    *({"json": schema} for schema in ("", "{", {"type": "nope"}, {"$ref": "#/nope"})),
    {"choice": []},
    {"json_object": False},
    {"structural_tag": "x"},
    {},
    {"regex": "a", "choice": ["b"]},
)
EXTREMES: tuple[dict[str, Any], ...] = (
    *({"temperature": value} for value in (-1, float("nan"), float("inf"))),
    *({"top_p": value} for value in (0, 1.1)),
    {"top_k": -2},
    {"min_p": 2},
    {"repetition_penalty": 0},
    {"presence_penalty": 3},
    {"frequency_penalty": -3},
    *({"stop": value} for value in ([""], 5)),
    {"logprobs": -2},
    *({"min_tokens": value} for value in (9, -1)),
    {"stop_token_ids": ["a"]},
    {"bad_words": [""]},
)


# Here vLLM's import would warn, which is an error in tests.
PARAMETERS = """
import json, sys
from tokenmill.engine.vllm_params import check_grammar, vllm_params
from tokenmill.errors import UserError
from tokenmill.request import Sampling
for bad in json.load(sys.stdin):
    try:
        check_grammar(vllm_params(Sampling({"max_tokens": 4, **bad})), "auto")
    except UserError:
        continue
    print("taken:", bad)
"""


@pytest.mark.integration
def test_parameters_that_no_engine_can_follow_are_refused_before_it_starts() -> None:
    """Garbage for schema, regex or grammar, and values out of range, are the user's mistakes."""
    bad = [*({"structured_outputs": garbage} for garbage in GARBAGE), *EXTREMES]
    done = subprocess.run(
        [sys.executable, "-c", PARAMETERS],
        input=json.dumps(bad),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("taken:")] == []


def check_line(error: TokenmillError, words: Any) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 1000
    for word in words:
        assert word in str(error)


def check_nothing_escaped(folder: Path) -> None:
    """The output contains all that was written."""
    assert {path.name for path in folder.iterdir()} == {"in", "out"}


def test_there_are_enough_kinds() -> None:
    """More than sixty, each with a name of its own."""
    names = [bad.name for bad in BAD_INPUTS]
    assert len(set(names)) == len(names) >= 60
