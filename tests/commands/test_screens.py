"""Every screen of the command line, as a terminal of 100 columns shows it.

`pytest tests/commands/test_screens.py --write-screens` writes them to `tests/commands/screens`,
anew. What differs from one run to the next is replaced by something of the same width.
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
from tokenmill.output.plan_file import SUCCESS_KEY
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
#: Each screen by its name: the words behind `tokenmill`, and the exit code.
SHOWN: dict[str, tuple[str, ExitCode]] = {
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
    """The words of every command, groups and their commands; the program itself is ``."""
    yield ""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        yield name
        yield from (f"{name} {inner}" for inner in getattr(command, "commands", ()))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a job, its corpus and outputs of it: finished, changed, stopped."""
    # Of a name that is always as long: where lines end depends on it.
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


#: What differs from run to run, and what stands for it: as long, so that lines end where they did.
UNSTEADY = {
    r"\d{8}T\d{6}Z-[0-9a-f]{6}": "20260101T120000Z-abcdef",
    r"(?<=tokens/s)( +)[\d,]+ in, [\d,]+ out": r"\g<1>0 in, 0 out",
    r"(?<=replicas)( +)\S.*": r"\g<1>1, with 0 rows of 0 units",
    r"(?<=ETA)( +)\S.*": r"\g<1>0 s, after 8 s",
    r"rows in \d+ s$": "rows in 8 s",
    r"(?<=tokens)( +[\d,]+) \([\d,]+/s\)$": r"\g<1>",
}


def steady(line: str, folder: Path) -> str:
    """A line without what differs from run to run."""
    line = line.replace(str(folder), f"{folder.parent}/screens-XXXXXXXX")
    for unsteady, instead in UNSTEADY.items():
        line = re.sub(unsteady, instead, line)
    return line


def check(name: str, shown: Shown, folder: Path, request: pytest.FixtureRequest, said: str) -> None:
    """Hold a screen against the one that is kept, or keep it."""
    lines = [f"$ tokenmill {said}".rstrip(), *(steady(line, folder) for line in shown.lines)]
    text = "".join(f"{line}\n" for line in lines)
    path = SCREENS / f"{name}.txt"
    if request.config.getoption("--write-screens"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == kept, (
        "pytest tests/commands/test_screens.py --write-screens keeps it as it is now"
    )
    assert too_wide(shown, COLUMNS) == []


def too_wide(shown: Shown, columns: int) -> list[str]:
    """Lines that the terminal breaks, but for errors and paths: those are one line each."""
    return [
        line
        for line in shown.lines
        if len(line) > columns and not line.startswith(("error: ", "loading "))
    ]


def file_name(name: str) -> str:
    return "-".join(["help", *name.split()])


@pytest.mark.parametrize("name", list(commands()))
def test_help(
    name: str, terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Every command says what it is for, with an example."""
    shown = terminal.run(*name.split(), "--help")
    assert shown.exit_code == ExitCode.FINISHED
    check(file_name(name), shown, folder, request, f"{name} --help".strip())
    assert "Example: tokenmill" in "".join(shown.lines) or name in ("", "models")


@pytest.mark.parametrize("name", SHOWN)
def test_screen(
    name: str, terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """What a command shows, and what it ends with."""
    said, exit_code = SHOWN[name]
    shown = terminal.run(*said.split())
    check(name, shown, folder, request, said)
    assert shown.exit_code == exit_code


@pytest.mark.integration
def test_the_screen_of_a_run(
    terminal: PseudoTerminal, folder: Path, request: pytest.FixtureRequest
) -> None:
    """Bars at their end, then what the run came to and what to do next."""
    said = "run job.yaml --output ran"
    shown = terminal.run(*said.split())
    check("run", shown, folder, request, said)
    assert shown.exit_code == ExitCode.FINISHED


def test_no_screen_is_kept_of_what_is_gone() -> None:
    """Each file belongs to a screen."""
    kept = {path.stem for path in SCREENS.glob("*.txt")}
    assert kept == {"run", *SHOWN, *map(file_name, commands())}


#: Of every way in which something is drawn one.
DRAWN = ("--help", "run --help", "validate job.yaml", "plan job.yaml", "preview job.yaml")
DRAWN += (
    "status out",
    "compare out other",
    "rejects out",
    "verify stopped",
    "models list",
    "statsu",
)


@pytest.mark.parametrize("said", DRAWN)
def test_a_pipe_gets_no_escape_sequence(said: str, terminal: PseudoTerminal) -> None:
    """What is read by a program has no colours, whatever stands in a row."""
    assert b"\x1b" not in terminal.run(*said.split(), piped=True).data


@pytest.mark.parametrize("said", DRAWN)
def test_who_wants_no_colour_gets_none(said: str, terminal: PseudoTerminal) -> None:
    """With NO_COLOR a terminal shows bold, dim and italic at most."""
    shown = terminal.run(*said.split(), env={"NO_COLOR": "1"})
    codes = {
        code for codes in re.findall(rb"\x1b\[([\d;]*)m", shown.data) for code in codes.split(b";")
    }
    assert codes <= {b"", b"0", b"1", b"2", b"3"}


@pytest.mark.parametrize("said", [said for said in DRAWN if said != "verify stopped"])
@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_is_wide_enough(
    said: str, columns: int, terminal: PseudoTerminal
) -> None:
    """Tables end where the terminal does."""
    assert too_wide(terminal.run(*said.split(), columns=columns), columns) == []
