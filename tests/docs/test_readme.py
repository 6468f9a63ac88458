"""What the README says is so: its options, its job, its tables, its numbers, its links."""

import json
import re
from pathlib import Path

import pytest
from helpers.command import ROOT, output_rows, tokenmill
from helpers.documents import PAGES, blocks, write_games
from helpers.inprocess import invoke
from tokenmill.errors import ExitCode
from tokenmill.job.loader import load_job
from tokenmill.output.heartbeat import ALIVE_NAME
from tokenmill.reject import RejectClass

README = (ROOT / "README.md").read_text(encoding="utf-8")


def of_language(language: str) -> list[str]:
    """The README's fenced blocks of a language; `` for those without one."""
    found = blocks(ROOT / "README.md")
    return [block.text for block in found if block.language == language]


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's corpus."""
    folder = tmp_path_factory.mktemp("readme") / "corpus"
    write_games(folder)
    return folder


@pytest.fixture(scope="module")
def job(corpus: Path) -> Path:
    """The README's job, in a file."""
    text, *_ = of_language("yaml")
    path = corpus.parent / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def output(corpus: Path, job: Path) -> Path:
    """What the README's job gives with the fake engine, in units of 8 rows."""
    out = corpus.parent / "out"
    done = tokenmill(
        *("run", job, "--input", corpus / "*.parquet", "--output", out),
        *("--set", "model.source=fake", "--set", "units.rows=8"),
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    return out


def test_the_options_of_run_are_named() -> None:
    """The README names all options of `tokenmill run`, and no others."""
    (sentence,) = re.findall(r"^`run` also takes (.*)\. On a", README, re.MULTILINE)
    options = set(re.findall(r"--[\w-]+", invoke("run", "--help").stdout))
    assert set(re.findall(r"--[\w-]+", sentence)) == options - {"--help"}


def test_the_bundled_models_are_listed() -> None:
    """`tokenmill models list` names the model of the README's job."""
    listed = invoke("models", "list")
    assert listed.exit_code == ExitCode.FINISHED
    assert "bundled:smollm2-135m" in listed.stdout
    assert "bundled:smollm2-135m" in README


def test_the_job_is_valid_and_complete(job: Path) -> None:
    """The job loads, and the README shows every section that there is."""
    load_job(job)
    sections = set(json.loads(invoke("schema").stdout)["properties"])
    shown = set(re.findall(r"^(\w+):", "".join(of_language("yaml")), re.MULTILINE))
    (others,) = re.findall(r"^A job may also have .*$", README, re.MULTILINE)
    assert sections == shown | set(re.findall(r"`(\w+)`", others))


def test_the_output_has_the_columns_of_the_table(output: Path) -> None:
    """The table's columns are the output's, after the kept ones and in its order."""
    rows = [line for line in section("What comes out").splitlines() if line.startswith("| `")]
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows))
    (first, *_) = output_rows(output)
    assert ["doc_id", *named] == list(first)


def test_the_output_has_the_files_of_the_layout(output: Path) -> None:
    """The files of an output are those of the layout, units at names of its form."""
    layout = next(block for block in of_language("") if block.startswith("OUTPUT/"))
    named = set(re.findall(r"[\w.-]*\w\.\w+|_SUCCESS", layout))
    found = {path.name for path in output.rglob("*") if path.is_file()}
    (unit,) = {name for name in named if name.startswith("rows-")}
    units = {name for name in found if len(name) == len(unit) and name.startswith("rows-")}
    assert units
    # A run of a few seconds writes no heartbeat.
    assert (found - units) | {ALIVE_NAME} == named - {unit}


def test_the_numbers_of_the_example_are_right(output: Path) -> None:
    """Shards of 22, 22 and 20 rows give 3 + 3 + 3 = 9 units of 8 rows."""
    assert "3 shards with 22, 22 and 20 rows and units of 8 rows give 3 + 3 + 3 = 9" in README
    assert len(list(output.glob("data/*/*.parquet"))) == 9


def test_the_filter_keeps_what_the_job_asks_for(output: Path) -> None:
    """Of the corpus only the games come out, in the input's order."""
    rows = output_rows(output)
    assert [row["doc_id"] for row in rows] == [
        f"{number}-{row}" for number, end in enumerate([22, 22, 20]) for row in range(1, end, 2)
    ]


def test_the_table_of_exit_codes_is_whole() -> None:
    """Each exit code is in the table once."""
    codes = re.findall(r"^\| (\d) \|", README, re.MULTILINE)
    assert codes == [str(int(code)) for code in sorted(ExitCode)]


def test_every_reject_class_is_named() -> None:
    """The README names each class of reject, and no other."""
    (sentence,) = re.findall(r"^A row that cannot be answered.*$", README, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", sentence)) - {"error"}
    assert named == {str(kind) for kind in RejectClass}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Each link to a file of the project leads to one."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
