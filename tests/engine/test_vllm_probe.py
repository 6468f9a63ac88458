"""Parameters are checked by vLLM's own classes in a second, without the rest of vLLM."""

import importlib.util
from typing import Any

import pytest
from tokenmill.engine.vllm_probe import ModelFacts, probe_params
from tokenmill.errors import UserError
from tokenmill.request import Pooling, Sampling

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
FACTS = ModelFacts(vocab_size=100, max_logprobs=20, speculates=False)


def sampling(**values: Any) -> Sampling:
    return Sampling({"max_tokens": 8, **values})


def test_parameters_that_vllm_takes_are_accepted() -> None:
    """Mappings become vLLM's classes, and the keys of a job that was stored become numbers."""
    valid = [
        sampling(logit_bias={"28": 100, 29: -1}),
        sampling(repetition_detection={"max_pattern_size": 3, "min_count": 2}),
        sampling(structured_outputs={"json": {"type": "object"}}),
        sampling(stop="a", bad_words=["b"], stop_token_ids=[1], allowed_token_ids=[2]),
        sampling(logprobs=20, seed=None, temperature=0, top_k=-1, ignore_eos=True),
        sampling(max_tokens=None, extra_args={"a": [1]}, thinking_token_budget=3),
    ]
    probe_params({"sampling": valid, "task": [Pooling("embed", {"use_activation": True})]}, FACTS)
    unknown = ModelFacts(vocab_size=None, max_logprobs=-1, speculates=True)
    probe_params({"sampling": [sampling(logprobs=50, stop_token_ids=[1000])]}, unknown)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logit_bias": {"a": 1}}, "a.sampling.logit_bias: "),
        ({"logit_bias": {"100": 1}}, "a.sampling: "),
        ({"repetition_detection": {"max_pattern_size": 3}}, "a.sampling: "),
        ({"repetition_detection": {"max_size": 3}}, "a.sampling.repetition_detection.max_size: "),
        ({"structured_outputs": {"choise": ["a"]}}, "a.sampling.structured_outputs.choise: "),
        ({"ignore_eos": "yes"}, "a.sampling.ignore_eos: "),
        ({"logprobs": True}, "a.sampling.logprobs: "),
        ({"stop_token_ids": [1.0]}, "a.sampling.stop_token_ids: "),
        ({"logprobs": 21}, "a.sampling: "),
        ({"min_tokens": 9}, "a.sampling: "),
        ({"allowed_token_ids": []}, "a.sampling: "),
        ({"nothing": 1}, "a.sampling.nothing: unknown key"),
    ],
    ids=str,
)
def test_parameters_that_vllm_would_refuse_for_every_row_are_named(
    values: dict[str, Any], message: str
) -> None:
    """The error is one line with the job key."""
    with pytest.raises(UserError) as caught:
        probe_params({"good": [sampling()], "a.sampling": [sampling(**values)]}, FACTS)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"min_p": 0.5}, {"logit_bias": {"28": 1}}], ids=str)
def test_parameters_without_speculation_are_refused_with_it(values: dict[str, Any]) -> None:
    """They are accepted without."""
    params = {"sampling": [sampling(**values)]}
    probe_params(params, FACTS)
    with pytest.raises(UserError, match=r"^sampling: .*speculative"):
        probe_params(params, ModelFacts(100, 20, speculates=True))
