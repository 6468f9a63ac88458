"""What `verify`, `rejects` and `retry` say of an output, and what they end with."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.inprocess import drive, invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.output.output import open_output
from tokenmill.storage.local import LocalStore
from typer.testing import Result

COMMANDS = ("verify", "rejects", "retry")


def finished(folder: Path, **changes: Any) -> Path:
    """An output of eight rows, three of them empty, in five units."""
    corpus = write_corpus(folder / "corpus")
    store = LocalStore(str(folder / "out"))
    drive(Job.model_validate(job_over(corpus, store.url, **changes)), store)
    return folder / "out"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return finished(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output for tests that leave it as it is."""
    return finished(tmp_path_factory.mktemp("output"))


def lines(done: Result, exit_code: ExitCode) -> list[str]:
    """What was printed by a command that ended so."""
    assert done.exit_code == exit_code, (done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout.splitlines()


def mistake(*arguments: str | Path) -> str:
    """The one line with which a command is refused."""
    done = invoke(*arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_whole_output_is_proved_with_0(untouched: Path, deep: list[str]) -> None:
    """One line says that it is whole, and counts."""
    (line,) = lines(invoke("verify", untouched, *deep), ExitCode.FINISHED)
    assert line == f"{untouched}: whole; 5 units, 8 rows, 3 rejected, 0 filtered out"


def test_what_is_wrong_is_named_and_ends_with_1(output: Path) -> None:
    """Each finding has its kind, its object and a reason; the last line counts them."""
    lost, foreign = open_output(LocalStore(str(output))).plan.units[0].key, "data/notes.txt"
    (output / lost).unlink()
    (output / foreign).write_text("mine")
    said = lines(invoke("verify", output), ExitCode.FAILED)
    assert said[0].startswith(f"missing: {lost}: ")
    assert said[1].startswith(f"foreign: {foreign}: ")
    assert "NOT whole: 2 findings" in said[2]


def test_many_findings_are_cut_short_and_counted(output: Path) -> None:
    """The first twenty are shown, and how many more there are."""
    for number in range(30):
        (output / f"data/notes-{number}.txt").write_text("mine")
    said = lines(invoke("verify", output), ExitCode.FAILED)
    assert len(said) == 22
    assert said[20] == "… and 10 more"
    assert "NOT whole: 30 findings" in said[21]


def test_rows_are_read_only_when_it_is_asked_to_be_deep(output: Path) -> None:
    """A bit that flipped within the rows is found by --deep, by its checksum."""
    path = output / open_output(LocalStore(str(output))).plan.units[0].key
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    lines(invoke("verify", output), ExitCode.FINISHED)
    said = lines(invoke("verify", output, "--deep"), ExitCode.FAILED)
    assert said[0].startswith("checksum: ")


def test_a_certificate_is_written_beside_the_verdict(untouched: Path, tmp_path: Path) -> None:
    """--certificate puts the proof into a file, as JSON."""
    target = tmp_path / "proof.json"
    lines(invoke("verify", untouched, "--certificate", target), ExitCode.FINISHED)
    proof = json.loads(target.read_text())
    assert proof["is_whole"] is True
    assert len(proof["units"]) == 5
    line = mistake("verify", untouched, "--certificate", tmp_path / "no" / "such" / "proof.json")
    assert "--certificate" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_output_is_refused(tmp_path: Path, command: str) -> None:
    """Without a plan there is nothing to say: exit code 2 and one line that names the folder."""
    assert f"No tokenmill output found in {tmp_path}" in mistake(command, tmp_path)


def test_rejects_are_counted_by_class_with_examples(untouched: Path) -> None:
    """The table has a class's count, and two rows of it with their place and reason."""
    wide = {"COLUMNS": "200"}
    said = lines(invoke("rejects", untouched, env=wide), ExitCode.FINISHED)
    assert re.search(r"^empty_input +3$", said[1].rstrip())
    assert len(said) == 4
    assert "a.parquet row 1: " in said[2] and "a.parquet row 3: " in said[3]
    said = lines(invoke("rejects", untouched, "--examples", "0"), ExitCode.FINISHED)
    assert len(said) == 2


def test_classes_narrow_what_is_shown(untouched: Path) -> None:
    """A class without rows shows none; one that does not exist is the user's mistake."""
    said = lines(invoke("rejects", untouched, "--class", "timeout"), ExitCode.FINISHED)
    assert said == ["no rejects"]
    line = mistake("rejects", untouched, "--class", "timeouts")
    assert "--class timeouts" in line and "did you mean timeout?" in line


def test_rejects_are_exported(untouched: Path, tmp_path: Path) -> None:
    """--export writes all rows of the classes; a suffix that says no format is refused."""
    target = tmp_path / "rejects.parquet"
    lines(invoke("rejects", untouched, "--export", target), ExitCode.FINISHED)
    assert pq.read_table(target).num_rows == 3
    assert ".jsonl" in mistake("rejects", untouched, "--export", tmp_path / "rejects.csv")


def test_a_retry_without_such_rows_says_so(untouched: Path) -> None:
    """Nothing is started, and it ends with 0."""
    done = invoke("retry", untouched, "--class", "timeout")
    assert done.exit_code == ExitCode.FINISHED
    assert "no such rows. Nothing to do." in done.stderr


def test_a_retry_with_other_columns_is_refused(untouched: Path) -> None:
    """What would change the output's columns is named before anything starts."""
    line = mistake("retry", untouched, "--set", "task={kind: generate, n: 2}")
    assert line.startswith("error: --set: ") and "task" in line
