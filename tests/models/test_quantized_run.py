"""Real vLLM on this CPU, with quantized copies of the bundled model."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.command import output_rows
from helpers.fork_server import tokenmill
from safetensors.numpy import load_file, save_file
from tokenmill.errors import ExitCode
from tokenmill.job.sections import Model
from tokenmill.models.fetch import fetch_model

pytestmark = pytest.mark.integration

Array = npt.NDArray[Any]
GROUP = 64


def int8(weights: Array) -> dict[str, Array]:
    """One scale per output channel, as llm-compressor writes it."""
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    quantized = (weights / scale).round().clip(-128, 127).astype(np.int8)
    return {"weight": quantized, "weight_scale": scale.astype(np.float32)}


def awq(weights: Array) -> dict[str, Array]:
    """Four bits per weight in groups of 64 inputs, eight weights per word, in AWQ's order."""
    rows, columns = weights.shape
    groups = weights.reshape(rows, columns // GROUP, GROUP)
    scale = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / 7, 1e-8)
    values = ((groups / scale).round().clip(-8, 7) + 8).reshape(rows, columns)
    zeros = np.full((columns // GROUP, rows), 8)
    return {
        "qweight": _words(values.T),
        "qzeros": _words(zeros),
        "scales": scale[:, :, 0].T.astype(np.float16),
    }


def _words(values: Array) -> Array:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    nibbles = values.astype(np.uint32).reshape(len(values), -1, 8)[:, :, order]
    words = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=2, dtype=np.uint32)
    return words.view(np.int32)


_EIGHT = {"num_bits": 8, "type": "int", "symmetric": True}
FORMATS: dict[str, tuple[Callable[[Array], dict[str, Array]], Mapping[str, Any]]] = {
    "int8": (
        int8,
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**_EIGHT, "strategy": "channel", "dynamic": False},
                    "input_activations": {**_EIGHT, "strategy": "token", "dynamic": True},
                    "output_activations": None,
                }
            },
        },
    ),
    "awq": (
        awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
        },
    ),
}


def quantized_model(folder: Path, name: str) -> Path:
    """A copy of the bundled model in this format."""
    quantize, description = FORMATS[name]
    source = fetch_model(Model(source="bundled:smollm2-135m"))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": description}))
    tensors: dict[str, Array] = {}
    for key, weights in load_file(source / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            layer = key.removesuffix("weight")
            parts = quantize(weights).items()
            tensors |= {layer + name: np.ascontiguousarray(part) for name, part in parts}
        else:
            tensors[key] = weights.astype(np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# For each format, the CPU capabilities of which it needs one, by PyTorch's names.
CAPABILITIES = {"int8": {"avx512_vnni", "avx_vnni", "amx_int8"}, "awq": {"avx512_f"}}


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_model_answers_like_the_original_or_is_refused(
    tmp_path: Path, name: str
) -> None:
    """If the CPU supports the format, vLLM answers correctly; if not, nothing is loaded."""
    model = quantized_model(tmp_path / "model", name)
    pq.write_table(
        pa.table({"question": ["What is the capital of France?"]}), tmp_path / "in.parquet"
    )
    job = {
        "name": "job",
        "input": {"path": str(tmp_path / "in.parquet")},
        "model": {
            "source": str(model),
            "engine": {"max_model_len": 512, "kv_cache_memory_bytes": 2**28},
        },
        "prompt": {"user": "{{ question }}"},
        "sampling": {"temperature": 0, "max_tokens": 8},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = tokenmill("run", tmp_path / "job.yaml")
    available = {key for key, value in torch.cpu.get_capabilities().items() if value}
    if not available & CAPABILITIES[name]:
        assert done.returncode == ExitCode.USER_ERROR, done.stderr
        assert "this machine has no GPU and cannot run" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        return
    assert done.returncode == ExitCode.FINISHED, done.stderr
    (row,) = output_rows(tmp_path / "out")
    assert "capital of France is Paris" in row["generated_text"]
