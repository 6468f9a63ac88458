"""Quantized models: check that a machine without a GPU can run a format, before loading it.

The kernels of vLLM 0.32 for CPUs are listed in its `model_executor/kernels/linear/__init__.py`.
vLLM itself chooses one layer by layer while it builds the model. On a GPU, vLLM first compares the
format with the GPU's compute capability, and its error is passed on.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.hardware import cpu_flags
from tokenmill.models.config import read_config

# The keys of config.json that describe how the weights are quantized.
_CONFIG_KEYS = ("quantization_config", "compression_config")
# Formats that vLLM 0.32 does not read itself, but with a plugin.
_PLUGINS = {
    "gguf": "vLLM reads it only with vllm-gguf-plugin, which needs CUDA",
    "bitsandbytes": "vLLM reads it only with vllm-bnb-plugin, which needs a GPU",
}
# With any of these, products of 8 bits are summed in 32 bits.
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# Formats of weights for which vLLM has no CPU kernel, whichever library wrote them.
_GPU_ONLY = ("fp4", "mxfp", "nvfp")


@dataclass(frozen=True, slots=True)
class QuantizationFormat:
    """How a model's weights are quantized.

    `method` is vLLM's name of the format, `weight` the type of a weight (`int4`, `fp8`), `scales`
    the part of a tensor that shares a scale (`channel`, `tensor`). `with_inputs` is true if the
    inputs of a layer are quantized as well.
    """

    method: str
    weight: str
    scales: str = ""
    with_inputs: bool = False

    def __str__(self) -> str:
        inputs = " and inputs" if self.with_inputs else ""
        return f"{self.method} with {self.weight} weights{inputs}"


def quantization_formats(
    config: Mapping[str, Any], engine: Mapping[str, Any]
) -> list[QuantizationFormat]:
    """The formats of a model's weights; empty if they are not quantized.

    `config` is its config.json. `engine` are the job's engine arguments, which may ask vLLM to
    quantize while loading.
    """
    description = _quantization_config(config)
    method = engine.get("quantization") or description.get("quant_method")
    if engine.get("load_format") == "gguf":
        method = "gguf"
    if not isinstance(method, str):
        return []
    method = method.lower().replace("compressed_tensors", "compressed-tensors")
    if method == "compressed-tensors":
        return list(_compressed_tensors_formats(description))
    if method.startswith("fp8"):
        return [
            QuantizationFormat(method, "fp8", method.removeprefix("fp8_per_"), with_inputs=True)
        ]
    bits = description.get("bits") or description.get("w_bit")
    return [QuantizationFormat(method, method if bits is None else f"int{bits}")]


def cpu_arguments(
    config: Mapping[str, Any],
    engine: Mapping[str, Any],
    key: str = "model",
    flags: AbstractSet[str] | None = None,
) -> dict[str, Any]:
    """The engine arguments that the model's format needs on a CPU, overridden by the job's.

    `key` is the job key of the model, and `flags` are those of the CPU (`hardware.cpu_flags`), by
    default this machine's. Raises `UserError` for a format that the CPU cannot run.
    """
    flags = cpu_flags() if flags is None else flags
    arguments: dict[str, Any] = {}
    for quantization in quantization_formats(config, engine):
        problem = _problem(quantization, flags)
        if problem is not None:
            raise UserError(
                f"{key}: this machine has no GPU and cannot run {quantization}: {problem}; use a "
                "machine with a GPU, or the model in another format (see docs/tasks.md, Quantized "
                "models)"
            )
        if quantization.weight == "int4":
            # vLLM's kernel does not support float32, the default on a CPU without bfloat16.
            arguments["dtype"] = "bfloat16"
            if engine.get("dtype") == "float32":
                raise UserError(
                    f"{key}.engine.dtype: on a CPU {quantization} run in bfloat16 or float16, not "
                    "in float32; leave it out"
                )
    return {**arguments, **engine}


def check_not_gguf(model: ModelSource, key: str = "model") -> None:
    """Raise `UserError` for a single GGUF file: vLLM also needs a config and a tokenizer."""
    if model.source.lower().endswith(".gguf"):
        raise UserError(
            f"{key}.source: {model.source} is a GGUF file: {_PLUGINS['gguf']} and a folder with "
            "the model's config.json and tokenizer; use a folder in Hugging Face's format"
        )


def check_on_cpu(
    model: ModelSource, key: str = "model", flags: AbstractSet[str] | None = None
) -> None:
    """Raise `UserError` if the model is a local folder in a format that a CPU cannot run.

    A model from elsewhere is checked once it has been fetched, before it is loaded. See
    `cpu_arguments`.
    """
    file = Path(model.source).expanduser() / "config.json"
    cpu_arguments(read_config(file.parent) if file.is_file() else {}, model.engine, key, flags)


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for section in (config, config.get("text_config") or {}):
        for name in _CONFIG_KEYS:
            if isinstance(section.get(name), Mapping):
                description: Mapping[str, Any] = section[name]
                return description
    return {}


def _compressed_tensors_formats(description: Mapping[str, Any]) -> Iterator[QuantizationFormat]:
    """One format for each group of layers."""
    for group in (description.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        kind = "fp" if weights.get("type") == "float" else "int"
        yield QuantizationFormat(
            "compressed-tensors",
            f"{kind}{weights.get('num_bits')}",
            str(weights.get("strategy") or ""),
            with_inputs=bool(group.get("input_activations")),
        )


def _problem(quantization: QuantizationFormat, flags: AbstractSet[str]) -> str | None:
    """Why a CPU cannot run the format; None if it can, or if only vLLM knows."""
    if quantization.method in _PLUGINS:
        return _PLUGINS[quantization.method]
    weight = quantization.weight
    if any(name in quantization.method or weight == name for name in _GPU_ONLY):
        return "vLLM has kernels for such weights on GPUs only"
    if weight == "fp8":
        return _fp8_problem(quantization, flags)
    if weight.startswith("int") and weight[3:].isdigit():
        return _integer_problem(quantization, flags)
    return None


def _fp8_problem(quantization: QuantizationFormat, flags: AbstractSet[str]) -> str | None:
    if quantization.scales == "channel" or "amx_tile" in flags:
        return None
    return "without AMX, vLLM's CPU kernels support fp8 weights with one scale per channel only"


def _integer_problem(quantization: QuantizationFormat, flags: AbstractSet[str]) -> str | None:
    """Only x86 CPUs are checked: others have none of these flags."""
    if quantization.with_inputs:
        # oneDNN then sums products of 8 bits in 16 bits, which overflow: the answers are wrong
        # without any error (oneDNN's guide, Nuances of int8 Computations).
        if "avx2" in flags and not flags & _EXACT_INT8:
            return "without VNNI, oneDNN's sums of 8-bit products overflow and answers are wrong"
    elif quantization.weight != "int4":
        return "without quantized inputs, vLLM's CPU kernels support weights of 4 bits only"
    elif "avx2" in flags and "avx512f" not in flags:
        # cpu_gemm_wna16 is in vLLM's extension for AVX-512, but not in the one for AVX2.
        return "without AVX-512, vLLM has no kernel for weights of 4 bits"
    return None
