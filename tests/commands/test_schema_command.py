"""The schemas of what is printed: each command's real JSON keeps to its own."""

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
    """A job file whose output, `out` beside it, is finished; `other` is of longer answers."""
    folder = tmp_path_factory.mktemp("printed")
    corpus = write_corpus(folder / "corpus")
    for name, most in (("out", 4), ("other", 8)):
        keys = job_over(corpus, folder / name, sampling={"max_tokens": most})
        drive(Job.model_validate(keys), LocalStore(str(folder / name)))
    (folder / "job.yaml").write_text(yaml.safe_dump(job_over(corpus, folder / "new")))
    return folder / "job.yaml"


def printed(job: Path, name: str) -> Any:
    """What the command prints with --json; of `summary` what the run has left."""
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


# Of the jobs of a cluster, test_cluster.py.
@pytest.mark.parametrize("name", [name for name in SCHEMA_NAMES if name not in {"job", "jobs"}])
def test_what_is_printed_keeps_to_its_schema(job: Path, name: str) -> None:
    """It validates, and the schema names every property of it, in nested objects as well."""
    found = printed(job, name)
    assert found
    schema = schema_of(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, _closed(schema), jsonschema.Draft202012Validator)


def _closed(schema: Any) -> Any:
    """The schema without room for properties that it does not name."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(part) for name, part in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    """In one line, as the user's mistake; without a name it is the job's."""
    done = CliRunner().invoke(app, ["schema", "statsu"])
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "status" in line
    done = CliRunner().invoke(app, ["schema"])
    assert json.loads(done.stdout) == Job.model_json_schema()
