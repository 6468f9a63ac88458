"""Quantized models: their formats are read from config.json, and refused where they cannot run."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.asking import make_job
from tokenmill.errors import UserError
from tokenmill.models import quantization
from tokenmill.models.quantization import (
    QuantizationFormat,
    check_not_gguf,
    check_on_cpu,
    cpu_arguments,
    quantization_formats,
)

AVX512 = frozenset({"avx2", "avx512f", "avx512_vnni"})


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's CPU without AMX, whatever this one is."""
    cpu_with(monkeypatch, AVX512)


def cpu_with(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    monkeypatch.setattr(quantization, "cpu_flags", lambda: flags)


def compressed(bits: int, kind: str, strategy: str, *, inputs: bool) -> dict[str, Any]:
    """A config.json as llm-compressor writes it."""
    weights = {"num_bits": bits, "type": kind, "strategy": strategy}
    group = {"weights": weights, "input_activations": {"num_bits": bits} if inputs else None}
    own = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    return {"quantization_config": own}


def library(method: str, **facts: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **facts}}


INT8 = compressed(8, "int", "channel", inputs=True)
INT4 = compressed(4, "int", "group", inputs=False)


@pytest.mark.parametrize(
    ("config", "engine", "found"),
    [
        ({}, {}, []),
        (INT8, {}, [QuantizationFormat("compressed-tensors", "int8", "channel", with_inputs=True)]),
        (INT4, {}, [QuantizationFormat("compressed-tensors", "int4", "group")]),
        (library("gptq", bits=4), {}, [QuantizationFormat("gptq", "int4")]),
        (library("AWQ", w_bit=4), {}, [QuantizationFormat("awq", "int4")]),
        (library("fp8"), {}, [QuantizationFormat("fp8", "fp8", "fp8", with_inputs=True)]),
        (library("mxfp4"), {}, [QuantizationFormat("mxfp4", "mxfp4")]),
        ({"text_config": library("gptq", bits=8)}, {}, [QuantizationFormat("gptq", "int8")]),
        (
            {},
            {"quantization": "fp8_per_channel"},
            [QuantizationFormat("fp8_per_channel", "fp8", "channel", with_inputs=True)],
        ),
        ({}, {"load_format": "gguf"}, [QuantizationFormat("gguf", "gguf")]),
    ],
)
def test_a_format_is_read_from_what_says_it(
    config: dict[str, Any], engine: dict[str, Any], found: list[QuantizationFormat]
) -> None:
    """Each library writes its format in its own way; the job may quantize while loading."""
    assert quantization_formats(config, engine) == found


@pytest.mark.parametrize(
    ("config", "engine"),
    [
        ({}, {}),
        (INT8, {}),
        (INT4, {}),
        (library("gptq", bits=4), {}),
        (library("awq", bits=4), {}),
        (compressed(8, "float", "channel", inputs=True), {}),
        ({}, {"quantization": "fp8_per_channel"}),
        (library("a-format-of-tomorrow"), {}),
    ],
)
def test_what_a_cpu_runs_passes(config: dict[str, Any], engine: dict[str, Any]) -> None:
    """Formats with a kernel for CPUs pass, and those that only vLLM knows."""
    assert cpu_arguments(config, engine).items() >= engine.items()


@pytest.mark.parametrize(
    ("config", "engine", "said"),
    [
        (library("gptq", bits=8), {}, "gptq with int8 weights: .* 4 bits only"),
        (compressed(8, "int", "group", inputs=False), {}, "4 bits only"),
        (compressed(8, "float", "tensor", inputs=True), {}, "a scale a channel only"),
        (library("fp8"), {}, "fp8 with fp8 weights and inputs: without AMX"),
        ({}, {"quantization": "fp8"}, "without AMX"),
        (compressed(4, "float", "tensor_group", inputs=True), {}, "on GPUs only"),
        (library("mxfp4"), {}, "on GPUs only"),
        (library("modelopt_fp4"), {}, "on GPUs only"),
        (library("bitsandbytes"), {}, "vllm-bnb-plugin"),
        ({}, {"quantization": "gguf"}, "vllm-gguf-plugin"),
        (INT4, {"dtype": "float32"}, r"model\.engine\.dtype: .* not in float32"),
    ],
)
def test_what_a_cpu_cannot_run_is_refused_with_the_reason(
    config: dict[str, Any], engine: dict[str, Any], said: str
) -> None:
    """The message names the format and why this machine cannot run it."""
    with pytest.raises(UserError, match=said):
        cpu_arguments(config, engine)


def test_amx_is_vllms_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX has more kernels for fp8; nothing is refused there."""
    cpu_with(monkeypatch, AVX512 | {"amx_tile"})
    cpu_arguments(library("fp8"), {})


@pytest.mark.parametrize(
    ("flags", "config", "said"),
    [
        ({"avx2"}, INT8, "compressed-tensors with int8 weights and inputs: without VNNI, .* wrong"),
        ({"avx2", "avx512f"}, INT8, "without VNNI"),
        ({"avx2", "avx_vnni"}, INT8, None),
        ({"avx2", "amx_int8"}, INT8, None),
        ({"avx2"}, library("awq", bits=4), "awq with int4 weights: without AVX-512, .* no kernel"),
        ({"avx2", "avx_vnni"}, INT4, "without AVX-512"),
        ({"avx2", "avx512f"}, INT4, None),
        ({"avx2"}, {}, None),
        (set(), INT8, None),
        (set(), INT4, None),
    ],
)
def test_integers_need_an_x86_that_sums_them_right(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], config: dict[str, Any], said: str | None
) -> None:
    """Wrong answers and kernels that are not there are told first; other CPUs are vLLM's to judge.

    Without flags: a CPU that is no x86.
    """
    cpu_with(monkeypatch, frozenset(flags))
    if said is None:
        cpu_arguments(config, {})
    else:
        with pytest.raises(UserError, match=said):
            cpu_arguments(config, {})


def test_weights_of_four_bits_run_in_bfloat16() -> None:
    """Their kernel knows no float32, which other models run in on a CPU without bfloat16."""
    assert cpu_arguments(INT4, {"max_model_len": 9}) == {"max_model_len": 9, "dtype": "bfloat16"}
    assert cpu_arguments(INT4, {"dtype": "float16"}) == {"dtype": "float16"}
    assert cpu_arguments(INT8, {}) == {}


def test_a_folder_here_is_refused_before_the_run(tmp_path: Path) -> None:
    """The format is known without loading anything."""
    (tmp_path / "config.json").write_text(json.dumps(library("fp8")))
    model = make_job(model={"source": str(tmp_path)}).model
    with pytest.raises(UserError, match="use a machine with a GPU"):
        check_on_cpu(model)
    check_on_cpu(make_job().model)
    check_on_cpu(make_job(model={"source": "owner/name"}).model)


def test_a_single_gguf_file_is_no_model() -> None:
    """It is told what would be needed, instead of being taken for a folder or a hub id."""
    with pytest.raises(UserError, match=r"is a GGUF file: .*vllm-gguf-plugin"):
        check_not_gguf(make_job(model={"source": "models/x.Q4_1.GGUF"}).model)
