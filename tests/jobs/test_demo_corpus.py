"""The demo corpus: what its shards contain, and that building them again changes nothing."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).parents[2] / "jobs" / "demo" / "build.py"
SECTIONS = {"account", "billing", "news", "product", "shipping", "sports"}


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_build", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = _load_script()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The shards of one build, in order."""
    built: list[Path] = demo.build(tmp_path_factory.mktemp("corpus"))
    return built


@pytest.fixture(scope="module")
def rows(shards: list[Path]) -> list[dict[str, Any]]:
    """The rows of all shards, in order."""
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def test_shards_hold_every_document_once_in_order(
    shards: list[Path], rows: list[dict[str, Any]]
) -> None:
    """The shards, read in order, are exactly the documents of the source file."""
    assert [shard.name for shard in shards] == [f"part-{number:03d}.parquet" for number in range(3)]
    assert sorted(shards[0].parent.iterdir()) == shards
    assert rows == demo.load_documents()


def test_shards_share_one_schema_and_have_several_row_groups(shards: list[Path]) -> None:
    """Every shard has the same eight nullable string columns and more than one row group."""
    columns = ["doc_id", "title", "text", "section", "language", "text_fr", "knowledge", "outline"]
    schema = pa.schema([pa.field(name, pa.string(), nullable=True) for name in columns])
    for shard in shards:
        parquet = pq.ParquetFile(shard)
        assert parquet.schema_arrow.equals(schema)
        assert parquet.num_row_groups > 1
        assert 20 <= parquet.metadata.num_rows <= 25


def test_building_twice_leaves_the_files_alone(tmp_path: Path) -> None:
    """A second build of the same documents rewrites no shard."""
    before = [(path, path.stat()) for path in demo.build(tmp_path)]
    demo.build(tmp_path)
    for path, stat in before:
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_a_damaged_shard_is_replaced(tmp_path: Path, shards: list[Path]) -> None:
    """A shard with other bytes is rewritten, and then equals that of any other build."""
    damaged = demo.build(tmp_path)[1]
    damaged.write_bytes(b"PAR1")
    demo.build(tmp_path)
    assert damaged.read_bytes() == shards[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 3


def test_the_script_prints_what_it_wrote(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """It creates the folder that it is given, and prints one line."""
    output = tmp_path / "new" / "folder"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(output)], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{len(rows)} documents in 3 shards in {output}\n"
    assert len(list(output.glob("part-*.parquet"))) == 3


def test_sections_and_languages_are_covered(rows: list[dict[str, Any]]) -> None:
    """Each section has at least five documents and each main language at least three."""
    normal = [row for row in rows if not row["doc_id"].startswith("nasty-")]
    sections = Counter(row["section"] for row in normal)
    languages = Counter(row["language"] for row in normal)
    assert sections.keys() == SECTIONS
    assert {row["section"] for row in rows} == SECTIONS
    assert min(sections.values()) >= 5
    assert languages.keys() == {"en", "fr", "de", "es", "zh"}
    assert min(languages.values()) >= 3


def test_the_french_column_is_partly_empty(rows: list[dict[str, Any]]) -> None:
    """French rows are their own translation, some English rows have one, the rest are null."""
    for row in rows:
        if row["language"] == "fr":
            assert row["text_fr"] == row["text"]
        elif row["language"] != "en":
            assert row["text_fr"] is None
    english = [row for row in rows if row["language"] == "en"]
    translated = [row for row in english if row["text_fr"] is not None]
    assert 10 <= len(translated) < len(english) / 2
    assert all(row["text_fr"] != row["text"] for row in translated)


def test_some_tickets_have_knowledge_and_some_articles_an_outline(
    rows: list[dict[str, Any]],
) -> None:
    """Nine tickets come with knowledge for a reply, and six articles with an outline."""
    with_knowledge = [row for row in rows if row["knowledge"] is not None]
    with_outline = [row for row in rows if row["outline"] is not None]
    assert all(row["doc_id"].startswith("ticket-") for row in with_knowledge)
    assert all(row["outline"].count("- ") >= 3 for row in with_outline)
    assert (len(with_knowledge), len(with_outline)) == (9, 6)


def test_every_kind_of_nasty_input_is_included(rows: list[dict[str, Any]]) -> None:
    """Each kind of awkward input survives Parquet."""
    nasty = {row["doc_id"]: row for row in rows if row["doc_id"].startswith("nasty-")}
    text = {doc_id: row["text"] for doc_id, row in nasty.items()}
    assert text["nasty-empty"] == ""
    assert text["nasty-null-text"] is None
    assert text["nasty-blank"] and not text["nasty-blank"].strip()
    assert 29_000 < len(text["nasty-long"]) < 32_000
    assert "\u200d" in text["nasty-emoji"] and "\U0001f1f3\U0001f1f5" in text["nasty-emoji"]
    assert {"\0", "\a", "\x1b", "\r"} <= set(text["nasty-control"])
    assert any("\u0600" <= char <= "\u06ff" for char in text["nasty-rtl"])
    assert "{{ secret }}" in text["nasty-jinja"] and "{% for " in text["nasty-jinja"]
    assert "<|im_end|>" in text["nasty-tokens"] and "<|im_start|>system" in text["nasty-tokens"]
    assert nasty["nasty-null-title"]["title"] is None and text["nasty-null-title"]


def test_only_the_nasty_duplicate_repeats_a_doc_id(
    shards: list[Path], rows: list[dict[str, Any]]
) -> None:
    """One doc_id occurs twice, in different shards; all others are unique."""
    counts = Counter(row["doc_id"] for row in rows)
    assert {doc_id: n for doc_id, n in counts.items() if n > 1} == {"nasty-duplicate": 2}
    holders = [s for s in shards if "nasty-duplicate" in pq.read_table(s)["doc_id"].to_pylist()]
    assert len(holders) == 2
