"""Quantized models: formats are read from config.json, and refused if a CPU cannot run them."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.asking import make_job
from tokenmill.errors import UserError
from tokenmill.models.quantization import (
    QuantizationFormat,
    check_not_gguf,
    check_on_cpu,
    cpu_arguments,
    quantization_formats,
)

#: The CPU of a server without AMX.
AVX512 = frozenset({"avx2", "avx512f", "avx512_vnni"})


def compressed(bits: int, kind: str, strategy: str, *, inputs: bool) -> dict[str, Any]:
    """A config.json as written by llm-compressor."""
    weights = {"num_bits": bits, "type": kind, "strategy": strategy}
    group = {"weights": weights, "input_activations": {"num_bits": bits} if inputs else None}
    description = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    return {"quantization_config": description}


def config_of(method: str, **parameters: Any) -> dict[str, Any]:
    """A config.json as written by most other libraries."""
    return {"quantization_config": {"quant_method": method, **parameters}}


INT8 = compressed(8, "int", "channel", inputs=True)
INT4 = compressed(4, "int", "group", inputs=False)


@pytest.mark.parametrize(
    ("config", "engine", "formats"),
    [
        ({}, {}, []),
        (INT8, {}, [QuantizationFormat("compressed-tensors", "int8", "channel", with_inputs=True)]),
        (INT4, {}, [QuantizationFormat("compressed-tensors", "int4", "group")]),
        (config_of("gptq", bits=4), {}, [QuantizationFormat("gptq", "int4")]),
        (config_of("AWQ", w_bit=4), {}, [QuantizationFormat("awq", "int4")]),
        (config_of("fp8"), {}, [QuantizationFormat("fp8", "fp8", "fp8", with_inputs=True)]),
        (config_of("mxfp4"), {}, [QuantizationFormat("mxfp4", "mxfp4")]),
        ({"text_config": config_of("gptq", bits=8)}, {}, [QuantizationFormat("gptq", "int8")]),
        (
            {},
            {"quantization": "fp8_per_channel"},
            [QuantizationFormat("fp8_per_channel", "fp8", "channel", with_inputs=True)],
        ),
        ({}, {"load_format": "gguf"}, [QuantizationFormat("gguf", "gguf")]),
    ],
)
def test_the_format_is_read_from_the_config_or_the_job(
    config: dict[str, Any], engine: dict[str, Any], formats: list[QuantizationFormat]
) -> None:
    """Each library describes its format differently; the job may quantize while loading."""
    assert quantization_formats(config, engine) == formats


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ({}, {}),
        (INT8, {}),
        (INT4, {}),
        (config_of("gptq", bits=4), {}),
        (config_of("awq", bits=4), {}),
        (compressed(8, "float", "channel", inputs=True), {}),
        ({}, {"quantization": "fp8_per_channel"}),
        (config_of("a-future-format"), {}),
    ],
)
def test_a_format_that_a_cpu_can_run_is_accepted(
    config: dict[str, Any], engine: dict[str, Any]
) -> None:
    """So are formats that only vLLM knows."""
    assert cpu_arguments(config, engine, flags=AVX512).items() >= engine.items()


@pytest.mark.parametrize(
    ("config", "engine", "message"),
    [
        (config_of("gptq", bits=8), {}, "gptq with int8 weights: .* 4 bits only"),
        (compressed(8, "int", "group", inputs=False), {}, "4 bits only"),
        (compressed(8, "float", "tensor", inputs=True), {}, "one scale per channel only"),
        (config_of("fp8"), {}, "fp8 with fp8 weights and inputs: without AMX"),
        ({}, {"quantization": "fp8"}, "without AMX"),
        (compressed(4, "float", "tensor_group", inputs=True), {}, "on GPUs only"),
        (config_of("mxfp4"), {}, "on GPUs only"),
        (config_of("modelopt_fp4"), {}, "on GPUs only"),
        (config_of("bitsandbytes"), {}, "vllm-bnb-plugin"),
        ({}, {"quantization": "gguf"}, "vllm-gguf-plugin"),
        (INT4, {"dtype": "float32"}, r"model\.engine\.dtype: .* not in float32"),
    ],
)
def test_a_format_that_a_cpu_cannot_run_is_refused(
    config: dict[str, Any], engine: dict[str, Any], message: str
) -> None:
    """The error names the format and the reason."""
    with pytest.raises(UserError, match=message):
        cpu_arguments(config, engine, flags=AVX512)


def test_fp8_is_not_refused_on_a_cpu_with_amx() -> None:
    """It has more kernels for fp8, and vLLM decides."""
    assert cpu_arguments(config_of("fp8"), {}, flags=AVX512 | {"amx_tile"}) == {}


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ({"avx2"}, INT8, "compressed-tensors with int8 weights and inputs: without VNNI, .* wrong"),
        ({"avx2", "avx512f"}, INT8, "without VNNI"),
        ({"avx2", "avx_vnni"}, INT8, None),
        ({"avx2", "amx_int8"}, INT8, None),
        (
            {"avx2"},
            config_of("awq", bits=4),
            "awq with int4 weights: without AVX-512, .* no kernel",
        ),
        ({"avx2", "avx_vnni"}, INT4, "without AVX-512"),
        ({"avx2", "avx512f"}, INT4, None),
        ({"avx2"}, {}, None),
        (set(), INT8, None),
        (set(), INT4, None),
    ],
)
def test_integer_formats_need_exact_sums_and_a_kernel_on_x86(
    flags: set[str], config: dict[str, Any], message: str | None
) -> None:
    """A CPU that would give wrong answers, or has no kernel, is refused before loading.

    A CPU without any flags is not an x86, and is left to vLLM.
    """
    if message is None:
        cpu_arguments(config, {}, flags=flags)
    else:
        with pytest.raises(UserError, match=message):
            cpu_arguments(config, {}, flags=flags)


def test_weights_of_four_bits_run_in_bfloat16() -> None:
    """Their kernel does not support float32, the default on a CPU without bfloat16."""
    arguments = cpu_arguments(INT4, {"max_model_len": 9}, flags=AVX512)
    assert arguments == {"max_model_len": 9, "dtype": "bfloat16"}
    assert cpu_arguments(INT4, {"dtype": "float16"}, flags=AVX512) == {"dtype": "float16"}
    assert cpu_arguments(INT8, {}, flags=AVX512) == {}


def test_a_local_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    """Its format is known without loading anything; other sources are checked once fetched."""
    (tmp_path / "config.json").write_text(json.dumps(config_of("fp8")))
    model = make_job(model={"source": str(tmp_path)}).model
    with pytest.raises(UserError, match="use a machine with a GPU"):
        check_on_cpu(model, flags=AVX512)
    check_on_cpu(make_job().model, flags=AVX512)
    check_on_cpu(make_job(model={"source": "owner/name"}).model, flags=AVX512)


def test_a_single_gguf_file_is_refused() -> None:
    """The error says what is needed, and does not take it for a folder or a hub id."""
    with pytest.raises(UserError, match=r"is a GGUF file: .*vllm-gguf-plugin"):
        check_not_gguf(make_job(model={"source": "models/x.Q4_1.GGUF"}).model)
