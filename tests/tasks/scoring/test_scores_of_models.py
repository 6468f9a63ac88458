"""Compare the scores of real engines, four in one replica, with transformers on the same rows."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.command import ROOT, output_rows
from helpers.fork_server import run_script, tokenmill
from helpers.inprocess import invoke
from tokenmill.config.model_source import ModelSource
from tokenmill.errors import ExitCode
from tokenmill.models.fetch import fetch_model

pytestmark = pytest.mark.integration

SMOLLM2, MINILM = "bundled:smollm2-135m", "bundled:minilm-l6"


def job(reward: Path, rerank: Path) -> dict[str, Any]:
    """A job with every scoring task: one model that scores, and three auxiliary pooling models."""
    text = {"text": "{{ text }}"}
    # Small caches: four engines share one machine. float32, because no model defaults to it.
    engine = {"dtype": "float32", "kv_cache_memory_bytes": 2**28}

    def auxiliary(source: str | Path) -> dict[str, Any]:
        return {"source": str(source), "engine": engine}

    return {
        "name": "numbers",
        "input": {"path": "corpus.parquet"},
        "model": {"source": SMOLLM2, "engine": {**engine, "max_model_len": 1024}},
        "tasks": [
            {"name": "text", "kind": "score", "prompt": text},
            {"name": "windows", "kind": "score", "window": 48, "stride": 16, "prompt": text},
            {
                "name": "answer",
                "kind": "score",
                "prompt": {"user": "{{ title }}"},
                "completion": "{{ text }}",
            },
            {"name": "vector", "kind": "embed", "prompt": text, "model": auxiliary(MINILM)},
            {
                "name": "judge",
                "kind": "reward",
                "prompt": {"user": "{{ title }}"},
                "completions": "answers",
                "model": auxiliary(reward),
            },
            {
                "name": "best",
                "kind": "generate",
                "prompt": {"user": "{{ title }}"},
                "sampling": {"temperature": 1, "max_tokens": 6, "seed": 1},
                "best_of": {"n": 3, "by": "reward", "model": auxiliary(reward)},
            },
            {
                "name": "pair",
                "kind": "rerank",
                "query": "{{ title }}",
                "document": "{{ text }}",
                "model": auxiliary(rerank),
            },
        ],
        "output": {"path": "out"},
        "units": {"rows": 4},
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus as Parquet shards."""
    folder = tmp_path_factory.mktemp("corpus")
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models' folders by role."""
    tiny = tmp_path_factory.mktemp("models")
    bundled = [str(fetch_model(ModelSource(source=source))) for source in (SMOLLM2, MINILM)]
    script = ROOT / "tests" / "helpers" / "tiny_models.py"
    run_script(script, tiny, *bundled)
    writer, embed = bundled
    return {
        "writer": writer,
        "embed": embed,
        "reward": str(tiny / "reward"),
        "rerank": str(tiny / "rerank"),
    }


@pytest.fixture(scope="module")
def documents(corpus: Path) -> list[dict[str, Any]]:
    """Texts in a few languages that fit every model, each with two answers to judge."""
    table = ds.dataset(corpus).to_table(columns=["title", "text"])
    rows = [row for row in table.to_pylist() if row["title"] and len(row["text"] or "") > 100]
    rows = [row for row in rows if len(row["text"]) < 600][:10]
    return [{**row, "answers": ["Yes.", row["text"][:80]]} for row in rows]


@pytest.fixture(scope="module")
def answered(
    folders: dict[str, str],
    documents: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """The output rows of one run of all tasks."""
    folder = tmp_path_factory.mktemp("run")
    pq.write_table(pa.Table.from_pylist(documents), folder / "corpus.parquet")
    data = job(Path(folders["reward"]), Path(folders["rerank"]))
    (folder / "job.yaml").write_text(yaml.safe_dump(data))
    done = tokenmill(
        *("run", folder / "job.yaml", "--input", folder / "corpus.parquet"),
        *("--output", folder / "out"),
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    rows = output_rows(folder / "out")
    assert [row["error"] for row in rows] == [None] * len(documents)
    return rows


@pytest.fixture(scope="module")
def reference(
    folders: dict[str, str],
    documents: list[dict[str, Any]],
    answered: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Any]]:
    """The reference libraries' values for the same rows and for the chosen answers."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "models.json").write_text(json.dumps(folders))
    rows = [
        {**document, "best": row["best_generated_text"]}
        for document, row in zip(documents, answered, strict=True)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    files = [folder / name for name in ("models.json", "rows.json", "numbers.json")]
    script = ROOT / "tests" / "helpers" / "reference_numbers.py"
    run_script(script, *files)
    numbers: dict[str, list[Any]] = json.loads(files[-1].read_text())
    return numbers


@pytest.mark.parametrize("task", ["text", "windows", "answer"])
def test_scores_match_transformers(
    answered: Sequence[dict[str, Any]],
    documents: Sequence[dict[str, Any]],
    reference: dict[str, list[Any]],
    task: str,
) -> None:
    """A text, a text in windows (as in its perplexity guide), and the answer to a chat."""
    for row, document, (total, count) in zip(answered, documents, reference[task], strict=True):
        assert row[f"{task}_num_scored_tokens"] == count
        assert row[f"{task}_mean_logprob"] == pytest.approx(total / count, abs=1e-3)
        assert row[f"{task}_perplexity"] == pytest.approx(math.exp(-total / count), rel=1e-3)
        size = len(document["text"].encode())
        bits = -total / math.log(2)
        # Without a begin-of-text token, the first token of a text is not scored.
        assert bits / size <= row[f"{task}_bits_per_byte"] + 1e-3
        if task == "answer":
            assert row["answer_bits_per_byte"] == pytest.approx(bits / size, abs=1e-3)


def test_embeddings_match_sentence_transformers(
    answered: Sequence[dict[str, Any]], reference: dict[str, list[Any]]
) -> None:
    """Vectors equal the normalized output of its `encode`."""
    vectors = np.array([row["vector_embedding"] for row in answered])
    assert vectors.shape == (len(answered), 384)
    assert np.abs(vectors - np.array(reference["vector"])).max() < 1e-3


def test_rewards_match_transformers(
    answered: Sequence[dict[str, Any]], reference: dict[str, list[Any]]
) -> None:
    """Each completion is the chat's last turn; `best_index` is the position of the largest."""
    for row, rewards in zip(answered, reference["rewards"], strict=True):
        assert row["judge_rewards"] == pytest.approx(rewards, abs=1e-3)
        assert row["judge_best_index"] == int(np.argmax(rewards))


def test_the_reward_of_the_best_answer_matches_transformers(
    answered: Sequence[dict[str, Any]], reference: dict[str, list[Any]]
) -> None:
    """The judge's reward for the chosen answer is that of the chat with this answer."""
    assert [row["best_reward"] for row in answered] == pytest.approx(reference["best"], abs=1e-3)


def test_relevances_match_transformers(
    answered: Sequence[dict[str, Any]], reference: dict[str, list[Any]]
) -> None:
    """Pairs are encoded with token types, which change the scores."""
    relevances = [row["pair_relevance"] for row in answered]
    assert relevances == pytest.approx(reference["pair"], abs=1e-3)
    assert np.std(relevances) > 0.1


def run(name: str, corpus: Path, output: Path) -> list[dict[str, Any]]:
    """The rows of a shipped job over the demo corpus."""
    job_file = ROOT / "jobs" / f"{name}.yaml"
    done = tokenmill("run", job_file, "--input", corpus, "--output", output)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    return output_rows(output)


@pytest.mark.shipped
def test_the_perplexity_job_scores_the_demo_corpus(corpus: Path, tmp_path: Path) -> None:
    """Every nonempty text has scores, and the repetitive text is the likeliest."""
    rows = run("perplexity", corpus, tmp_path / "out")
    scored = [row for row in rows if row["error"] is None]
    assert {row["doc_id"] for row in rows} - {row["doc_id"] for row in scored} == {
        "nasty-empty",
        "nasty-null-text",
        "nasty-blank",
    }
    assert min(scored, key=lambda row: row["perplexity"])["doc_id"] == "nasty-long"
    assert all(row["num_scored_tokens"] > 0 for row in scored)


@pytest.mark.shipped
def test_the_embeddings_job_embeds_the_demo_corpus(corpus: Path, tmp_path: Path) -> None:
    """The schema has the dimensions; a text longer than the model's 256 tokens is rejected."""
    rows = run("embeddings", corpus, tmp_path / "out")
    schema = ds.dataset(tmp_path / "out" / "data", format="parquet").schema
    assert schema.field("embedding").type == pa.list_(pa.float32(), 384)
    errors = {row["doc_id"]: row["error"] for row in rows}
    assert errors["nasty-long"]["class"] == "prompt_too_long"
    lengths = [np.linalg.norm(row["embedding"]) for row in rows if row["error"] is None]
    assert lengths == pytest.approx([1.0] * len(lengths), abs=1e-5)


@pytest.mark.shipped
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("reward", "reward"),
        ("rerank", "relevance"),
        ("judged", "check_reward"),
        ("best_by_reward", "reward"),
    ],
)
def test_the_shipped_jobs_with_hub_models_run(
    corpus: Path, tmp_path: Path, name: str, column: str
) -> None:
    """The fake engine replaces models that are only on the Hub."""
    done = invoke(
        *("run", ROOT / "jobs" / f"{name}.yaml", "--set", "model.source=fake"),
        *("--input", corpus, "--output", tmp_path / "out"),
        env={"REWARD_MODEL": "fake"},
    )
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    rows = output_rows(tmp_path / "out")
    numbers = [row[column] for row in rows if row["error"] is None]
    assert numbers
    assert all(isinstance(number, float) for number in numbers)
