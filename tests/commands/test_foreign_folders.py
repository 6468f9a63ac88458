"""Commands work in folders with files and folders of the user's that have Python packages' names.

None of the user's Python files is imported, neither by the command nor by Ray's workers.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.command import ROOT, WITHOUT_RAY, output_rows, program
from helpers.inprocess import CORPUS, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.output.plan_file import SUCCESS_KEY

NUM_ROWS = sum(map(len, CORPUS.values()))
#: Names of ours or of a dependency, as folders of data without Python.
DATA_FOLDERS = ("tokenmill", "ray", "vllm", "datasets")
#: Python files of the user's; importing one of them is recorded, and ends the process.
PYTHON_FILES = ("pipeline/__init__.py", "pipeline.py", "jobs/__init__.py", "tests/__init__.py")
#: Python files with names of ours, of a dependency and of the standard library. Python itself finds
#: them first if the folder is on its path, but the `tokenmill` script does not put it there.
SHADOWING_FILES = ("tokenmill.py", "datasets.py", "secrets.py")
RECORD_AND_EXIT = """\
with open({record!r}, "a") as record:
    record.write(__file__ + "\\n")
raise SystemExit(__file__)
"""


class Folder:
    """A user's folder with a job, its corpus and files of other purposes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = path / "imported.txt"
        write_corpus(path / "corpus")
        (path / "job.yaml").write_text(yaml.safe_dump(job_over(Path("corpus"), "out")))
        for name in DATA_FOLDERS:
            (path / name).mkdir()
            (path / name / "data.txt").write_text("data")
        self.write_python(*PYTHON_FILES)

    def write_python(self, *names: str) -> None:
        for name in names:
            (self.path / name).parent.mkdir(exist_ok=True)
            (self.path / name).write_text(RECORD_AND_EXIT.format(record=str(self._record)))

    def run(self, *command: str, is_on_path: bool) -> None:
        """Run a command in the folder; it must succeed and import none of the user's files."""
        path = [*(["."] if is_on_path else []), str(ROOT / "pipeline")]
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == ExitCode.FINISHED, done.stdout + done.stderr
        assert not self._record.exists(), self._record.read_text()

    def forget_a_unit(self, output: str) -> None:
        """Bring an output into the state of a stopped run."""
        (self.path / output / SUCCESS_KEY).unlink()
        next((self.path / output).glob("data/*/*.parquet")).unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("is_on_path", [False, True])
def test_commands_ignore_the_users_files(folder: Folder, is_on_path: bool) -> None:
    """A job is validated, previewed, run, resumed and retried, also with the folder on the path."""
    for arguments in (["validate", "job.yaml"], ["preview", "job.yaml", "-n", "2"]):
        folder.run(sys.executable, "-m", "tokenmill", *arguments, is_on_path=is_on_path)
    folder.run(*WITHOUT_RAY, "run", "job.yaml", is_on_path=is_on_path)
    folder.forget_a_unit("out")
    folder.run(*WITHOUT_RAY, "run", "job.yaml", is_on_path=is_on_path)
    assert len(output_rows(folder.path / "out")) == NUM_ROWS
    folder.run(*WITHOUT_RAY, "retry", "out", is_on_path=is_on_path)


@pytest.mark.integration
def test_ray_workers_ignore_the_users_files(folder: Folder) -> None:
    """With the folder on Python's path, workers find tokenmill and Ray rather than the folders."""
    folder.run(sys.executable, "-m", "tokenmill", "run", "job.yaml", is_on_path=True)
    assert len(output_rows(folder.path / "out")) == NUM_ROWS


@pytest.mark.integration
def test_ray_workers_do_not_search_the_users_folder(folder: Folder) -> None:
    """With the `tokenmill` script, even files with the names of packages are not imported."""
    folder.write_python(*SHADOWING_FILES)
    folder.run(program("tokenmill"), "run", "job.yaml", is_on_path=False)
    assert len(output_rows(folder.path / "out")) == NUM_ROWS
