"""The shipped jobs that extract, reply and write, over the demo corpus."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.command import ROOT, input_positions, output_rows, positions
from helpers.fork_server import tokenmill
from helpers.inprocess import invoke
from jsonschema import Draft202012Validator
from tokenmill.errors import ExitCode

pytestmark = pytest.mark.integration

ENTITIES = ROOT / "jobs" / "entities.yaml"
NAMES = ("person", "place", "organisation")

# In a process of its own: the environment says how vLLM uses this machine.
REFUSALS = """
import json, sys
from pathlib import Path
from tokenmill.engine.base import EngineResources
from tokenmill.engine.vllm_start import load_vllm
from tokenmill.errors import UserError
from tokenmill.request import Sampling
for node, arguments in json.load(sys.stdin):
    schema = {"type": "object", "properties": {"a": node}, "required": ["a"]}
    sampling = Sampling({"max_tokens": 9, "structured_outputs": {"json": json.dumps(schema)}})
    try:
        load_vllm(Path("nowhere"), arguments, "generate", [sampling], EngineResources(0, 1))
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus as Parquet shards."""
    folder = tmp_path_factory.mktemp("corpus")
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, folder], check=True, capture_output=True)
    return folder


@pytest.mark.shipped
def test_every_entity_answer_is_valid_and_stands_where_it_says(
    corpus: Path, tmp_path: Path
) -> None:
    """With vLLM, each answered row fits the schema, and each span is its string in the text."""
    done = tokenmill("run", ENTITIES, "--input", corpus, "--output", tmp_path / "out")
    assert done.returncode == ExitCode.FINISHED, done.stderr
    rows = output_rows(tmp_path / "out")
    assert positions(rows) == input_positions(corpus)
    schema = yaml.safe_load(ENTITIES.read_text())["task"]["json_schema"]
    validator = Draft202012Validator(schema)
    answered = [row for row in rows if row["error"] is None]
    spans = [(row["text"], span) for row in answered for name in NAMES for span in row[name]]
    for row in answered:
        validator.validate({name: [span["text"] for span in row[name]] for name in NAMES})
    assert any(span["start"] is not None for _, span in spans)
    for text, span in spans:
        if span["start"] is None:
            assert span["end"] is None
        else:
            assert text[span["start"] : span["end"]] == span["text"]
    for row in rows:
        if row["error"] is not None:
            assert all(row[name] is None for name in NAMES)


@pytest.mark.shipped
@pytest.mark.parametrize(("job", "column"), [("replies", "knowledge"), ("outline", "outline")])
def test_the_jobs_that_write_take_the_rows_that_have_something_to_write_from(
    corpus: Path, tmp_path: Path, job: str, column: str
) -> None:
    """Only rows with the column are answered, and each has a text of its own."""
    done = invoke(
        *("run", ROOT / "jobs" / f"{job}.yaml", "--set", "model={source: fake}"),
        *("--input", corpus, "--output", tmp_path / "out"),
    )
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    rows = output_rows(tmp_path / "out")
    with_column = [row for row in _documents(corpus) if row[column] is not None]
    assert [row["doc_id"] for row in rows] == [row["doc_id"] for row in with_column]
    assert len({row["generated_text"] for row in rows}) == len(rows)
    assert all(row["error"] is None for row in rows)


def test_a_schema_without_a_grammar_is_refused_before_a_model_is_loaded() -> None:
    """What vLLM would refuse row by row ends the run first; no model is looked for."""
    xgrammar = {"structured_outputs_config": {"backend": "xgrammar"}}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"type": "string", "format": "colour"}, {}, "Unknown format: colour"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, {}, "Unsatisfiable schema"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, {}, "uniqueItems"),
        ({"type": "integer", "multipleOf": 3}, xgrammar, "not supported by xgrammar"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS],
        input=json.dumps([(node, arguments) for node, arguments, _ in cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line for line in done.stdout.splitlines() if "vLLM refuses it" in line]
    for (_, _, reason), line in zip(cases, said, strict=True):
        assert line.startswith("structured_outputs.json: ")
        assert reason in line


def _documents(corpus: Path) -> list[dict[str, Any]]:
    shards = sorted(corpus.glob("*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]
