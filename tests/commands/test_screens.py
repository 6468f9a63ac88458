"""Every screen of the command line, as a terminal of 100 columns shows it.

`pytest tests/commands/test_screens.py --write-screens` rewrites the files in
`tests/commands/screens`. Whatever differs between runs is replaced by text of the same width.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from helpers.command import ROOT
from helpers.inprocess import drive, write_corpus
from helpers.pseudo_terminal import PseudoTerminal, Shown
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from tokenmill.job.loader import load_job
from tokenmill.output.success import SUCCESS_KEY
from tokenmill.storage.local import LocalStore

SCREENS = ROOT / "tests" / "commands" / "screens"
COLUMNS = 100
JOB = """\
name: moods
input: {path: FOLDER/corpus, keep: [id]}
model: {source: fake}
prompt: {user: "{{ text }}"}
sampling: {max_tokens: 16}
output: {path: out}
units: {rows: 2}
max_reject_rate: 0.5
"""
CORPUS = {
    "a.parquet": ["Good morning", "", "A text of نص عربي and 🎉", None, "\x1b[31mred"],
    "b/c.parquet": ["A long text: " + "many words, " * 80, "seven", "   "],
}
#: Each screen by name: the arguments of `tokenmill`, and the exit code.
SCREENS_SHOWN: dict[str, tuple[str, ExitCode]] = {
    "init": ("init --input corpus --output new.yaml", ExitCode.FINISHED),
    "init-there": ("init --input corpus --output job.yaml", ExitCode.USER_ERROR),
    "init-nowhere": ("init --input corpse", ExitCode.USER_ERROR),
    "init-task": ("init --input corpus --task sumarize", ExitCode.USER_ERROR),
    "validate": ("validate job.yaml", ExitCode.FINISHED),
    "plan": ("plan job.yaml --price 2.50", ExitCode.FINISHED),
    "plan-from": ("plan job.yaml --from out --price 2.50", ExitCode.FINISHED),
    "preview": ("preview job.yaml -n 3", ExitCode.FINISHED),
    "preview-none": ("preview job.yaml --where id>99", ExitCode.USER_ERROR),
    "run-finished": ("run job.yaml", ExitCode.FINISHED),
    "run-changed": ("run job.yaml --set sampling.max_tokens=9", ExitCode.USER_ERROR),
    "status": ("status out", ExitCode.FINISHED),
    "status-stopped": ("status stopped", ExitCode.FINISHED),
    "status-nowhere": ("status corpus", ExitCode.USER_ERROR),
    "report": ("report out", ExitCode.FINISHED),
    "compare": ("compare out other", ExitCode.FAILED),
    "compare-same": ("compare out out", ExitCode.FINISHED),
    "export": ("export out answers.jsonl", ExitCode.FINISHED),
    "export-unfinished": ("export stopped partly.jsonl", ExitCode.USER_ERROR),
    "verify": ("verify out", ExitCode.FINISHED),
    "verify-stopped": ("verify stopped", ExitCode.FAILED),
    "rejects": ("rejects out", ExitCode.FINISHED),
    "rejects-none": ("rejects out --class timeout", ExitCode.FINISHED),
    "retry-none": ("retry out --class timeout", ExitCode.FINISHED),
    "models-list": ("models list", ExitCode.FINISHED),
    "models-path": ("models path bundled:minilm-l6", ExitCode.FAILED),
    "wrong-command": ("statsu out", ExitCode.USER_ERROR),
    "wrong-option": ("run job.yaml --limits 5", ExitCode.USER_ERROR),
    "wrong-key": ("validate job.yaml --set model.replica=2", ExitCode.USER_ERROR),
    "wrong-column": ("validate job.yaml --set input.keep=[ids]", ExitCode.USER_ERROR),
    "wrong-where": ("preview job.yaml --where id>", ExitCode.USER_ERROR),
    "wrong-set": ("validate job.yaml --set units", ExitCode.USER_ERROR),
    "wrong-job": ("validate jobs.yaml", ExitCode.USER_ERROR),
    "wrong-value": ("validate job.yaml --limit many", ExitCode.USER_ERROR),
    "missing-argument": ("run", ExitCode.USER_ERROR),
}


def commands() -> Iterator[str]:
    """The name of every command, group and command of a group; the program itself is ``."""
    yield ""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        yield name
        yield from (f"{name} {subcommand}" for subcommand in getattr(command, "commands", ()))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a job, its corpus and three outputs: finished, changed and stopped."""
    # The name always has the same length: line breaks depend on it.
    folder = Path(tempfile.mkdtemp(prefix="screens-", dir="/tmp"))
    write_corpus(folder / "corpus", CORPUS)
    (folder / "job.yaml").write_text(JOB.replace("FOLDER", str(folder)))
    for name, changes in {"out": [], "other": ["sampling.seed=1"]}.items():
        path = folder / name
        job = load_job(folder / "job.yaml", [*changes, f"output.path={path}"])
        drive(job, LocalStore(str(path)))
    shutil.copytree(folder / "out", folder / "stopped")
    (folder / "stopped" / SUCCESS_KEY).unlink()
    next((folder / "stopped").glob("data/b/c/*.parquet")).unlink()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def terminal(folder: Path) -> Iterator[PseudoTerminal]:
    terminal = PseudoTerminal(folder)
    yield terminal
    terminal.close()


#: What differs between runs, and its replacement of the same width.
VARIABLE_TEXT = {
    r"\d{8}T\d{6}Z-[0-9a-f]{6}": "20260101T120000Z-abcdef",
    r"(?<=tokens/s)( +)[\d,]+ in, [\d,]+ out": r"\g<1>0 in, 0 out",
    r"(?<=replicas)( +)\S.*": r"\g<1>1, with 0 rows of 0 units",
    r"(?<=ETA)( +)\S.*": r"\g<1>0 s, after 8 s",
    r"rows in \d+ s$": "rows in 8 s",
    r"(?<=tokens)( +[\d,]+) \([\d,]+/s\)$": r"\g<1>",
}


def stable(line: str, folder: Path) -> str:
    """A line without what differs between runs."""
    line = line.replace(str(folder), f"{folder.parent}/screens-XXXXXXXX")
    for pattern, replacement in VARIABLE_TEXT.items():
        line = re.sub(pattern, replacement, line)
    return line


def check(
    name: str, shown: Shown, folder: Path, request: pytest.FixtureRequest, arguments: str
) -> None:
    """Compare a screen with its file, or write the file."""
    lines = [f"$ tokenmill {arguments}".rstrip(), *(stable(line, folder) for line in shown.lines)]
    text = "".join(f"{line}\n" for line in lines)
    path = SCREENS / f"{name}.txt"
    if request.config.getoption("--write-screens"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == expected, (
        "if this is as intended: pytest tests/commands/test_screens.py --write-screens"
    )
    assert too_wide(shown, COLUMNS) == []


def too_wide(shown: Shown, columns: int) -> list[str]:
    """Lines that the terminal wraps, except errors, log paths and findings, which may be long."""
    return [
        line
        for line in shown.lines
        if len(line) > columns and not line.startswith(("error: ", "loading ", "missing: "))
    ]


def file_name(name: str) -> str:
    return "-".join(["help", *name.split()])


@pytest.mark.parametrize("name", list(commands()))
def test_help(
    name: str, terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Every command has a description and an example."""
    shown = terminal.run(*name.split(), "--help")
    assert shown.exit_code == ExitCode.FINISHED
    check(file_name(name), shown, folder, request, f"{name} --help".strip())
    assert "Example: tokenmill" in "".join(shown.lines) or name in ("", "models")


@pytest.mark.parametrize("name", SCREENS_SHOWN)
def test_screen(
    name: str, terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """What a command prints, and its exit code."""
    arguments, exit_code = SCREENS_SHOWN[name]
    shown = terminal.run(*arguments.split())
    check(name, shown, folder, request, arguments)
    assert shown.exit_code == exit_code


@pytest.mark.integration
def test_the_screen_of_a_run(
    terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Full progress bars, then the summary of the run and the next command."""
    arguments = "run job.yaml --output ran"
    shown = terminal.run(*arguments.split())
    check("run", shown, folder, request, arguments)
    assert shown.exit_code == ExitCode.FINISHED


def test_every_screen_file_is_in_use() -> None:
    """Each file belongs to a screen."""
    stems = {path.stem for path in SCREENS.glob("*.txt")}
    assert stems == {"run", *SCREENS_SHOWN, *map(file_name, commands())}


#: One command for each way of drawing something.
DRAWN = ("--help", "run --help", "validate job.yaml", "plan job.yaml", "preview job.yaml")
DRAWN += (
    "status out",
    "compare out other",
    "rejects out",
    "verify stopped",
    "models list",
    "statsu",
)


@pytest.mark.parametrize("arguments", DRAWN)
def test_a_pipe_gets_no_escape_sequence(arguments: str, terminal: PseudoTerminal) -> None:
    """Output for programs has no colours, even if a row contains escape sequences."""
    assert b"\x1b" not in terminal.run(*arguments.split(), piped=True).data


@pytest.mark.parametrize("arguments", DRAWN)
def test_no_color_is_respected(arguments: str, terminal: PseudoTerminal) -> None:
    """With NO_COLOR a terminal gets bold, dim and italic at most."""
    shown = terminal.run(*arguments.split(), env={"NO_COLOR": "1"})
    codes = {
        code for codes in re.findall(rb"\x1b\[([\d;]*)m", shown.data) for code in codes.split(b";")
    }
    assert codes <= {b"", b"0", b"1", b"2", b"3"}


@pytest.mark.parametrize("arguments", [words for words in DRAWN if words != "verify stopped"])
@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit_into_a_narrow_terminal(
    arguments: str, columns: int, terminal: PseudoTerminal
) -> None:
    """No line of a table is wider than the terminal."""
    assert too_wide(terminal.run(*arguments.split(), columns=columns), columns) == []
