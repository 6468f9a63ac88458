"""Output columns: their names, clashes between them, and the input columns that are kept."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT
from helpers.inprocess import drive, drive_retry, invoke, job_over, write_corpus
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.output.rejects import Selection
from tokenmill.output.schema import added_fields, output_schema, task_names
from tokenmill.row_columns import PROVENANCE_FIELDS
from tokenmill.run.checks import check_job
from tokenmill.storage.local import LocalStore
from tokenmill.tasks.kinds import TASK_KINDS

PROVENANCE = [field.name for field in PROVENANCE_FIELDS]
CHUNKS = {"policy": "chunk", "column": "text", "join": "union"}
CLEAN = {"columns": ["text"], "steps": ["nfc"]}
TAG = {"kind": "tag", "choices": ["a", "b"]}
CLASSIFY = {"kind": "classify", "choices": ["a", "b"]}
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
ID = pa.schema([pa.field("id", pa.int64())])


def extract(*names: str, **keys: Any) -> dict[str, Any]:
    """An extract task whose answers have these properties."""
    properties = {name: {"type": "string"} for name in names}
    schema = {"type": "object", "properties": properties, "required": list(names)}
    return {"kind": "extract", "json_schema": schema, **keys}


def write_table(path: Path, **columns: Any) -> Path:
    """A corpus of one shard in the folder of `path`, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["one", "two", "three"], **columns}), path)
    return path.parent


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    tags = pa.array([["x"], [], None], pa.list_(pa.string()))
    return write_table(tmp_path / "corpus" / "a.parquet", tags=tags, label=["p", "q", "r"])


def columns_of(output: Path) -> list[str]:
    names: list[str] = ds.dataset(output / "data", format="parquet").schema.names
    return names


def job_file(corpus: Path, **changes: Any) -> Path:
    path = corpus.parent / "job.json"
    keys = job_over(corpus, corpus.parent / "out")
    for key, value in changes.items():
        # The paths of input and output remain.
        keys[key] = {**keys[key], **value} if key in {"input", "output"} else value
    path.write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    return path


CLASHES: dict[str, tuple[Mapping[str, Any], list[str]]] = {
    **{
        f"property {name}": ({"task": extract("who", name)}, [name, f"output.columns: {{{name}:"])
        for name in PROVENANCE
    },
    "struct column": ({"task": extract("who", column="error")}, ["error", "output.columns"]),
    "named task": (
        {"tasks": [{"name": "source", "kind": "extract", **extract("file", "who")}]},
        ["tasks", "source_file"],
    ),
    "counts of clean": ({"task": extract("cleaned"), "clean": CLEAN}, ["cleaned", "name"]),
    "column of the length policy": (
        {"task": extract("num_chunks"), "length": CHUNKS},
        ["length", "num_chunks", "rename"],
    ),
    "internal column": ({"task": extract("__tokenmill_row")}, ["__tokenmill_row", "rename"]),
    "internal column, renamed to": (
        {"output": {"columns": {"generated_text": "__tokenmill_notes"}}},
        ["output.columns", "__tokenmill_notes"],
    ),
    "internal column, read": (
        {"prompt": {"user": "{{ __tokenmill_row }}"}},
        ["prompt.user", "__tokenmill_row", "rename"],
    ),
    "internal column, filter": (
        {"input": {"where": "__tokenmill_row = 3"}},
        ["input.where", "__tokenmill_row"],
    ),
    "two tasks": (
        {"tasks": [extract("b_who", name="a"), extract("who", name="a_b")]},
        ["a_b_who", "tasks.a_b.name"],
    ),
    "kept and answer": (
        {"input": {"keep": ["label"]}, "task": CLASSIFY, "sampling": None},
        ["input.keep", "label", "output.columns: {label:", "name"],
    ),
    "kept and every output's": (
        {"input": {"keep": ["error"]}},
        ["input.keep", "error", "rename"],
    ),
    "kept twice": ({"input": {"keep": ["id", "id"]}}, ["input.keep", "id"]),
    "renamed to a kept column": (
        {"output": {"columns": {"generated_text": "id"}}},
        ["input.keep", "id", "another name"],
    ),
    "renamed to every output's": (
        {"output": {"columns": {"generated_text": "source_row"}}},
        ["output.columns", "source_row", "another name"],
    ),
    "two renamed to one": (
        {"output": {"columns": {"generated_text": "x", "finish_reason": "x"}}},
        ["output.columns", "x", "another name"],
    ),
    "unknown column renamed": (
        {"output": {"columns": {"translation": "x"}}},
        ["output.columns", "translation", "generated_text, finish_reason"],
    ),
    "kept, all and one": ({"input": {"keep": ["*", "id"]}}, ["input.keep"]),
}


@pytest.mark.parametrize(("changes", "parts"), CLASHES.values(), ids=CLASHES.keys())
def test_names_that_clash_are_refused_before_the_run(
    corpus: Path, changes: Mapping[str, Any], parts: list[str]
) -> None:
    """By `validate`, as by `run`: in one line with the column and the way out; nothing is made."""
    file = job_file(corpus, **changes)
    for command in ("validate", "run"):
        done = invoke(command, file)
        assert done.exit_code == ExitCode.USER_ERROR, done.output
        (line,) = done.stderr.splitlines()
        assert all(part in line for part in parts), line
    assert not (corpus.parent / "out").exists()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_column_of_each_kind_can_be_named(path: Path) -> None:
    """The output has the new names in order, and none of them can be that of another column."""
    own = [field.name for field in added_fields(load_job(path))]
    renames = {name: f"new_{name}" for name in own}
    job = load_job(path, [f"output.columns={json.dumps(renames)}", "input.keep=[id]"])
    names = output_schema(job, ID).names
    assert names == ["id", *renames.values(), *PROVENANCE]
    assert task_names(job) == {new: name for name, new in renames.items()}
    for name in own:
        for taken in ("error", "id"):
            clashing = load_job(path, [f"output.columns.{name}={taken}"])
            with pytest.raises(UserError, match=f"called {taken}"):
                output_schema(clashing, ID)


def test_the_jobs_have_all_kinds_of_tasks() -> None:
    """Otherwise the columns of a kind would not be tested."""
    kinds = {step.kind.name for path in JOBS for step in load_job(path).steps}
    assert kinds == {kind.name for kind in TASK_KINDS}


def test_a_name_in_another_case_is_another_name(corpus: Path) -> None:
    """`Error` is no column of every output."""
    job = Job.model_validate(job_over(corpus, "memory://", task=extract("Error")))
    output = LocalStore(str(corpus.parent / "out"))
    assert drive(job, output) is not None
    assert columns_of(corpus.parent / "out") == ["id", "Error", *PROVENANCE]


def test_a_named_task_leaves_its_columns_to_the_input(corpus: Path) -> None:
    """A single task's name prefixes its columns, so that the input's `tags` can be kept."""
    keep = {"keep": ["tags"]}
    file = job_file(corpus, input=keep, task={**TAG, "name": "auto"}, sampling=None)
    done = invoke("run", file)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert columns_of(corpus.parent / "out") == [
        "tags",
        "auto_tags",
        "auto_tag_scores",
        *PROVENANCE,
    ]
    kept = ds.dataset(corpus.parent / "out" / "data").to_table().column("tags")
    assert kept.to_pylist() == [["x"], [], None]


def test_messages_name_the_keys_of_a_named_task() -> None:
    """The job has no list of tasks, so no key begins with `tasks`."""
    keys = job_over(Path("corpus"), "out", task={**CLASSIFY, "name": "topic"}, sampling=None)
    (step,) = Job.model_validate(keys).steps
    assert (step.key_prefix, step.key_of("choices")) == ("", "task.choices")
    keys["length"] = {**CHUNKS, "column": "nope"}
    with pytest.raises(UserError, match=r"^length\.column: "):
        check_job(Job.model_validate(keys))


NAMED: dict[str, Any] = {
    "prompt": {"user": "Translate: {{ text }}"},
    "output": {"columns": {"generated_text": "text_fr", "finish_reason": "why"}},
    "input": {"keep": ["id"]},
}
NAMES = ["id", "text_fr", "why", "cumulative_logprob", "mean_logprob", *PROVENANCE]


def test_columns_are_stored_and_read_by_their_new_names(corpus: Path) -> None:
    """By every command that reads an output; a later run resumes with the same names."""
    out, file = corpus.parent / "out", job_file(corpus, **NAMED)
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    assert columns_of(out) == NAMES
    assert invoke("verify", out, "--deep").exit_code == ExitCode.FINISHED
    assert "Nothing to do" in invoke("run", file).output
    (data,) = (out / "data").rglob("*-000000000002.parquet")
    data.unlink()
    (out / "_SUCCESS").unlink()
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    assert columns_of(out) == NAMES
    report = json.loads(invoke("report", out, "--json").stdout)
    assert report["finish_reasons"] == {"why": {"stop": 3}}
    assert {"text_fr", "id"} <= report["samples"][0]["cells"].keys()
    compared = json.loads(invoke("compare", out, out, "--json").stdout)
    gated = {column["name"]: column["is_gated"] for column in compared["columns"]}
    assert gated["text_fr"] and not gated["why"]
    for command in (["status", out], ["plan", file, "--from", out]):
        done = invoke(*command, "--json")
        assert done.exit_code == ExitCode.FINISHED, done.output
    (row, *_) = json.loads(invoke("preview", file, "--json").stdout)
    assert list(row["written"]) == [*NAMES[1:5], *PROVENANCE[:3]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "openai-batch", "hf-dataset"])
def test_an_export_has_the_new_names(corpus: Path, kind: str) -> None:
    """Except for OpenAI's format, whose bodies have the text in its own place."""
    out, target = corpus.parent / "out", corpus.parent / "exported"
    assert invoke("run", job_file(corpus, **NAMED)).exit_code == ExitCode.FINISHED
    done = invoke("export", out, target, "--to", kind)
    assert done.exit_code == ExitCode.FINISHED, done.output
    rows = ds.dataset(out / "data").to_table().to_pylist()
    if kind == "parquet":
        assert pq.read_table(target).to_pylist() == rows
    elif kind == "hf-dataset":
        assert ds.dataset(target / "data").to_table().column_names == NAMES
    else:
        lines = [json.loads(line) for line in target.read_text().splitlines()]
        texts = [row["text_fr"] for row in rows]
        if kind == "jsonl":
            assert [line["text_fr"] for line in lines] == texts
        else:
            choices = [line["response"]["body"]["choices"][0] for line in lines]
            assert [choice["message"]["content"] for choice in choices] == texts
            assert {choice["finish_reason"] for choice in choices} == {"stop"}


def test_rejected_and_truncated_rows_are_found_by_the_new_names(tmp_path: Path) -> None:
    """`rejects` lists them, and `retry` puts new answers into the same columns."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "", "a longer text"]})
    out = tmp_path / "out"
    file = job_file(corpus, **NAMED, sampling={"max_tokens": 1})
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    assert "empty_input" in invoke("rejects", out).output
    cut = ds.dataset(out / "data").to_table().column("why").to_pylist()
    assert cut.count("length") == 2
    summary = drive_retry(LocalStore(str(out)), Selection(None, True), "sampling.max_tokens=64")
    assert summary is not None and summary.rows == 3
    assert columns_of(out) == NAMES
    assert ds.dataset(out / "data").to_table().column("why").to_pylist() == ["stop", None, "stop"]
    assert invoke("verify", out, "--deep").exit_code == ExitCode.FINISHED


def test_new_names_are_part_of_what_an_output_is(corpus: Path) -> None:
    """Changed names are named as the difference, and a retry cannot change them."""
    file, out = job_file(corpus, **NAMED), corpus.parent / "out"
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    for command in (["run", file], ["retry", out]):
        done = invoke(*command, "--set", "output.columns.generated_text=text_de")
        assert done.exit_code == ExitCode.USER_ERROR, done.output
        assert "output.columns.generated_text" in done.stderr


def test_a_later_task_reads_an_answer_by_the_tasks_name_for_it(
    corpus: Path, tmp_path: Path
) -> None:
    """A new name changes what is stored, and no prompt: an input column may have the same name."""
    draft = {"name": "draft", "kind": "generate"}
    check = {"name": "check", "kind": "generate", "prompt": {"user": "{{ draft_generated_text }}"}}
    columns = {"draft_generated_text": "label"}
    changes: dict[str, Any] = {"tasks": [draft, check], "prompt": {"user": "{{ label }}"}}
    first = drive(
        Job.model_validate(job_over(corpus, "x", **changes)), LocalStore(str(tmp_path / "a"))
    )
    output = {"path": "x", "columns": columns}
    job = Job.model_validate({**job_over(corpus, "x", **changes), "output": output})
    second = drive(job, LocalStore(str(tmp_path / "b")))
    assert first is not None and second is not None
    rows, renamed = (
        ds.dataset(tmp_path / name / "data", format="parquet").to_table() for name in "ab"
    )
    assert renamed.column("label") == rows.column("draft_generated_text")
    assert renamed.column("check_generated_text") == rows.column("check_generated_text")


def test_the_counts_of_clean_can_have_another_name(tmp_path: Path) -> None:
    """So that the input's `cleaned` can be kept."""
    corpus = write_table(tmp_path / "corpus" / "a.parquet", cleaned=["x", "y", "z"])
    changes = {"clean": CLEAN, "output": {"columns": {"cleaned": "changes"}}}
    file = job_file(corpus, input={"keep": ["cleaned"]}, **changes)
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    table = ds.dataset(tmp_path / "out" / "data").to_table()
    assert table.column("cleaned").to_pylist() == ["x", "y", "z"]
    assert table.column("changes").to_pylist() == [[("nfc", 0)]] * 3
    (row, *_) = json.loads(invoke("preview", file, "--json").stdout)
    assert row["written"]["changes"] == {"nfc": 0} and row["read"]["cleaned"] in "xyz"


def test_a_preview_shows_an_answer_with_the_name_of_a_column_that_is_read(corpus: Path) -> None:
    """As a run would write it: the column is not kept, so that nothing clashes."""
    file = job_file(corpus, prompt={"user": "{{ label }}"}, task=CLASSIFY, sampling=None)
    rows = json.loads(invoke("preview", file, "--json").stdout)
    assert {row["read"]["label"] for row in rows} == {"p", "q", "r"}
    assert {row["written"]["label"] for row in rows} <= {"a", "b"}


def test_all_columns_are_kept_in_the_inputs_order(corpus: Path) -> None:
    """As they are, and `verify --deep` compares them with the input."""
    file, out = job_file(corpus, input={"keep": ["*"]}), corpus.parent / "out"
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    assert columns_of(out)[:5] == ["id", "text", "tags", "label", "generated_text"]
    kept = ds.dataset(out / "data").to_table().select(["id", "text", "tags", "label"])
    assert kept.equals(pq.read_table(corpus / "a.parquet"))
    assert invoke("verify", out, "--deep").exit_code == ExitCode.FINISHED


@pytest.mark.parametrize("column", ["error", "generated_text", "__tokenmill_row"])
def test_a_clash_of_one_of_all_columns_is_refused(tmp_path: Path, column: str) -> None:
    """It is named, with the ways out; nothing is made."""
    corpus = write_table(tmp_path / "corpus" / "a.parquet", **{column: ["x", "y", "z"]})
    file = job_file(corpus, input={"keep": ["*"]})
    for command in ("validate", "run"):
        done = invoke(command, file)
        assert done.exit_code == ExitCode.USER_ERROR
        (line,) = done.stderr.splitlines()
        assert "input.keep" in line and column in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"keep": ["Column_17"]}},
        {"prompt": {"user": "{{ Column_17 }}"}},
        {"input": {"where": '"Column_17" = 3'}},
    ],
    ids=["keep", "prompt", "where"],
)
def test_of_many_columns_the_similar_ones_are_named(
    tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    """For a column that does not exist, whichever key names it."""
    many = {f"column_{number}": [1, 2, 3] for number in range(1_000)}
    corpus = write_table(tmp_path / "corpus" / "a.parquet", **many)
    done = invoke("validate", job_file(corpus, **changes))
    assert done.exit_code == ExitCode.USER_ERROR
    assert "column_17," in done.stderr and len(done.stderr) < 400


def test_all_columns_must_be_the_same_in_all_shards(corpus: Path) -> None:
    """The message names a column that one shard lacks, whether it is the first or the last."""
    for name in ("0.parquet", "b.parquet"):
        write_table(corpus / name, tags=[["x"]] * 3)
        done = invoke("validate", job_file(corpus, input={"keep": ["*"], "on_bad_shard": "skip"}))
        assert done.exit_code == ExitCode.USER_ERROR
        assert "label" in done.stderr and name in done.stderr
        (corpus / name).unlink()


def test_all_columns_are_those_of_the_plan(corpus: Path) -> None:
    """A new shard's other columns are left out; a shard that lacks one of the plan's is refused."""
    out = corpus.parent / "out"
    file = job_file(corpus, input={"keep": ["*"], "on_new_shard": "add"})
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    names = columns_of(out)
    write_table(corpus / "b.parquet", tags=[["x"]] * 3, label=["p"] * 3, later=[1, 2, 3])
    assert invoke("run", file).exit_code == ExitCode.FINISHED
    assert ds.dataset(out / "data").count_rows() == 6
    for path in (out / "data").rglob("*.parquet"):
        assert pq.read_schema(path).names == names
    assert invoke("verify", out, "--deep").exit_code == ExitCode.FINISHED
    write_table(corpus / "c.parquet")
    done = invoke("run", file)
    assert done.exit_code == ExitCode.USER_ERROR and "c.parquet" in done.stderr
