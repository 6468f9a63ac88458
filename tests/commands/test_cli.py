"""Errors and exit codes of commands that start nothing."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import tokenmill
from helpers.inprocess import invoke
from tokenmill.errors import ExitCode

JOB = """
name: tiny
input: {{path: {input}, keep: [id]}}
model: {{source: fake}}
prompt: {{user: "{{{{ text }}}}"}}
sampling: {{max_tokens: 8}}
output: {{path: {output}}}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over one small shard."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    table = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", "three"]})
    pq.write_table(table, corpus / "a.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(input=corpus, output=tmp_path / "out"))
    return path


def run_error(job: Path, *arguments: str) -> str:
    """The one-line error of a run that ends before it starts."""
    done = invoke("run", job, *arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "model.replica=2"], ["model.replica", "did you mean replicas?"]),
        (["--set", "prompt.user={{ body }}"], ["prompt.user", "body", "id, text"]),
        (["--set", "prompt.user={{ text"], ["prompt.user, line 1"]),
        (["--set", "input.keep=[nope]"], ["input.keep", "nope", "id, text"]),
        (["--set", "input.keep=[error]"], ["input.keep", "error", "rename"]),
        (["--set", "input.where=nope = 1"], ["input.where", "nope", "id, text"]),
        (["--set", "input.where=text ="], ["input.where", "not a SQL condition"]),
        (["--set", "model.engine.step_seconds=1"], ["model.engine.step_seconds", "step_s"]),
        (["--set", "model.source=bundled:nope"], ["bundled:nope", "unknown bundled model"]),
        (["--set", "model.source=/nowhere"], ["/nowhere", "folder"]),
        (["--set", "sampling={}"], ["sampling.max_tokens"]),
        (["--input", "/nowhere"], ["/nowhere", "no such file"]),
        (["--input", "/nowhere/*.parquet"], ["/nowhere/*.parquet", "no file matches"]),
        (["--output", "gs://bucket/out"], ["gs://", "s3://"]),
        (["--limit", "0"], ["input.limit"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    job: Path, arguments: list[str], parts: list[str]
) -> None:
    """A mistake in the job, the input or the output is named in one line."""
    line = run_error(job, *arguments)
    assert all(part in line for part in parts), line


def test_vllm_arguments_are_checked_before_anything_starts(job: Path) -> None:
    """The error for a mistyped engine or sampling argument suggests vLLM's nearest argument.

    Runs in its own process, because vLLM is imported.
    """
    real = ("run", job, "--set", "model.source=bundled:smollm2-135m")
    mistakes = {
        "model.engine={max_model_length: 9}": "max_model_len?",
        "sampling.temprature=0": "temperature?",
    }
    for mistake, nearest in mistakes.items():
        done = tokenmill(*real, "--set", mistake)
        assert done.returncode == ExitCode.USER_ERROR, done.stderr
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert nearest in line


def test_a_missing_job_file_is_named(tmp_path: Path) -> None:
    """The error for a missing job file names the file."""
    assert "nowhere.yaml" in run_error(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1 cut off"])
def test_an_unreadable_shard_is_an_error_before_the_run_starts(job: Path, content: bytes) -> None:
    """The error names a shard that is empty, no Parquet or cut off, and how to skip it."""
    (job.parent / "corpus" / "b.parquet").write_bytes(content)
    line = run_error(job)
    assert "b.parquet" in line
    assert "on_bad_shard: skip" in line


def test_shards_that_differ_only_in_their_suffix_are_an_error(job: Path) -> None:
    """The error names both shards that would write to one folder."""
    corpus = job.parent / "corpus"
    (corpus / "a.pq").write_bytes((corpus / "a.parquet").read_bytes())
    line = run_error(job)
    assert "a.parquet" in line
    assert "a.pq" in line


def test_an_output_inside_the_input_is_an_error(job: Path) -> None:
    """The next run would read the output as input."""
    assert "inside the input" in run_error(job, "--output", str(job.parent / "corpus" / "out"))


def test_an_output_folder_with_foreign_files_is_an_error(job: Path) -> None:
    """The files of the folder are not changed."""
    foreign = job.parent / "out" / "thesis.docx"
    foreign.parent.mkdir()
    foreign.write_text("precious")
    assert "thesis.docx" in run_error(job)
    assert foreign.read_text() == "precious"


def test_debug_shows_the_traceback(job: Path) -> None:
    """With --debug an error is shown with its traceback."""
    done = tokenmill("run", job, "--input", "/nowhere", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_schema_describes_the_job_file() -> None:
    """`tokenmill schema` prints a JSON schema with the sections of the job file."""
    schema = json.loads(invoke("schema").stdout)
    assert {"name", "input", "model", "prompt", "sampling", "output"} <= set(schema["properties"])


def test_models_path_says_how_to_fetch_a_missing_model(tmp_path: Path) -> None:
    """The error for a model that is not on this machine contains the command to fetch it."""
    done = invoke("models", "path", "bundled:minilm-l6", env={"TOKENMILL_CACHE": str(tmp_path)})
    assert done.exit_code == ExitCode.FAILED
    assert "tokenmill models fetch bundled:minilm-l6" in done.stderr
