"""What is read from a model's folder: dimensions, labels, context length, spans of tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.models.config import max_model_len, read_config
from tokenmill.models.fetch import fetch_config
from tokenmill.prompt.tokenizer import TextSpan, second_start, text_span
from tokenmill.stages.load import resolve


def make_folder(path: Path, **files: Any) -> Path:
    """A model folder with these JSON files; `__` in a name becomes a slash."""
    for name, content in files.items():
        file = path / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"config": {"hidden_size": 384}}, 384),
        ({"config": {"text_config": {"hidden_size": 64}}}, 64),
        ({"config": {"n_embd": 768}}, 768),
        ({"config": {"hidden_size": 384, "embedding_size": 128}}, 128),
        (
            {
                "config": {"hidden_size": 384},
                "modules": [
                    {"path": "", "type": "sentence_transformers.models.Transformer"},
                    {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
                ],
                "2_Dense__config": {"in_features": 384, "out_features": 512},
            },
            512,
        ),
        ({"config": {}}, None),
    ],
)
def test_the_embedding_size_is_read_from_the_folder(
    tmp_path: Path, files: dict[str, Any], size: int | None
) -> None:
    """As in vLLM: the config's own value, the last dense layer, the hidden size."""
    assert read_config(make_folder(tmp_path, **files))["embedding_size"] == size


@pytest.mark.parametrize(
    ("config", "num_labels"), [({}, 2), ({"id2label": {"0": "a"}}, 1), ({"num_labels": 3}, 3)]
)
def test_the_number_of_labels_is_read_from_the_config(
    tmp_path: Path, config: dict[str, Any], num_labels: int
) -> None:
    """The default is two, as in transformers."""
    assert read_config(make_folder(tmp_path, config=config))["num_labels"] == num_labels


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(UserError, match=r"no readable config\.json"):
        read_config(tmp_path)


def test_the_embedding_size_of_a_local_model_is_in_the_schema(tmp_path: Path) -> None:
    """So is that of a task's own model; the section's `dimensions` override it."""
    main = make_folder(tmp_path / "main", config={"hidden_size": 16})
    auxiliary = make_folder(tmp_path / "auxiliary", config={"hidden_size": 32})
    assert fetch_config(ModelSource(source=str(main)))["hidden_size"] == 16
    text = {"text": "{{ text }}"}
    job = Job.model_validate(
        {
            "name": "vectors",
            "input": {"path": "corpus"},
            "model": {"source": str(main)},
            "prompt": text,
            "tasks": [
                {"name": "a", "kind": "embed"},
                {"name": "b", "kind": "embed", "model": {"source": str(auxiliary)}},
                {"name": "c", "kind": "embed", "dimensions": 8},
            ],
            "output": {"path": "out"},
        }
    )
    sizes = [step.fields[0].type for step in resolve(job).steps]
    assert sizes == [pa.list_(pa.float32(), size) for size in (16, 32, 8)]
    assert resolve(resolve(job)).fingerprint == resolve(job).fingerprint


@pytest.mark.parametrize(
    ("engine", "files", "runner", "length"),
    [
        ({}, {}, "pooling", 514),
        ({"max_model_len": 100}, {"sentence_bert_config": {"max_seq_length": 256}}, "pooling", 100),
        ({}, {"sentence_bert_config": {"max_seq_length": 256}}, "pooling", 256),
        ({}, {"tokenizer_config": {"model_max_length": 512}}, "pooling", 512),
        ({}, {"tokenizer_config": {"model_max_length": 512}}, "generate", 514),
    ],
)
def test_the_context_length_is_determined_as_in_vllm(
    tmp_path: Path, engine: dict[str, Any], files: dict[str, Any], runner: Any, length: int
) -> None:
    """The job's value, the sentence model's, then the positions, limited by the tokenizer."""
    config = {"max_position_embeddings": 514, "position_embedding_type": "absolute"}
    model = ModelSource(source=str(tmp_path), engine=engine)
    folder = make_folder(tmp_path, **files)
    assert max_model_len(model, runner, "model", folder, config) == length


@pytest.mark.parametrize(
    ("text", "offsets", "special", "span"),
    [
        # Without a token for the beginning, the first word has no prediction.
        ("ab cd", [(0, 2), (2, 5)], [0, 0], (1, 2, 3)),
        # With one, every word has; the token at the end is not part of the text.
        ("ab cd", [(0, 0), (0, 2), (2, 5), (0, 0)], [1, 0, 0, 1], (1, 3, 5)),
        # Some tokenizers do not count the space as part of a token.
        ("ab cd", [(0, 2), (3, 5)], [0, 0], (1, 2, 3)),
        # A character that is split between two tokens counts whole.
        ("é", [(0, 1), (0, 1)], [0, 0], (1, 2, 2)),
        ("é日", [(0, 1), (1, 2)], [0, 0], (1, 2, 3)),
        ("a", [(0, 1)], [0], (1, 1, 0)),
        ("", [(0, 0), (0, 0)], [1, 1], (0, 0, 0)),
        ("", [], [], (0, 0, 0)),
    ],
)
def test_a_span_covers_the_tokens_that_have_a_prediction(
    text: str,
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
    span: tuple[int, int, int],
) -> None:
    """It has their range and the number of bytes of their text."""
    ids = list(range(len(offsets)))
    start, end, num_bytes = span
    assert text_span(text, ids, offsets, special) == TextSpan(ids, start, end, num_bytes)


@pytest.mark.parametrize(("types", "start"), [([0, 0, 1, 1], 2), ([0, 0], 2), ([1], 0)])
def test_the_second_text_starts_at_the_first_token_type_1(types: Sequence[int], start: int) -> None:
    """Past the end if there is none."""
    assert second_start(types) == start
