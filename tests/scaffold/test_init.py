"""`init` writes a job file that fits the input and is valid; it never overwrites a file."""

import re
import shlex
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
PARAGRAPH = "A letter was lost on its way and the customer wants to know where it is. "


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards with a key, a title, a text, a language, an image and a recording."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(2):
        rows = [
            {
                "doc_id": f"{shard}-{row}",
                "title": f"Letter {row}",
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
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in its own folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def init_job(corpus: Path | str, kind: str = "generate", file: str = "job.yaml") -> Path:
    done = command("init", "--task", kind, "--input", corpus, "--output", file)
    assert done.exit_code == ExitCode.FINISHED, done.output
    return Path(file)


def user_error(*arguments: str | Path) -> str:
    """The one-line error of `init`, which exits with 2."""
    done = command("init", *arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.output
    (line,) = done.stderr.splitlines()
    return line


def table_with(name: str, path: Path) -> Path:
    pq.write_table(pa.table({"id": [1, 2], name: [PARAGRAPH, None]}), path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_file_is_valid(corpus: Path, kind: str) -> None:
    """For every kind, with the fake engine and with its own model, fetched or not."""
    path = init_job(corpus, kind)
    job = load_job(path)
    assert [step.kind.name for step in job.steps] == [kind]
    fake = command("validate", path, *FAKE)
    assert fake.exit_code == ExitCode.FINISHED, fake.output
    # The length of an embedding is only known from the model itself.
    if kind != "embed" or local_path(job.model) is not None:
        real = command("validate", path)
        assert real.exit_code == ExitCode.FINISHED, real.output


@pytest.mark.parametrize("kind", KINDS)
def test_keys_in_comments_are_valid(corpus: Path, kind: str) -> None:
    """The job file is still valid if its commented keys are uncommented."""
    path = init_job(corpus, kind)
    *_, text = re.split(r"(?=^name: )", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^  source: .*\n(  engine: .*\n)?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)# (?=[a-z_]+: )", r"\1", text, flags=re.MULTILINE)
    path.write_text(text)
    job = load_job(path)
    assert job.model.price_per_gpu_hour == 2.5
    assert job.input.where is not None
    assert job.units is not None


def test_the_comments_describe_the_input(corpus: Path) -> None:
    """They list rows, shards, columns, types and values, in lines of at most 100 characters."""
    text = init_job(corpus).read_text().replace(str(corpus), "corpus")
    assert "20 rows in 2 shards" in text
    assert "#   doc_id: string: '0-0', '0-1'" in text
    assert "#   image: binary: 10 bytes" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_commands_in_the_comments_can_be_copied(corpus: Path, tmp_path: Path) -> None:
    """What they do is a comment in the shell, however long the path of the file is."""
    path = tmp_path / "a-folder-with-a-long-name" / "a-job-with-a-long-name.yaml"
    path.parent.mkdir()
    text = init_job(corpus, file=str(path)).read_text()
    copied = re.findall(r"^#   (tokenmill .*)$", text, flags=re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in copied]
    commands = ["validate", "preview", "plan", "run"]
    assert words == [["tokenmill", name, str(path)] for name in commands]


@pytest.mark.parametrize("kind", ["classify", "tag"])
def test_the_values_of_a_column_of_labels_are_offered_as_choices(tmp_path: Path, kind: str) -> None:
    """All that the first rows have, even if there are many; without the comment they are valid."""
    sections = [f"section no. {number % 57}" for number in range(600)]
    rows = {"id": range(600), "text": [PARAGRAPH] * 600, "section": sections}
    rows["title"] = [f"title {number}" for number in range(600)]
    rows["author"] = [f"author {number // 2}" for number in range(600)]
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    path = init_job(tmp_path / "a.parquet", kind)
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    mine = re.sub(r"(?m)^  choices: .*\n(    .*\n)*", "", text)
    assert "title 0" not in text.split("choices", 1)[1] and "author 0" not in mine.split("task:")[1]
    path.write_text(re.sub(r"(?m)^  # (?=choices|  \S)", "  ", mine))
    assert {choice.label for choice in load_job(path).steps[0].section.choices} == set(sections)


def test_a_shard_without_rows_is_not_counted(corpus: Path) -> None:
    """`init` and `validate` count the same rows and shards."""
    empty = pq.read_table(corpus / "0.parquet").slice(0, 0)
    pq.write_table(empty, corpus / "2.parquet")
    path = init_job(corpus)
    assert "20 rows in 2 shards" in path.read_text()
    validated = command("validate", path, *FAKE)
    assert "20 in 2 shards" in validated.stdout, validated.output


def test_the_longest_texts_are_processed_and_keys_are_kept(corpus: Path) -> None:
    """The prompt uses the text rather than the title, and the key is copied to the output."""
    job = load_job(init_job(corpus))
    assert set(job.steps[0].columns) == {"text"}
    assert job.input.keep == ("doc_id",)
    assert job.model.source == "bundled:smollm2-135m"


def test_a_column_with_repeated_values_is_not_a_key(tmp_path: Path) -> None:
    """A column with the name of a key is kept only if its values are distinct."""
    rows = {"doc_id": [1, 2], "group_id": [7, 7], "text": [PARAGRAPH] * 2}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert load_job(init_job("a.parquet")).input.keep == ("doc_id",)


def test_a_column_named_like_a_text_is_preferred(tmp_path: Path) -> None:
    """A column `content` is chosen even if another column has longer texts."""
    rows = {"content": ["a short text", "another one"], "notes": ["a little longer one " * 2] * 2}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert set(load_job(init_job("a.parquet")).steps[0].columns) == {"content"}


def test_long_texts_are_truncated(tmp_path: Path) -> None:
    """If the input has long texts, the job file sets a length policy."""
    pq.write_table(pa.table({"text": ["short"]}), tmp_path / "short.parquet")
    pq.write_table(pa.table({"text": ["long " * 5000]}), tmp_path / "long.parquet")
    assert load_job(init_job("short.parquet", file="a.yaml")).length.policy == "reject"
    assert load_job(init_job("long.parquet", file="b.yaml")).length.policy == "truncate"


@pytest.mark.parametrize(
    "name", ["my text", "range", "row", "choices", 'a "quoted" one', "été", "null", "a: b #c", "$x"]
)
@pytest.mark.parametrize("kind", ["generate", "tag", "translate", "score"])
def test_a_column_can_have_any_name(tmp_path: Path, name: str, kind: str) -> None:
    """Names with a meaning in YAML, Jinja or SQL are quoted."""
    job = load_job(init_job(table_with(name, tmp_path / "a.parquet"), kind))
    assert name in job.steps[0].columns
    done = command("validate", "job.yaml", *FAKE)
    assert done.exit_code == ExitCode.FINISHED, done.output


def test_values_cannot_break_the_job_file(tmp_path: Path) -> None:
    """Line breaks and control characters in values and names are escaped in the comments."""
    table = pa.table({"text": ["a\nname: other\x00\x1b[2J\x85\u2028b"], "a\nb": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_job(init_job("a.parquet")).name == "summaries"


def test_the_output_is_never_inside_the_input(tmp_path: Path) -> None:
    """If `init` runs in the folder of the input, the output is a folder next to it."""
    table_with("text", tmp_path / "a.parquet")
    done = command("init")
    assert done.exit_code == ExitCode.FINISHED, done.output
    job: Job = load_job(Path("job.yaml"))
    assert job.input.path == "."
    assert job.output.path == f"{tmp_path}-out/summaries"
    assert command("validate", "job.yaml", *FAKE).exit_code == ExitCode.FINISHED


def test_shards_can_have_different_columns(corpus: Path) -> None:
    """Columns that differ between shards are left out, and unreadable shards are skipped."""
    other = pa.table({"doc_id": ["x"], "title": [5], "text": [PARAGRAPH]})
    pq.write_table(other, corpus / "2.parquet")
    (corpus / "3.parquet").write_bytes(b"not Parquet")
    job = load_job(init_job(corpus))
    assert job.input.on_bad_shard == "skip"
    assert "title" not in Path("job.yaml").read_text()
    assert command("validate", "job.yaml", *FAKE).exit_code == ExitCode.FINISHED


def test_an_existing_file_is_not_overwritten(corpus: Path) -> None:
    """The file keeps its content, and the error names it."""
    path = init_job(corpus)
    path.write_text("precious")
    assert "job.yaml" in user_error("--input", corpus)
    assert path.read_text() == "precious"


def test_mistakes_are_one_line(corpus: Path, tmp_path: Path) -> None:
    """A mistake in an option, or an input without a fitting column, writes no file."""
    pq.write_table(pa.table({"id": [1]}), tmp_path / "numbers.parquet")
    table_with("text", tmp_path / "texts.parquet")
    for arguments, part in (
        (["--input", "nowhere"], "nowhere"),
        (["--input", corpus, "--task", "clasify"], "did you mean classify?"),
        (["--input", "numbers.parquet"], "id (int64)"),
        (["--input", "texts.parquet", "--task", "describe"], "image"),
        (["--input", corpus, "--output", "no/job.yaml"], "no/job.yaml"),
    ):
        assert part in user_error(*arguments)
    assert not list(tmp_path.rglob("*.yaml"))
