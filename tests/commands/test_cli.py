"""What the command line says and ends with where nothing needs to run."""

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


def refusal(job: Path, *arguments: str) -> str:
    """The one line with which a run of the job is refused."""
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
    """A mistake in job, input or output ends with 2 and one line that names it."""
    line = refusal(job, *arguments)
    assert all(part in line for part in parts), line


def test_names_of_vllm_arguments_are_checked_before_anything_starts(job: Path) -> None:
    """A mistyped engine or sampling argument is refused with the nearest one that vLLM has.

    In a process of its own: vLLM is imported.
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
    """A job file that is not there is the user's mistake."""
    assert "nowhere.yaml" in refusal(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1 cut off"])
def test_an_unreadable_shard_stops_the_run_before_it_starts(job: Path, content: bytes) -> None:
    """A shard that is empty, foreign or cut off is named, with the way to skip it."""
    (job.parent / "corpus" / "b.parquet").write_bytes(content)
    line = refusal(job)
    assert "b.parquet" in line
    assert "on_bad_shard: skip" in line


def test_shards_that_differ_in_their_suffix_are_refused(job: Path) -> None:
    """Two shards that would write to one folder are both named."""
    corpus = job.parent / "corpus"
    (corpus / "a.pq").write_bytes((corpus / "a.parquet").read_bytes())
    line = refusal(job)
    assert "a.parquet" in line
    assert "a.pq" in line


def test_an_output_inside_the_input_is_refused(job: Path) -> None:
    """An output that the next run would read as input is refused."""
    assert "inside the input" in refusal(job, "--output", str(job.parent / "corpus" / "out"))


def test_an_output_with_foreign_files_is_refused(job: Path) -> None:
    """A folder that holds something else is left as it is."""
    foreign = job.parent / "out" / "thesis.docx"
    foreign.parent.mkdir()
    foreign.write_text("precious")
    assert "thesis.docx" in refusal(job)
    assert foreign.read_text() == "precious"


def test_debug_shows_the_traceback(job: Path) -> None:
    """With --debug an error comes with its traceback."""
    done = tokenmill("run", job, "--input", "/nowhere", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_schema_is_json_schema_of_the_job_file() -> None:
    """`tokenmill schema` prints a schema with the job file's sections."""
    schema = json.loads(invoke("schema").stdout)
    assert {"name", "input", "model", "prompt", "sampling", "output"} <= set(schema["properties"])


def test_models_path_of_a_model_that_is_not_fetched(tmp_path: Path) -> None:
    """`models path` says how to fetch what is not there."""
    done = invoke("models", "path", "bundled:minilm-l6", env={"TOKENMILL_CACHE": str(tmp_path)})
    assert done.exit_code == ExitCode.FAILED
    assert "tokenmill models fetch bundled:minilm-l6" in done.stderr
