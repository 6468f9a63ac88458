"""JSON schemas: the real output of each command validates against its schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.inprocess import drive, job_over, write_corpus
from tokenmill.cli import app
from tokenmill.commands.schema import SCHEMA_NAMES, schema_of
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.storage.local import LocalStore
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file next to its finished output `out`, and to `other`, which has longer answers."""
    folder = tmp_path_factory.mktemp("printed")
    corpus = write_corpus(folder / "corpus")
    for name, max_tokens in (("out", 4), ("other", 8)):
        keys = job_over(corpus, folder / name, sampling={"max_tokens": max_tokens})
        drive(Job.model_validate(keys), LocalStore(str(folder / name)))
    (folder / "job.yaml").write_text(yaml.safe_dump(job_over(corpus, folder / "new")))
    return folder / "job.yaml"


def printed(job: Path, name: str) -> Any:
    """What the command prints with --json; for `summary`, the run's summary.json."""
    out, other = str(job.parent / "out"), str(job.parent / "other")
    if name == "summary":
        (summary,) = Path(out).glob("_tokenmill/runs/*/summary.json")
        return json.loads(summary.read_text())
    arguments = {
        "validate": [str(job)],
        "plan": [str(job), "--from", out],
        "preview": [str(job), "-n", "2"],
        "status": [out],
        "report": [out],
        "compare": [out, other],
    }[name]
    done = CliRunner().invoke(app, [name, *arguments, "--json"])
    assert done.exit_code in {ExitCode.FINISHED, ExitCode.FAILED}, done.stderr
    return json.loads(done.stdout)


# The schema of `jobs` is tested with a cluster, in test_cluster.py.
@pytest.mark.parametrize("name", [name for name in SCHEMA_NAMES if name not in {"job", "jobs"}])
def test_json_output_validates_against_its_schema(job: Path, name: str) -> None:
    """The schema names every property of the output, in nested objects as well."""
    output = printed(job, name)
    assert output
    schema = schema_of(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(output, _closed(schema), jsonschema.Draft202012Validator)


def _closed(schema: Any) -> Any:
    """The schema with additional properties forbidden."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def test_an_unknown_schema_is_an_error() -> None:
    """One line suggests a name; without a name the job file's schema is printed."""
    done = CliRunner().invoke(app, ["schema", "statsu"])
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "status" in line
    done = CliRunner().invoke(app, ["schema"])
    assert json.loads(done.stdout) == Job.model_json_schema()
