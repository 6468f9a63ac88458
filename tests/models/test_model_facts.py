"""What is read of a model before it is loaded: dimensions, labels, context, places of tokens."""

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
from tokenmill.prompt.tokenizer import TextSpan, _second, _text_span
from tokenmill.stages.load import resolve


def folder(path: Path, **files: Any) -> Path:
    """A model's folder with these JSON files; `__` in a name stands for a slash."""
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
def test_a_models_folder_says_how_long_its_vectors_are(
    tmp_path: Path, files: dict[str, Any], size: int | None
) -> None:
    """As vLLM finds it: the config's own word, the last dense layer, the hidden size."""
    assert read_config(folder(tmp_path, **files))["embedding_size"] == size


@pytest.mark.parametrize(
    ("config", "number"), [({}, 2), ({"id2label": {"0": "a"}}, 1), ({"num_labels": 3}, 3)]
)
def test_a_models_folder_says_how_many_labels_it_has(
    tmp_path: Path, config: dict[str, Any], number: int
) -> None:
    """Two where it says nothing, as in transformers."""
    assert read_config(folder(tmp_path, config=config))["num_labels"] == number


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(UserError, match=r"no readable config\.json"):
        read_config(tmp_path)


def test_a_local_models_dimensions_are_in_the_jobs_schema(tmp_path: Path) -> None:
    """Also those of a model beside the job's own; what the section says itself stands."""
    own = folder(tmp_path / "own", config={"hidden_size": 16})
    beside = folder(tmp_path / "beside", config={"hidden_size": 32})
    assert fetch_config(ModelSource(source=str(own)))["hidden_size"] == 16
    text = {"text": "{{ text }}"}
    job = Job.model_validate(
        {
            "name": "vectors",
            "input": {"path": "corpus"},
            "model": {"source": str(own)},
            "prompt": text,
            "tasks": [
                {"name": "a", "kind": "embed"},
                {"name": "b", "kind": "embed", "model": {"source": str(beside)}},
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
def test_the_context_is_what_vllm_takes(
    tmp_path: Path, engine: dict[str, Any], files: dict[str, Any], runner: Any, length: int
) -> None:
    """The job's word, the sentence model's, then the positions that the tokenizer leaves."""
    config = {"max_position_embeddings": 514, "position_embedding_type": "absolute"}
    model = ModelSource(source=str(tmp_path), engine=engine)
    found = max_model_len(model, runner, "model", folder(tmp_path, **files), config)
    assert found == length


@pytest.mark.parametrize(
    ("text", "offsets", "special", "span"),
    [
        # Without a token for the beginning the first word has no prediction.
        ("ab cd", [(0, 2), (2, 5)], [0, 0], (1, 2, 3)),
        # With one every word has; the token at the end is not the text's.
        ("ab cd", [(0, 0), (0, 2), (2, 5), (0, 0)], [1, 0, 0, 1], (1, 3, 5)),
        # Some tokenizers leave the space out of a token's place.
        ("ab cd", [(0, 2), (3, 5)], [0, 0], (1, 2, 3)),
        # A character in two tokens counts whole.
        ("é", [(0, 1), (0, 1)], [0, 0], (1, 2, 2)),
        ("é日", [(0, 1), (1, 2)], [0, 0], (1, 2, 3)),
        ("a", [(0, 1)], [0], (1, 1, 0)),
        ("", [(0, 0), (0, 0)], [1, 1], (0, 0, 0)),
        ("", [], [], (0, 0, 0)),
    ],
)
def test_a_span_is_what_has_a_prediction(
    text: str,
    offsets: Sequence[tuple[int, int]],
    special: Sequence[int],
    span: tuple[int, int, int],
) -> None:
    """Its tokens, and the bytes of UTF-8 that they stand for."""
    ids = list(range(len(offsets)))
    start, end, num_bytes = span
    assert _text_span(text, ids, offsets, special) == TextSpan(ids, start, end, num_bytes)


@pytest.mark.parametrize(("types", "second"), [([0, 0, 1, 1], 2), ([0, 0], 2), ([1], 0)])
def test_the_second_text_begins_at_its_first_type(types: Sequence[int], second: int) -> None:
    """Past the end where there is none."""
    assert _second(types) == second
