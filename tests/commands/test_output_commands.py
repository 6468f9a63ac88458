"""What `verify`, `rejects` and `retry` print about an output, and their exit codes."""

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


def finished_output(folder: Path, **changes: Any) -> Path:
    """An output of eight rows, three of them empty, in five units."""
    corpus = write_corpus(folder / "corpus")
    store = LocalStore(str(folder / "out"))
    drive(Job.model_validate(job_over(corpus, store.url, **changes)), store)
    return folder / "out"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return finished_output(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output for tests that do not change it."""
    return finished_output(tmp_path_factory.mktemp("output"))


def lines(done: Result, exit_code: ExitCode) -> list[str]:
    """The lines that a command printed before it exited with this code."""
    assert done.exit_code == exit_code, (done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout.splitlines()


def user_error(*arguments: str | Path) -> str:
    """The one-line error of a command that exits with 2."""
    done = invoke(*arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_verify_exits_with_0_for_a_whole_output(untouched: Path, deep: list[str]) -> None:
    """One line says that the output is verified, with its counts."""
    (line,) = lines(invoke("verify", untouched, *deep), ExitCode.FINISHED)
    assert line == f"{untouched}: verified; 5 units, 8 rows, 3 rejected, 0 filtered out"


def test_verify_names_each_problem_and_exits_with_1(output: Path) -> None:
    """Each problem has a kind, an object and a reason; the last line counts them."""
    lost, foreign = open_output(LocalStore(str(output))).plan.units[0].key, "data/notes.txt"
    (output / lost).unlink()
    (output / foreign).write_text("mine")
    printed = lines(invoke("verify", output), ExitCode.FAILED)
    assert printed[0].startswith(f"missing: {lost}: ")
    assert printed[1].startswith(f"foreign: {foreign}: ")
    assert "NOT verified, 2 problems" in printed[2]


def test_verify_shows_twenty_problems_and_counts_the_rest(output: Path) -> None:
    """The first twenty are printed, then how many more there are."""
    for number in range(30):
        (output / f"data/notes-{number}.txt").write_text("mine")
    printed = lines(invoke("verify", output), ExitCode.FAILED)
    assert len(printed) == 22
    assert printed[20] == "… and 10 more"
    assert "NOT verified, 30 problems" in printed[21]


def test_only_verify_deep_reads_rows(output: Path) -> None:
    """A flipped bit in a row is found with --deep, by the checksum."""
    path = output / open_output(LocalStore(str(output))).plan.units[0].key
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    lines(invoke("verify", output), ExitCode.FINISHED)
    printed = lines(invoke("verify", output, "--deep"), ExitCode.FAILED)
    assert printed[0].startswith("checksum: ")


def test_verify_writes_a_certificate(untouched: Path, tmp_path: Path) -> None:
    """--certificate writes the result to a file as JSON; a path in no folder is an error."""
    target = tmp_path / "proof.json"
    lines(invoke("verify", untouched, "--certificate", target), ExitCode.FINISHED)
    proof = json.loads(target.read_text())
    assert proof["is_whole"] is True
    assert len(proof["units"]) == 5
    line = user_error("verify", untouched, "--certificate", tmp_path / "no" / "such" / "proof.json")
    assert "--certificate" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_an_output_is_an_error(tmp_path: Path, command: str) -> None:
    """A folder without a plan ends the command with 2 and one line that names the folder."""
    assert f"No tokenmill output found in {tmp_path}" in user_error(command, tmp_path)


def test_rejects_are_counted_by_class_with_examples(untouched: Path) -> None:
    """The table has the count of each class, and two of its rows with position and reason."""
    wide = {"COLUMNS": "200"}
    printed = lines(invoke("rejects", untouched, env=wide), ExitCode.FINISHED)
    assert re.search(r"^empty_input +3$", printed[1].rstrip())
    assert len(printed) == 4
    assert "a.parquet row 1: " in printed[2] and "a.parquet row 3: " in printed[3]
    printed = lines(invoke("rejects", untouched, "--examples", "0"), ExitCode.FINISHED)
    assert len(printed) == 2


def test_class_selects_what_is_shown(untouched: Path) -> None:
    """A class without rows shows none; an unknown class is the user's mistake."""
    printed = lines(invoke("rejects", untouched, "--class", "timeout"), ExitCode.FINISHED)
    assert printed == ["no rejects"]
    line = user_error("rejects", untouched, "--class", "timeouts")
    assert "--class timeouts" in line and "did you mean timeout?" in line


def test_rejects_are_exported(untouched: Path, tmp_path: Path) -> None:
    """--export writes all rows of the classes; an unknown suffix is an error."""
    target = tmp_path / "rejects.parquet"
    lines(invoke("rejects", untouched, "--export", target), ExitCode.FINISHED)
    assert pq.read_table(target).num_rows == 3
    assert ".jsonl" in user_error("rejects", untouched, "--export", tmp_path / "rejects.csv")


def test_a_retry_without_rows_does_nothing(untouched: Path) -> None:
    """If no row is selected, retry says so, starts nothing and exits with 0."""
    done = invoke("retry", untouched, "--class", "timeout")
    assert done.exit_code == ExitCode.FINISHED
    assert "no rejected rows match. Nothing to do." in done.stderr


def test_a_retry_may_not_change_the_columns(untouched: Path) -> None:
    """A setting that would change the output's columns is an error before anything starts."""
    line = user_error("retry", untouched, "--set", "task={kind: generate, n: 2}")
    assert line.startswith("error: --set: ") and "task" in line
