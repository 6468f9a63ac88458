"""Outputs of version 0.1.0: the present version verifies, resumes, retries, reads and exports them.

`tests/fixtures/outputs-0.1.0` was written by that version with the fake engine: a finished output
of two tasks behind a filter, one that was stopped after two of seven units, one with two rejects.
"""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT
from helpers.inprocess import invoke
from tokenmill.errors import ExitCode
from tokenmill.job.loader import load_job
from tokenmill.output.output import open_output
from tokenmill.stages.load import resolve
from tokenmill.storage.local import LocalStore

FIXTURES = ROOT / "tests" / "fixtures" / "outputs-0.1.0"
#: Where the corpus was when the outputs were written; their plans hold the path.
FORMER_FOLDER = b"/tmp/fixture"
NAMES = ["finished", "interrupted", "rejects"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the outputs and their corpora, in the working directory.

    A copy has other paths and modification times than the original; the plans get the new path, the
    shards the old times.
    """
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("out/*/_tokenmill/plan.parquet"):
        plan = pq.read_table(path)
        metadata = {
            key: value.replace(FORMER_FOLDER, str(tmp_path).encode())
            for key, value in plan.schema.metadata.items()
        }
        pq.write_table(plan.replace_schema_metadata(metadata), path)
        corpus = "corpus-bad" if "rejects" in path.parts else "corpus"
        for row in plan.select(["shard", "version"]).to_pylist():
            modified_ns = int(row["version"])
            os.utime(tmp_path / corpus / row["shard"], ns=(modified_ns, modified_ns))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def objects(output: Path) -> dict[str, bytes]:
    """The bytes of each unit's object."""
    return {
        str(path.relative_to(output)): path.read_bytes() for path in output.rglob("rows-*.parquet")
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("folder")
def test_a_jobs_fingerprint_is_what_it_was(name: str) -> None:
    """Otherwise no former output could be resumed."""
    plan = open_output(LocalStore(f"out/{name}")).plan
    assert resolve(load_job(Path(f"{name}.yaml"), [])).fingerprint == plan.fingerprint


@pytest.mark.parametrize("name", ["finished", "rejects"])
@pytest.mark.usefixtures("folder")
def test_a_finished_output_verifies(name: str) -> None:
    """Down to the input's rows and the checksums of its objects."""
    done = invoke("verify", f"out/{name}", "--deep")
    assert done.exit_code == ExitCode.FINISHED, done.output


def test_a_finished_output_is_left_alone(folder: Path) -> None:
    """The same command has nothing to do."""
    before = objects(folder / "out" / "finished")
    done = invoke("run", "finished.yaml")
    assert done.exit_code == ExitCode.FINISHED and "Nothing to do" in done.output
    assert objects(folder / "out" / "finished") == before


def test_an_interrupted_output_is_resumed(folder: Path) -> None:
    """Committed objects stay byte for byte; the other five units are run; the whole verifies."""
    output = folder / "out" / "interrupted"
    before = objects(output)
    assert len(before) == 2
    done = invoke("run", "interrupted.yaml", "--log-format", "json")
    assert done.exit_code == ExitCode.FINISHED, done.output
    assert json.loads(done.stdout)["units"] == 5
    after = objects(output)
    assert len(after) == 7 and before.items() <= after.items()
    assert invoke("verify", output, "--deep").exit_code == ExitCode.FINISHED


def test_rejected_rows_are_retried(folder: Path) -> None:
    """In their objects, which record it; rows without a text are rejected again."""
    output = folder / "out" / "rejects"
    assert "empty_input" in invoke("rejects", output).output
    before = objects(output)
    done = invoke("retry", output, "--log-format", "json")
    assert done.exit_code == ExitCode.FINISHED, done.output
    assert json.loads(done.stdout)["totals"]["rejects"] == {"empty_input": 2}
    assert objects(output).keys() == before.keys()
    assert invoke("verify", output, "--deep").exit_code == ExitCode.FINISHED


@pytest.mark.parametrize("name", NAMES)
def test_a_former_output_is_reported_and_counted(folder: Path, name: str) -> None:
    """By `status`, which knows what is left, and by the page of `report`."""
    state = json.loads(invoke("status", f"out/{name}", "--json").stdout)
    assert (state["units_done"], state["units"]) == {
        "finished": (6, 6),
        "interrupted": (2, 7),
        "rejects": (2, 2),
    }[name]
    page = folder / "report.html"
    assert invoke("report", f"out/{name}", "--to", page).exit_code == ExitCode.FINISHED
    assert name in page.read_text()


def test_a_former_output_is_exported_and_compared(folder: Path) -> None:
    """All rows as JSON lines; compared with itself nothing has changed."""
    target = folder / "rows.jsonl"
    assert invoke("export", "out/finished", target).exit_code == ExitCode.FINISHED
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    totals = json.loads(Path("out/finished/_SUCCESS").read_text())
    assert len(rows) == totals["rows"] and {"summary_generated_text", "topic_label"} <= set(rows[0])
    done = invoke("compare", "out/finished", "out/finished", "--max-changed", "0")
    assert done.exit_code == ExitCode.FINISHED, done.output
