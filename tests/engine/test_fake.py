"""The fake engine and its tokenizer: deterministic answers, and faults on demand."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.factories import text_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.engine.base import RequestRefused
from tokenmill.engine.fake import FAKE_DIMENSIONS, FakeEngine, FakeSettings, fake_settings
from tokenmill.errors import UserError
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.request import Completion, Params, Pooling, Request, Sampling

NUM_PROMPTS = 400
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def prompts(num_prompts: int = NUM_PROMPTS) -> list[Sequence[int]]:
    """Different prompts, as token ids."""
    return encode(f"prompt {number}" for number in range(num_prompts))


def encode(texts: Iterable[str]) -> list[Sequence[int]]:
    encoded = FakeTokenizer().encode_texts(list(texts))
    return [prompt for prompt in encoded if isinstance(prompt, Sequence)]


def request_of(prompt: Sequence[int], max_tokens: int | None = 100, **sampling: Any) -> Request:
    return Request(prompt, Sampling({"max_tokens": max_tokens, **sampling}))


def run(engine: FakeEngine, requests: Mapping[int, Request]) -> dict[int, Completion | None]:
    """The engine's answer for each key; None for refused requests."""
    answers: dict[int, Completion | None] = {}
    num_open = 0
    for key, request in requests.items():
        answers[key] = None
        try:
            engine.add(key, request)
        except RequestRefused:
            continue
        num_open += 1
    while num_open:
        ended = engine.step()
        answers |= {completion.key: completion for completion in ended}
        num_open -= len(ended)
    return answers


def answer_all(fake: FakeSettings, max_tokens: int | None = 100) -> list[Completion | None]:
    """The answers of a new engine to `prompts()`."""
    requests = {key: request_of(prompt, max_tokens) for key, prompt in enumerate(prompts())}
    return list(run(FakeEngine(fake), requests).values())


def answer_one(text: str, params: Params, fake: FakeSettings | None = None) -> Completion:
    """The answer to one request."""
    (prompt,) = encode([text])
    answer = run(FakeEngine(fake or FakeSettings()), {0: Request(prompt, params)})[0]
    assert answer is not None
    return answer


@pytest.mark.parametrize("max_num_seqs", [1, 3, 64])
def test_answers_depend_only_on_the_prompt(max_num_seqs: int) -> None:
    """Other engines, orders, keys and batch sizes give the same answers."""
    fake = FakeSettings(refuse_rate=0.2, error_rate=0.2)
    expected = answer_all(fake)
    shuffled = list(enumerate(prompts()))
    random.Random(7).shuffle(shuffled)
    engine = FakeEngine(fake.model_copy(update={"max_num_seqs": max_num_seqs}))
    answers = run(engine, {key + 1000: request_of(prompt) for key, prompt in shuffled})
    for key, answer in enumerate(expected):
        again = answers[key + 1000]
        assert again == (None if answer is None else replace(answer, key=key + 1000))


def test_a_repeated_prompt_has_the_same_answer() -> None:
    """One engine gives the same answer to a prompt under two keys."""
    (prompt,) = encode(["hello"])
    answers = run(FakeEngine(FakeSettings()), {1: request_of(prompt, 8), 2: request_of(prompt, 8)})
    first, second = answers[1], answers[2]
    assert first is not None and second is not None
    assert replace(first, key=2) == second


def test_an_answer_is_the_same_in_every_release() -> None:
    """A later release may resume an output, so answers never change."""
    answer = answer_one("hello", Sampling({"max_tokens": 8}))
    assert answer.text == "cedar oak hazel cedar hazel maple maple cedar"
    assert (answer.finish_reason, answer.num_input_tokens) == ("length", 2)


@pytest.mark.parametrize("max_tokens", [1, 5, 1000, None])
def test_an_answer_ends_at_max_tokens_with_the_reason_length(max_tokens: int | None) -> None:
    """No answer is longer; answers that are cut end with "length", the others with "stop"."""
    answers = [answer for answer in answer_all(FakeSettings(), max_tokens) if answer]
    uncut_answers = [answer for answer in answer_all(FakeSettings(), 1000) if answer]
    assert len(answers) == len(uncut_answers) == NUM_PROMPTS
    for answer, uncut in zip(answers, uncut_answers, strict=True):
        assert uncut.finish_reason == "stop"
        length = min(uncut.num_generated_tokens, max_tokens or 1000)
        assert answer.num_generated_tokens == length == len(answer.text.split())
        was_cut = length < uncut.num_generated_tokens
        assert answer.finish_reason == ("length" if was_cut else "stop")


def test_without_max_tokens_the_context_is_the_limit() -> None:
    """With `max_tokens: null`, prompt and answer together never exceed the context."""
    answers = [answer for answer in answer_all(FakeSettings(max_model_len=12), None) if answer]
    total = [answer.num_input_tokens + answer.num_generated_tokens for answer in answers]
    assert max(total) == 12
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_answers_have_the_configured_mean_length_and_plausible_log_probabilities() -> None:
    """The mean length is `output_tokens`; cumulative log-probabilities are at most zero."""
    answers = [answer for answer in answer_all(FakeSettings(output_tokens=20), None) if answer]
    mean = sum(answer.num_generated_tokens for answer in answers) / len(answers)
    # The standard deviation is 11: the mean of 400 is off by more than 2 once in 5,000 times.
    assert mean == pytest.approx(20, abs=2)
    assert all(
        answer.cumulative_logprob is not None and answer.cumulative_logprob <= 0
        for answer in answers
    )


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_rates_are_shares_of_the_requests(rate: float) -> None:
    """That share of the requests is refused, or ends with "error"; 0 is none and 1 is all."""
    refused = [answer is None for answer in answer_all(FakeSettings(refuse_rate=rate))]
    answers = answer_all(FakeSettings(error_rate=rate))
    failed = [answer is not None and answer.finish_reason == "error" for answer in answers]
    for faults in (refused, failed):
        share = sum(faults) / NUM_PROMPTS
        # Three standard deviations of 400 draws are 0.065.
        assert share == (pytest.approx(rate, abs=0.065) if 0 < rate < 1 else rate)
    assert all(not answer.text for answer in answers if answer and answer.finish_reason == "error")


def test_at_most_max_num_seqs_requests_get_a_token_per_step() -> None:
    """A step adds one token to each of the first `max_num_seqs` requests."""
    engine = FakeEngine(FakeSettings(max_num_seqs=4))
    for key, prompt in enumerate(prompts(10)):
        engine.add(key, request_of(prompt, 1))
    ended = [[completion.key for completion in engine.step()] for _ in range(4)]
    assert ended == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


@pytest.mark.parametrize(
    "text", ["poison", "a poisoned one", "no. poison", "poison\0", "毒 poison"]
)
def test_crash_on_crashes_the_engine_wherever_the_text_is(text: str) -> None:
    """A prompt that contains the text crashes the engine; it is not a refusal."""
    engine = FakeEngine(FakeSettings(crash_on="poison"))
    harmless, poison = encode(["poi son", text])
    engine.add(1, request_of(harmless))
    with pytest.raises(RuntimeError, match="poison"):
        engine.add(2, request_of(poison))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"step_seconds": 1}, ["model.engine.step_seconds: unknown key", "did you mean step_s?"]),
        ({"max_num_seq": 1}, ["model.engine.max_num_seq: unknown key", "max_num_seqs?"]),
        ({"zzz": 1}, ["model.engine.zzz: unknown key", "known: max_model_len, max_num_seqs"]),
        ({"max_num_seqs": 0}, ["model.engine.max_num_seqs: ", "greater than or equal to 1"]),
        ({"max_model_len": "long"}, ["model.engine.max_model_len: ", "integer"]),
        ({"refuse_rate": 1.5}, ["model.engine.refuse_rate: ", "less than or equal to 1"]),
        ({"error_rate": -0.1}, ["model.engine.error_rate: "]),
        ({"error_rate": float("nan")}, ["model.engine.error_rate: "]),
        ({"step_s": -1}, ["model.engine.step_s: "]),
        ({"step_s": float("inf")}, ["model.engine.step_s: ", "finite"]),
        ({"crash_on": 5}, ["model.engine.crash_on: ", "string"]),
        ({"crash_on": ""}, ["model.engine.crash_on: "]),
        ({"output_tokens": None}, ["model.engine.output_tokens: "]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_in_the_error(
    arguments: Mapping[str, Any], parts: list[str]
) -> None:
    """The error has the nearest name for an unknown key, and the constraint for a bad value."""
    with pytest.raises(UserError) as refusal:
        fake_settings(arguments)
    assert all(part in str(refusal.value) for part in parts), str(refusal.value)


def test_the_engine_has_the_jobs_settings() -> None:
    """Settings that the job leaves out have defaults."""
    fake = fake_settings({"max_num_seqs": 3, "refuse_rate": 0.5, "crash_on": "poison"})
    assert fake == FakeSettings(max_num_seqs=3, refuse_rate=0.5, crash_on="poison")
    assert fake_settings({}) == FakeSettings()
    info = FakeEngine(fake).info
    assert (info.name, info.max_num_seqs, info.max_model_len) == ("fake", 3, 8192)


def test_every_setting_is_described() -> None:
    """The fake engine is part of the product, so its settings are documented."""
    for name, field in FakeSettings.model_fields.items():
        assert field.description and field.description.endswith("."), name


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=5))
@example(["", "a", "\0a", "a\0", "\0\0\0", "ÿ", "\U0010ffff"])
def test_texts_come_back_from_their_tokens(texts: list[str]) -> None:
    """The tokenizer is lossless: the tokens of a text decode to the text."""
    encoded = encode(texts)
    assert [text_of(prompt) for prompt in encoded] == texts
    assert all(0 <= token < 2**31 for prompt in encoded for token in prompt)
    assert [len(prompt) for prompt in encoded] == [-(-len(text.encode()) // 3) for text in texts]


def test_a_chat_keeps_its_roles_and_contents() -> None:
    """The tokens of a chat contain every turn in order, the role before the content."""
    chats = [[("system", "be brief"), ("user", "hi")], [("user", "")]]
    texts = [
        text_of(prompt)
        for prompt in FakeTokenizer().encode_chats(chats)
        if isinstance(prompt, Sequence)
    ]
    assert texts == ["<|system|>\nbe brief\n<|user|>\nhi\n", "<|user|>\n\n"]


def test_each_request_has_its_own_parameters() -> None:
    """Requests in one engine may have different max_tokens."""
    (prompt,) = encode(["hello"])
    answers = run(FakeEngine(FakeSettings()), {0: request_of(prompt, 3), 1: request_of(prompt, 5)})
    assert [answer.num_generated_tokens for answer in answers.values() if answer] == [3, 5]


@pytest.mark.parametrize("tokens", [[7], [1, 2, 3], list(range(100, 400))], ids=len)
def test_choices_have_log_probabilities_that_leave_room_for_other_tokens(tokens: list[int]) -> None:
    """Each of `logprob_token_ids` gets one; their probabilities sum to less than 1."""
    sampling = Sampling({"max_tokens": 1, "logprob_token_ids": tokens})
    logprobs = answer_one("hello", sampling).choice_logprobs
    assert logprobs is not None
    assert list(logprobs) == tokens
    assert all(logprob < 0 for logprob in logprobs.values())
    assert sum(map(math.exp, logprobs.values())) < 1
    assert logprobs == answer_one("hello", sampling).choice_logprobs
    if len(tokens) > 1:
        assert len(set(logprobs.values())) > 1
        assert logprobs != answer_one("other", sampling).choice_logprobs


@pytest.mark.parametrize("text", ["", "one", "several tokens in it"])
def test_every_token_of_a_prompt_but_the_first_has_a_log_probability(text: str) -> None:
    """`prompt_logprobs` returns natural log-probabilities, below zero, of all other tokens."""
    answer = answer_one(text, Sampling({"max_tokens": 1, "prompt_logprobs": 0}))
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == max(0, answer.num_input_tokens - 1)
    assert all(logprob < 0 for logprob in answer.prompt_logprobs)


def test_an_answer_has_only_the_requested_values() -> None:
    """Without their parameters there are no other log-probabilities, and no vector."""
    answer = answer_one("hello", Sampling({"max_tokens": 1, "prompt_logprobs": None}))
    assert (answer.choice_logprobs, answer.prompt_logprobs, answer.vector) == (None, None, None)
    scored = Sampling({"max_tokens": 1, "prompt_logprobs": 0, "logprob_token_ids": [1]})
    plain = replace(answer_one("hello", scored), choice_logprobs=None, prompt_logprobs=None)
    assert plain == answer


def test_a_pooling_model_returns_a_unit_vector_and_no_text() -> None:
    """The vector is float32, has the model's dimensions and the length 1."""
    answer = answer_one("hello", Pooling("embed"))
    assert answer.vector is not None
    assert (answer.vector.shape, answer.vector.dtype) == ((FAKE_DIMENSIONS,), np.float32)
    assert np.linalg.norm(answer.vector) == pytest.approx(1, abs=1e-6)
    assert (answer.text, answer.finish_reason, answer.num_generated_tokens) == ("", "stop", 0)
    assert (answer.num_input_tokens, answer.cumulative_logprob) == (2, None)


def test_a_vector_depends_on_prompt_and_activation() -> None:
    """Equal prompts have equal vectors; without activation the vector is not normalized."""
    unit, again, other = (
        answer_one(text, Pooling("embed")).vector for text in ("hello", "hello", "other")
    )
    raw = answer_one("hello", Pooling("embed", {"use_activation": False})).vector
    assert unit is not None and raw is not None
    np.testing.assert_array_equal(unit, again)
    assert not np.array_equal(unit, other)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw), rtol=1e-6)
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)


def test_pooling_requests_end_in_one_step_and_can_fail() -> None:
    """They generate no tokens, so they take one step; faults apply to them too."""
    engine = FakeEngine(FakeSettings(max_num_seqs=2))
    for key, prompt in enumerate(prompts(3)):
        engine.add(key, Request(prompt, Pooling("classify")))
    assert [[done.key for done in engine.step()] for _ in range(2)] == [[0, 1], [2]]
    assert answer_one("x", Pooling("embed"), FakeSettings(error_rate=1)).finish_reason == "error"


def test_an_instant_engine_answers_at_the_next_step() -> None:
    """Its answers are empty, and all requests in the batch end together."""
    engine = FakeEngine(FakeSettings(instant=True, max_num_seqs=2))
    for key in range(3):
        engine.add(key, Request([1, 2], Sampling({"max_tokens": 8})))
    assert [[answer.key for answer in engine.step()] for _ in range(2)] == [[0, 1], [2]]
