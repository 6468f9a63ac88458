"""Generate on vLLM: samples, stops, reasoning, tokens, and rows with overrides and adapters."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.command import ROOT, output_rows
from helpers.fork_server import tokenmill
from safetensors.numpy import save_file
from tokenmill.errors import ExitCode

pytestmark = pytest.mark.integration

QUESTIONS = [
    "Name three colours.",
    "What is the capital of France?",
    "Count to five.",
    "Write a short story.",
]
STYLES = [None, "a", "b", "missing", None, "b", "a", None]
MODEL = {
    "source": "bundled:smollm2-135m",
    # The same precision everywhere, and all rows in one batch.
    "engine": {"max_model_len": 1024, "dtype": "float32", "kv_cache_memory_bytes": 2**29},
}
GREEDY = {"temperature": 0, "max_tokens": 12}


def make_adapter(folder: Path, seed: int) -> str:
    """A random LoRA adapter for SmolLM2-135M, strong enough to change its answers."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in range(30):
        for name, rows in (("q_proj", 576), ("v_proj", 192)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for half, shape in (("A", (8, 576)), ("B", (rows, 8))):
                scale = 0.3 / math.sqrt(576) if half == "A" else 0.3
                weights = draw.standard_normal(shape) * scale
                tensors[f"{prefix}.lora_{half}.weight"] = weights.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def run(folder: Path, rows: pa.Table, **keys: Any) -> list[dict[str, Any]]:
    """The output rows of a job over these rows."""
    folder.mkdir()
    pq.write_table(rows, folder / "in.parquet")
    job = {
        "name": "job",
        "input": {"path": str(folder / "in.parquet")},
        "model": MODEL,
        "prompt": {"user": "{{ question }}"},
        "sampling": GREEDY,
        "output": {"path": str(folder / "out")},
        "max_reject_rate": 1,
        **keys,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    done = tokenmill("run", folder / "job.yaml")
    assert done.returncode == ExitCode.FINISHED, done.stderr
    return output_rows(folder / "out")


def test_rows_choose_their_adapter_and_their_length(tmp_path: Path) -> None:
    """Rows with no adapter, two adapters and an unknown adapter share an engine independently."""
    rows = pa.table({"question": QUESTIONS * 2, "style": STYLES, "limit": [None] * 7 + [2]})
    adapters = {name: make_adapter(tmp_path / name, seed) for seed, name in enumerate("ab")}
    mixed = run(
        tmp_path / "mixed",
        rows,
        model={**MODEL, "adapters": adapters},
        adapter="style",
        overrides={"max_tokens": "limit"},
    )
    plain = run(tmp_path / "plain", rows)
    for row, base, style in zip(mixed[:-1], plain[:-1], STYLES[:-1], strict=True):
        if style == "missing":
            assert row["error"]["class"] == "unknown_adapter"
        elif style is None:
            assert row["generated_text"] == base["generated_text"]
            assert row["cumulative_logprob"] == pytest.approx(base["cumulative_logprob"], abs=1e-2)
        else:
            assert abs(row["cumulative_logprob"] - base["cumulative_logprob"]) > 0.1
    texts = [row["generated_text"] for row in mixed]
    # The same question has different answers from different adapters.
    assert texts[1] != texts[5]
    assert texts[2] != texts[6]
    assert mixed[-1]["num_generated_tokens"] == 2
    assert plain[-1]["generated_text"].startswith(texts[-1])


def test_each_option_of_generate(tmp_path: Path, bundled_tokenizer: Any) -> None:
    """Samples differ and are reproducible by seed; stops, reasoning and tokens match the text."""
    opening, closing = "<repo_name>", "<reponame>"
    end = bundled_tokenizer.convert_tokens_to_ids(closing)
    warm = {"temperature": 0.9, "max_tokens": 8, "seed": 7}
    tasks = [
        {"name": "one", "kind": "generate"},
        {"name": "stop", "kind": "generate", "sampling": {**GREEDY, "stop": [" ", "."]}},
        {"name": "many", "kind": "generate", "n": 3, "sampling": warm},
        {"name": "again", "kind": "generate", "n": 3, "sampling": warm},
        {"name": "best", "kind": "generate", "best_of": {"n": 3}, "sampling": warm},
        {"name": "tokens", "kind": "generate", "tokens": {"top": 3}},
        {
            "name": "thought",
            "kind": "generate",
            "reasoning": {"start": opening, "end": closing},
            "prompt": {"text": "{{ question }}" + opening},
            # The model can only write the end marker.
            "sampling": {"max_tokens": 1, "allowed_token_ids": [end]},
        },
        {
            "name": "lost",
            "kind": "generate",
            "reasoning": {"start": opening, "end": closing},
            "prompt": {"text": "{{ question }}" + opening},
            "sampling": {**GREEDY, "ignore_eos": True},
        },
    ]
    rows = run(tmp_path / "run", pa.table({"question": QUESTIONS}), tasks=tasks)
    for row in rows:
        assert row["error"]["class"] == "truncated_answer"
        assert row["error"]["message"].startswith("lost: no answer within 12 tokens")
        _check_stop(row)
        _check_samples(row)
        _check_tokens(row)
        assert (row["thought_reasoning_text"], row["thought_generated_text"]) == ("", "")


def _check_stop(row: dict[str, Any]) -> None:
    whole, text = row["one_generated_text"], row["stop_generated_text"]
    first = min(whole.find(stop) for stop in (" ", ".") if stop in whole)
    assert text == whole[:first]
    assert row["stop_finish_reason"] == "stop"
    assert row["stop_stop_reason"] == whole[first]


def _check_samples(row: dict[str, Any]) -> None:
    assert len(row["many_generated_texts"]) == 3
    assert len(set(row["many_generated_texts"])) > 1
    assert row["many_generated_texts"] == row["again_generated_texts"]
    best = int(np.argmax(row["many_mean_logprobs"]))
    assert row["best_generated_text"] == row["many_generated_texts"][best]
    assert row["best_num_samples"] == 3


def _check_tokens(row: dict[str, Any]) -> None:
    tokens = row["tokens_tokens"]
    assert "".join(token["token"] for token in tokens).startswith(row["tokens_generated_text"])
    total = sum(token["logprob"] for token in tokens)
    assert total == pytest.approx(row["tokens_cumulative_logprob"])
    for token in tokens:
        likeliest = token["top"]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, key=lambda other: -other["logprob"])
        # Greedy decoding chooses the likeliest token.
        assert (likeliest[0]["token"], likeliest[0]["logprob"]) == (
            token["token"],
            token["logprob"],
        )


@pytest.mark.shipped
def test_the_shipped_job_for_the_best_of_several(tmp_path: Path) -> None:
    """`jobs/best_of.yaml` writes one headline per document, short or long: the best of 8."""
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, tmp_path / "demo"], check=True, capture_output=True)
    demo = ds.dataset(tmp_path / "demo").to_table(columns=["doc_id", "title", "text"])
    text = " ".join(text for text in demo["text"].to_pylist() if text)
    # Together more tokens than a step of the engine has.
    lengths = (4500, 200, 3500, 60)
    rows = demo.slice(0, len(lengths)).drop_columns("text")
    texts = pa.array([text[i : i + length] for i, length in enumerate(lengths)])
    pq.write_table(rows.append_column("text", texts), tmp_path / "in.parquet")
    job, output = ROOT / "jobs" / "best_of.yaml", tmp_path / "out"
    done = tokenmill("run", job, "--input", tmp_path / "in.parquet", "--output", output)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    answered = output_rows(output)
    assert [row["error"] for row in answered] == [None] * len(lengths)
    for row in answered:
        assert row["num_samples"] == 8
        assert "\n" not in row["generated_text"]


@pytest.fixture(scope="module")
def bundled_tokenizer() -> Any:
    """The tokenizer of the bundled model."""
    from tokenmill.job.sections import Model  # noqa: PLC0415
    from tokenmill.models.fetch import fetch_model  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds

    return AutoTokenizer.from_pretrained(fetch_model(Model(source="bundled:smollm2-135m")))


def test_parameters_that_are_mappings_reach_the_engine_as_its_classes(tmp_path: Path) -> None:
    """Token ids are keys, a looping answer ends, and one of the choices is written."""
    # The token 28 is a comma.
    commas = {"logit_bias": {28: 100}}
    parameters: dict[str, dict[str, Any]] = {
        "bias": commas,
        "loop": {**commas, "repetition_detection": {"max_pattern_size": 2, "min_count": 3}},
        "pick": {"structured_outputs": {"choice": ["yes", "no"]}},
    }
    tasks = [
        {"name": name, "kind": "generate", "sampling": {**GREEDY, **values}}
        for name, values in parameters.items()
    ]
    answers = run(tmp_path / "job", pa.table({"question": QUESTIONS}), tasks=tasks)
    for row in answers:
        assert row["error"] is None
        assert row["bias_generated_text"] == "," * GREEDY["max_tokens"]
        assert row["bias_finish_reason"] == "length"
        assert row["loop_generated_text"] == ",,,"
        assert row["loop_finish_reason"] == "repetition"
        assert row["pick_generated_text"] in {"yes", "no"}
