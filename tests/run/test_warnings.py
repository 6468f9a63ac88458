"""Warnings in the summary of a run: tasks whose answers are all empty, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.inprocess import drive, drive_retry, invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.rejects import Selection
from tokenmill.reject import Reject, RejectClass, error_array
from tokenmill.stages.empty_answers import count_empty
from tokenmill.storage.local import LocalStore

TEXTS = pa.list_(pa.string())
TAG = {"kind": "tag", "choices": ["a", "b"]}


def run(tmp_path: Path, **changes: Any) -> tuple[str, ...]:
    """The warnings of a run over the usual corpus."""
    corpus = write_corpus(tmp_path / "corpus")
    job = Job.model_validate(job_over(corpus, "out", **changes))
    summary = drive(job, LocalStore(str(tmp_path / "out")))
    assert summary is not None
    return summary.warnings


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ({**TAG, "threshold": 1.0}, ["tag: 5 of 5 rows have no tags", "threshold: 0", "max_tags"]),
        ({**TAG, "name": "auto", "threshold": 1.0}, ["auto: 5 of 5 rows have no tags"]),
        (
            {"kind": "classify", "choices": ["a", "b"], "abstain_below": 1.0},
            ["classify: 5 of 5 rows have no label", "abstain_below"],
        ),
    ],
    ids=["tag", "a named task", "classify"],
)
def test_a_task_without_any_answer_is_named_with_the_way_out(
    tmp_path: Path, task: dict[str, Any], parts: list[str]
) -> None:
    """The rows are those with an answer: rejects have their own reason."""
    (warning,) = run(tmp_path, task=task, sampling=None)
    assert all(part in warning for part in parts), warning


def test_answers_are_no_reason_for_a_warning(tmp_path: Path) -> None:
    """Not even if one task of several has none for some rows."""
    tasks = [{"name": "one", "kind": "generate"}, {**TAG, "name": "two", "threshold": 0.0}]
    assert run(tmp_path, tasks=tasks) == ()


def test_a_warning_is_shown_and_stored(tmp_path: Path) -> None:
    """By `run` and in summary.json; a retry counts the rows that it has answered."""
    corpus, out = write_corpus(tmp_path / "corpus"), tmp_path / "out"
    path = tmp_path / "job.json"
    keys = job_over(corpus, out, task={**TAG, "threshold": 1.0})
    path.write_text(json.dumps({name: keys[name] for name in keys if name != "sampling"}))
    done = invoke("run", path)
    assert done.exit_code == ExitCode.FINISHED
    assert [line for line in done.stdout.splitlines() if line.startswith("warning ")]
    (summary,) = (json.loads(file.read_text()) for file in out.rglob("summary.json"))
    assert len(summary["warnings"]) == 1
    retried = drive_retry(LocalStore(str(out)), Selection(None))
    # Empty texts are rejected again, so that the retry has answered no row.
    assert retried is not None and retried.warnings == ()


@pytest.mark.parametrize(
    ("type_", "values", "num_empty"),
    [
        (pa.string(), ["", None, "x"], 2),
        (TEXTS, [[], None, ["x"]], 2),
        (
            pa.struct([("a", pa.string()), ("b", TEXTS)]),
            [{"a": None, "b": []}, None, {"a": "x"}],
            2,
        ),
        (pa.float64(), [None, 0.0, 1.0], 1),
    ],
    ids=["texts", "lists", "structs", "numbers"],
)
def test_an_answer_is_empty_if_it_holds_nothing(
    type_: pa.DataType, values: list[Any], num_empty: int
) -> None:
    """A null, an empty text or list, or a struct of such; zero is a value. Rejects do not count."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    task = {"kind": "extract", "json_schema": schema, "column": "record"}
    output = {"path": "out", "columns": {"record": "stored"}}
    job = Job.model_validate({**job_over(Path("c"), "out", task=task), "output": output})
    rejects = [None, None, None, Reject(RejectClass.ENGINE_ERROR, "x", 1)]
    table = pa.table({"stored": pa.array([*values, None], type_), "error": error_array(rejects)})
    assert count_empty(job, table) == {"extract": num_empty}


def test_a_record_is_empty_if_all_of_its_fields_are() -> None:
    """A property without a value in any row is nothing unusual."""
    names = ["a", "b"]
    properties = {name: {"type": ["string", "null"]} for name in names}
    schema = {"type": "object", "properties": properties, "required": names}
    task = {"kind": "extract", "json_schema": schema}
    job = Job.model_validate(job_over(Path("c"), "out", task=task))
    columns = {"a": pa.array([None, None], pa.string()), "b": ["x", None]}
    table = pa.table({**columns, "error": error_array([None, None])})
    assert count_empty(job, table) == {"extract": 1}
