"""A job file to begin with: made for what is in the input, valid as it is, never overwritten."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenmill.cli import app
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.models.fetch import local_path
from tokenmill.scaffold.job_file import KINDS
from typer.testing import CliRunner, Result

FAKE = ("--set", "model={source: fake}")
PARAGRAPH = "A parcel was lost on its way and the customer wants to know where it is. "


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards with a key, a title, a longer text, a language, an image and a recording."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(2):
        rows = [
            {
                "doc_id": f"{shard}-{row}",
                "title": f"Parcel {row}",
                "text": PARAGRAPH * (1 + row % 3),
                "language": "en",
                "image": b"not really",
                "audio": b"not really",
            }
            for row in range(10)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def begun(corpus: Path | str, kind: str = "generate", file: str = "job.yaml") -> Path:
    done = command("init", "--task", kind, "--input", corpus, "--output", file)
    assert done.exit_code == ExitCode.FINISHED, done.output
    return Path(file)


def refused(*arguments: str | Path) -> str:
    done = command("init", *arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.output
    (line,) = done.stderr.splitlines()
    return line


def table_with(name: str, path: Path) -> Path:
    pq.write_table(pa.table({"id": [1, 2], name: [PARAGRAPH, None]}), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_valid_as_it_stands(corpus: Path, kind: str) -> None:
    """For every kind: with the fake engine, and with its own model, fetched or not."""
    path = begun(corpus, kind)
    job = load_job(path)
    assert [step.kind.name for step in job.steps] == [kind]
    fake = command("validate", path, *FAKE)
    assert fake.exit_code == ExitCode.FINISHED, fake.output
    # How long its vectors are an embedding model alone says.
    if kind != "embed" or local_path(job.model) is not None:
        own = command("validate", path)
        assert own.exit_code == ExitCode.FINISHED, own.output


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_commented_out_is_valid_too(corpus: Path, kind: str) -> None:
    """The keys behind comments are keys of the job, and stand where they belong."""
    path = begun(corpus, kind)
    *_, text = re.split(r"(?=^name: )", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^  source: .*\n(  engine: .*\n)?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", text, flags=re.MULTILINE)
    path.write_text(text)
    job = load_job(path)
    assert job.model.price_per_gpu_hour == 2.5
    assert job.input.where is not None
    assert job.units is not None


def test_the_file_tells_of_the_input(corpus: Path) -> None:
    """Its rows, its columns with their types and values; no line is wider than the screen."""
    text = begun(corpus).read_text().replace(str(corpus), "corpus")
    assert "20 rows in 2 shards" in text
    assert "#   doc_id: string: '0-0', '0-1'" in text
    assert "#   image: binary: 10 bytes" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_shard_without_rows_is_not_counted(corpus: Path) -> None:
    """As in a plan: `validate` says the same of the same input."""
    empty = pq.read_table(corpus / "0.parquet").slice(0, 0)
    pq.write_table(empty, corpus / "2.parquet")
    path = begun(corpus)
    assert "20 rows in 2 shards" in path.read_text()
    validated = command("validate", path, *FAKE)
    assert "20 in 2 shards" in validated.stdout, validated.output


def test_the_text_is_asked_about_and_keys_are_kept(corpus: Path) -> None:
    """The longest texts, not titles; what identifies a row comes out with its answer."""
    job = load_job(begun(corpus))
    assert set(job.steps[0].columns) == {"text"}
    assert job.input.keep == ("doc_id",)
    assert job.model.source == "bundled:smollm2-135m"


def test_what_many_rows_share_is_no_key(tmp_path: Path) -> None:
    """A column that is only called like one is not kept."""
    rows = {"doc_id": [1, 2], "group_id": [7, 7], "text": [PARAGRAPH] * 2}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert load_job(begun("a.parquet")).input.keep == ("doc_id",)


def test_a_name_of_a_text_counts_against_a_longer_one(tmp_path: Path) -> None:
    """A column `content` is the text even beside some longer ones."""
    rows = {"content": ["a short text", "another one"], "notes": ["a little longer one " * 2] * 2}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert set(load_job(begun("a.parquet")).steps[0].columns) == {"content"}


def test_long_texts_are_cut(tmp_path: Path) -> None:
    """Where the input has some, the job says what becomes of them."""
    pq.write_table(pa.table({"text": ["short"]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"text": ["long " * 5000]}), tmp_path / "long.parquet")
    assert load_job(begun("short.parquet", file="a.yaml")).length.policy == "reject"
    assert load_job(begun("long.parquet", file="b.yaml")).length.policy == "truncate"


@pytest.mark.parametrize(
    "name", ["my text", "range", "row", "choices", 'a "quoted" one', "été", "null", "a: b #c", "$x"]
)
@pytest.mark.parametrize("kind", ["generate", "tag", "translate", "score"])
def test_columns_of_any_name_can_be_asked_about(tmp_path: Path, name: str, kind: str) -> None:
    """Names that YAML, Jinja or SQL would take for something else are written so that they do not.

    Control characters and half pairs in a value or a name do not spoil the file.
    """
    job = load_job(begun(table_with(name, tmp_path / "a.parquet"), kind))
    assert name in job.steps[0].columns
    done = command("validate", "job.yaml", *FAKE)
    assert done.exit_code == ExitCode.FINISHED, done.output


def test_what_stands_in_a_value_does_not_spoil_the_file(tmp_path: Path) -> None:
    """Line breaks, control characters, and what would end a comment stay in their line."""
    table = pa.table({"text": ["a\nname: other\x00\x1b[2J\x85\u2028b"], "a\nb": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_job(begun("a.parquet")).name == "summaries"


def test_an_output_does_not_lie_inside_the_input(tmp_path: Path) -> None:
    """Who begins in the very folder of the input gets a path beside it, and a valid job."""
    table_with("text", tmp_path / "a.parquet")
    done = command("init")
    assert done.exit_code == ExitCode.FINISHED, done.output
    job: Job = load_job(Path("job.yaml"))
    assert job.input.path == "."
    assert job.output.path == f"{tmp_path}-out/summaries"
    assert command("validate", "job.yaml", *FAKE).exit_code == ExitCode.FINISHED


def test_shards_that_are_unlike_are_no_hindrance(corpus: Path) -> None:
    """Columns that a shard lacks or has with another type are left out; bad shards are skipped."""
    other = pa.table({"doc_id": ["x"], "title": [5], "text": [PARAGRAPH]})
    pq.write_table(other, corpus / "2.parquet")
    (corpus / "3.parquet").write_bytes(b"not Parquet")
    job = load_job(begun(corpus))
    assert job.input.on_bad_shard == "skip"
    assert "title" not in Path("job.yaml").read_text()
    assert command("validate", "job.yaml", *FAKE).exit_code == ExitCode.FINISHED


def test_a_file_is_never_overwritten(corpus: Path) -> None:
    """What is there stays as it is."""
    path = begun(corpus)
    path.write_text("precious")
    assert "job.yaml" in refused("--input", corpus)
    assert path.read_text() == "precious"


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path) -> None:
    """No input, an unknown kind, no column to ask about, no such folder; no file is written."""
    pq.write_table(pa.table({"id": [1]}), tmp_path / "numbers.parquet")
    table_with("text", tmp_path / "texts.parquet")
    for arguments, part in (
        (["--input", "nowhere"], "nowhere"),
        (["--input", corpus, "--task", "clasify"], "did you mean classify?"),
        (["--input", "numbers.parquet"], "id (int64)"),
        (["--input", "texts.parquet", "--task", "describe"], "image"),
        (["--input", corpus, "--output", "no/job.yaml"], "no/job.yaml"),
    ):
        assert part in refused(*arguments)
    assert not list(tmp_path.rglob("*.yaml"))
