"""Quantized models: which formats a machine without a GPU can run, told before one is loaded.

What vLLM 0.32 has for a CPU stands in its `model_executor/kernels/linear/__init__.py`, by kind of
kernel; vLLM itself looks there layer by layer while it builds the model. On a GPU it compares the
format with the GPU's compute capability first, and its word is passed on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.hardware import cpu_flags
from tokenmill.models.config import read_config

# Where config.json tells how the weights are quantized.
_PLACES = ("quantization_config", "compression_config")
# No parts of vLLM 0.32; each brings its format when it is installed.
_PLUGINS = {
    "gguf": "vLLM reads it only with vllm-gguf-plugin, whose kernels are CUDA's",
    "bitsandbytes": "vLLM reads it only with vllm-bnb-plugin, which is for GPUs",
}
# Any of these sums products of 8 bits in 32 bits.
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# Weights that no kernel for a CPU takes, whatever the library that wrote them.
_GPU_ONLY = ("fp4", "mxfp", "nvfp")


@dataclass(frozen=True, slots=True)
class QuantizationFormat:
    """How weights are held.

    `method` is vLLM's name of the format, `weight` what a weight is (`int4`, `fp8`), `scales` what
    has a scale of its own (`channel`, `tensor`); `with_inputs` says whether inputs are quantized
    too.
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
    """The formats of a model's weights; none where they are not quantized.

    `config` is its config.json, `engine` the job's arguments, which may quantize while loading.
    """
    own = _own_config(config)
    asked = engine.get("quantization") or own.get("quant_method")
    if engine.get("load_format") == "gguf":
        asked = "gguf"
    if not isinstance(asked, str):
        return []
    method = asked.lower().replace("compressed_tensors", "compressed-tensors")
    if method == "compressed-tensors":
        return list(_compressed(own))
    if method.startswith("fp8"):
        return [
            QuantizationFormat(method, "fp8", method.removeprefix("fp8_per_"), with_inputs=True)
        ]
    bits = own.get("bits") or own.get("w_bit")
    return [QuantizationFormat(method, method if bits is None else f"int{bits}")]


def cpu_arguments(
    config: Mapping[str, Any], engine: Mapping[str, Any], place: str = "model"
) -> dict[str, Any]:
    """The engine's arguments, and before them what the model's format needs on a CPU.

    `place` is where the job holds the model. Raises `UserError` for a format that cannot run.
    """
    arguments: dict[str, Any] = {}
    for held in quantization_formats(config, engine):
        problem = _problem(held)
        if problem is not None:
            raise UserError(
                f"{place}: this machine has no GPU and cannot run {held}: {problem}; use a machine "
                "with a GPU, or the model in another format (docs/tasks.md, Quantized models)"
            )
        if held.weight == "int4":
            # vLLM's kernel knows no float32, which is the default of a CPU without bfloat16.
            arguments["dtype"] = "bfloat16"
            if engine.get("dtype") == "float32":
                raise UserError(
                    f"{place}.engine.dtype: on a CPU {held} run in bfloat16 or float16, not in "
                    "float32; leave it out"
                )
    return {**arguments, **engine}


def check_not_gguf(model: ModelSource, place: str = "model") -> None:
    """A single file is no model: it has no tokenizer and configuration in vLLM's form."""
    if model.source.lower().endswith(".gguf"):
        raise UserError(
            f"{place}.source: {model.source} is a GGUF file: {_PLUGINS['gguf']}, beside a folder "
            "with the model's config.json and tokenizer; give a folder in Hugging Face's form"
        )


def check_on_cpu(model: ModelSource, place: str = "model") -> None:
    """Refuse a format that this machine without a GPU cannot run, if the model is a folder here.

    What comes from elsewhere is looked at where it is fetched, before it is loaded.
    """
    file = Path(model.source).expanduser() / "config.json"
    if not model.is_fake:
        cpu_arguments(read_config(file.parent) if file.is_file() else {}, model.engine, place)


def _own_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for section in (config, config.get("text_config") or {}):
        for place in _PLACES:
            if isinstance(section.get(place), Mapping):
                own: Mapping[str, Any] = section[place]
                return own
    return {}


def _compressed(own: Mapping[str, Any]) -> Iterator[QuantizationFormat]:
    """One for each group of layers."""
    for group in (own.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        kind = "fp" if weights.get("type") == "float" else "int"
        yield QuantizationFormat(
            "compressed-tensors",
            f"{kind}{weights.get('num_bits')}",
            str(weights.get("strategy") or ""),
            with_inputs=bool(group.get("input_activations")),
        )


def _problem(held: QuantizationFormat) -> str | None:
    """Why a CPU cannot run it; None for what it can, and for what only vLLM knows."""
    if held.method in _PLUGINS:
        return _PLUGINS[held.method]
    if any(name in held.method or held.weight == name for name in _GPU_ONLY):
        return "vLLM has kernels for such weights on GPUs only"
    if held.weight == "fp8":
        return _fp8_problem(held)
    if held.weight.startswith("int") and held.weight[3:].isdigit():
        return _integer_problem(held)
    return None


def _fp8_problem(held: QuantizationFormat) -> str | None:
    if held.scales == "channel" or "amx_tile" in cpu_flags():
        return None
    return "without AMX, vLLM's kernels for a CPU take fp8 weights with a scale a channel only"


def _integer_problem(held: QuantizationFormat) -> str | None:
    """What is told of x86 only: a CPU of another kind shows none of these flags."""
    flags = cpu_flags()
    if held.with_inputs:
        # oneDNN then adds products of 8 bits in 16 bits, which overflow: the answers are wrong and
        # nothing says so (oneDNN's guide, Nuances of int8 Computations).
        if "avx2" in flags and not flags & _EXACT_INT8:
            return "without VNNI, oneDNN's sums of 8-bit products overflow and answers are wrong"
    elif held.weight != "int4":
        return "without quantized inputs, vLLM's kernels for a CPU take weights of 4 bits only"
    elif "avx2" in flags and "avx512f" not in flags:
        # cpu_gemm_wna16 is in vLLM's extension for AVX-512 and not in the one for AVX2.
        return "without AVX-512, vLLM has no kernel for weights of 4 bits"
    return None
