"""The names and types of the installed vLLM, read without importing it."""

import importlib.util
import sys
from typing import Any

import pytest
from tokenmill.config.sampling import RESERVED
from tokenmill.engine.fake import SAMPLING_NAMES
from tokenmill.engine.vllm_source import (
    check_engine_arguments,
    check_sampling_names,
    check_type,
    field_types,
)
from tokenmill.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    """Both for the engine's arguments and for sampling parameters, with their job keys."""
    check_sampling_names({"temperature": 0, "top_p": 0.5}, "sampling")
    with pytest.raises(UserError, match=r"^tasks\.a\.sampling\.temprature: .*temperature\?"):
        check_sampling_names({"temprature": 0}, "tasks.a.sampling")


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_num_seqs": 4, "gpu_memory_utilization": 0.9, "enforce_eager": True},
        {"gpu_memory_utilization": 1, "dtype": "half", "max_model_len": None},
        {"cpu_offload_params": ["a", "b"], "limit_mm_per_prompt": {"image": 2}},
        {"served_model_name": ["a"], "load_format": "auto", "compilation_config": 3},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
        {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}},
        {"hf_overrides": {"anything": [1, {"a": None}]}},
    ],
    ids=str,
)
def test_arguments_that_vllm_takes_are_accepted(arguments: dict[str, Any]) -> None:
    """Numbers, texts, lists and mappings; types that only vLLM can check are left to it."""
    check_engine_arguments(arguments, "model.engine")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"max_num_seq": 4}, "max_num_seq: unknown key; did you mean max_num_seqs"),
        ({"max_num_seqs": True}, "max_num_seqs: vLLM refuses it"),
        ({"max_num_seqs": "4"}, "max_num_seqs: vLLM refuses it"),
        ({"max_num_seqs": 4.0}, "max_num_seqs: vLLM refuses it"),
        ({"enforce_eager": "yes"}, "enforce_eager: vLLM refuses it"),
        ({"dtype": "float31"}, "dtype: vLLM refuses it"),
        ({"cpu_offload_params": "a"}, "cpu_offload_params: vLLM refuses it"),
        ({"speculative_config": "ngram"}, "speculative_config: vLLM refuses it"),
        ({"speculative_config": {"method": "foo"}}, "speculative_config.method: vLLM refuses it"),
        ({"speculative_config": {"methd": "a"}}, "speculative_config.methd: unknown key"),
        (
            {"structured_outputs_config": {"backend": "foo"}},
            "structured_outputs_config.backend: vLLM refuses it",
        ),
    ],
    ids=str,
)
def test_arguments_that_vllm_would_refuse_are_named(arguments: dict[str, Any], key: str) -> None:
    """A name or a type that vLLM does not have is an error in one line, with its key."""
    with pytest.raises(UserError) as caught:
        check_engine_arguments(arguments, "model.engine")
    assert str(caught.value).startswith(f"model.engine.{key}")
    assert "\n" not in str(caught.value)


def test_values_have_the_types_of_json() -> None:
    """A list may be a set, and a key a number; a text or a boolean is not a number."""
    assert check_type(["a"], set[str], "key") == {"a"}
    assert check_type({"28": 1}, dict[int, float], "key") == {28: 1.0}
    for value, kind in ((True, int), ("1", int), (1, bool), (object(), int)):
        with pytest.raises(UserError, match=r"^key: vLLM refuses it"):
            check_type(value, kind, "key")


def test_the_fake_engine_knows_vllms_sampling_parameters() -> None:
    """So that a dry run on it finds a misspelt parameter. Update `SAMPLING_NAMES` with vLLM."""
    names = field_types("sampling_params.py", "SamplingParams").keys()
    assert names - RESERVED == SAMPLING_NAMES


def test_vllm_is_not_imported() -> None:
    """These checks take milliseconds, and vLLM's import ten seconds."""
    assert field_types("no/such/file.py", "Nothing") == {}
    assert "vllm.engine.arg_utils" not in sys.modules
