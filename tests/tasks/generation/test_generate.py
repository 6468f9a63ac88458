"""Generate: one answer, several, or the best; reasoning, stop reasons and token columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.asking import Asked, completion, make_job, one_step
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.errors import UserError
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Request, Sampling, TokenLogprob
from tokenmill.tasks.kind import check_logprobs

ROW = {"text": "Name a tree."}
FAILED = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)
WARM = {"max_tokens": 16, "temperature": 0.7}


def generate(**keys: Any) -> dict[str, Any]:
    return {"kind": "generate", **keys}


def one(answer: Answer, *, row: dict[str, Any] = ROW, **keys: Any) -> Asked:
    """A row whose requests all get the same answer."""
    return Asked(one_step(**keys), row, lambda _request, _index: answer)


def several(answers: Sequence[Answer], **keys: Any) -> Asked:
    """A row whose requests get these answers, in order."""
    return Asked(one_step(**keys), ROW, lambda _request, index: answers[index])


def test_one_answer_has_scalar_columns() -> None:
    """By default a row has its text, finish reason and log-probabilities, as scalars."""
    asked = one(
        completion(
            "an elm", cumulative_logprob=-6.0, num_generated_tokens=4, finish_reason="length"
        )
    )
    assert asked.cells == {
        "generated_text": "an elm",
        "finish_reason": "length",
        "cumulative_logprob": -6.0,
        "mean_logprob": -1.5,
    }
    assert len(asked.requests) == 1


def test_n_answers_are_lists_in_the_order_of_the_requests() -> None:
    """`n: 3` sends the same prompt three times; each column is a list with an item per answer."""
    answers = [
        completion(text, cumulative_logprob=-i, num_generated_tokens=2)
        for i, text in enumerate("abc")
    ]
    asked = several(answers, task=generate(n=3), sampling=WARM)
    assert asked.cells == {
        "generated_texts": ["a", "b", "c"],
        "finish_reasons": ["stop"] * 3,
        "cumulative_logprobs": [0, -1, -2],
        "mean_logprobs": [0, -0.5, -1],
    }
    assert len({tuple(request.prompt_token_ids) for request in asked.requests}) == 1
    assert [field.type for field in one_step(task=generate(n=3), sampling=WARM).fields] == [
        pa.list_(pa.string()),
        pa.list_(pa.string()),
        pa.list_(pa.float64()),
        pa.list_(pa.float64()),
    ]


def test_samples_have_their_own_seeds() -> None:
    """With a seed in the job, samples use consecutive seeds; without one, none."""
    seeded = one(completion(), task=generate(n=3), sampling={**WARM, "seed": 5})
    assert seeded.sampled("seed") == [5, 6, 7]
    assert one(completion(), task=generate(n=3), sampling=WARM).sampled("seed") == [None] * 3


@given(st.lists(st.booleans(), min_size=2, max_size=6))
def test_a_failed_sample_is_null_at_its_position(succeed: list[bool]) -> None:
    """A failed sample does not affect the others; the row is rejected only if all fail."""
    answers = [completion(str(i)) if good else FAILED for i, good in enumerate(succeed)]
    asked = several(answers, task=generate(n=len(succeed)), sampling=WARM)
    if any(succeed):
        expected = [str(i) if good else None for i, good in enumerate(succeed)]
        assert asked.cells["generated_texts"] == expected
    else:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        assert f"all {len(succeed)} samples failed" in asked.reject.message


@given(st.lists(st.none() | st.tuples(st.integers(1, 9), st.floats(-99, 0)), min_size=2))
def test_the_best_has_the_highest_log_probability_per_token(
    samples: list[tuple[int, float] | None],
) -> None:
    """`best_of` returns the likeliest sample as scalars, and the number of valid samples."""
    answers: list[Answer] = [
        FAILED
        if sample is None
        else completion(str(i), num_generated_tokens=sample[0], cumulative_logprob=sample[1])
        for i, sample in enumerate(samples)
    ]
    best_of = {"n": len(samples), "by": "mean_logprob"}
    asked = several(answers, task=generate(best_of=best_of), sampling=WARM)
    means = {i: sample[1] / sample[0] for i, sample in enumerate(samples) if sample is not None}
    if not means:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        return
    best = max(means.values())
    assert asked.cells["mean_logprob"] == best
    assert means[int(asked.cells["generated_text"])] == best
    assert asked.cells["num_samples"] == len(means)


def test_an_empty_sample_is_not_the_best() -> None:
    """A sample without tokens has no mean log-probability and ranks last."""
    answers = [
        completion("", num_generated_tokens=0, cumulative_logprob=0.0),
        completion("an elm", cumulative_logprob=-50.0),
    ]
    asked = several(answers, task=generate(best_of={"n": 2}), sampling=WARM)
    assert asked.cells["generated_text"] == "an elm"


REWARD = {"n": 3, "by": "reward", "model": {"source": "fake"}}


def judged(rewards: Sequence[float | None], **keys: Any) -> Asked:
    """A row with the answers `answer 0`, `answer 1`, …, and their rewards."""

    def answer(request: Request, index: int) -> Answer:
        if request.model is None:
            return completion(f"answer {index}")
        reward = rewards[index - len(rewards)]
        if reward is None:
            return FAILED
        return completion("", vector=np.array([reward]))

    best_of = {**REWARD, "n": len(rewards)}
    return Asked(one_step(task=generate(best_of=best_of), sampling=WARM, **keys), ROW, answer)


@given(st.lists(st.none() | st.floats(-9, 9), min_size=2, max_size=5))
def test_a_reward_model_chooses_the_best(rewards: list[float | None]) -> None:
    """It reads the prompt with each answer; the row has the answer with the largest reward."""
    asked = judged(rewards)
    judge_requests = [
        request for request in asked.requests if request.model == "task.best_of.model"
    ]
    assert len(judge_requests) == len(rewards)
    decode = FakeTokenizer().decode
    prompts = [decode(request.prompt_token_ids) for request in judge_requests]
    assert prompts == [f"{ROW['text']}answer {i}" for i in range(len(rewards))]
    present = [reward for reward in rewards if reward is not None]
    if not present:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        return
    assert asked.cells["reward"] == max(present)
    assert asked.cells["generated_text"] == f"answer {rewards.index(max(present))}"
    assert asked.cells["num_samples"] == len(rewards)


def test_a_rows_adapter_does_not_reach_its_judge() -> None:
    """An adapter belongs to the model that writes, so requests to the judge have none."""
    model = {"source": "fake", "adapters": {"a": "folder"}}
    task = generate(best_of=REWARD, adapter="style")
    step = one_step(task=task, sampling=WARM, model=model)
    answer = completion("an elm", vector=np.array([1.0]))
    row = {**ROW, "style": "a"}
    asked = Asked(step, row, lambda _request, _index: answer, adapters=["a"])
    assert [(request.model, request.adapter) for request in asked.requests] == [
        *[(None, "a")] * 3,
        *[("task.best_of.model", None)] * 3,
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": generate(best_of={"n": 2, "by": "reward"})}, "by: reward and model"),
        ({"task": generate(best_of={"n": 2, "model": {"source": "fake"}})}, "by: reward and model"),
        ({"task": generate(n=0)}, "greater than or equal to 1"),
        ({"task": generate(n=2, best_of={"n": 2})}, "n or best_of, not both"),
        ({"task": generate(n=2), "sampling": {"max_tokens": 1, "temperature": 0}}, "are equal"),
        ({"task": generate(n=2), "sampling": {"max_tokens": 1, "top_k": 1}}, "are equal"),
        (
            {"task": generate(best_of={"n": 2}), "sampling": {"max_tokens": 1, "temperature": 0}},
            "are equal",
        ),
        (
            {"task": generate(best_of={"n": 2}), "sampling": {"max_tokens": 1, "logprobs": None}},
            "best_of needs log-probabilities",
        ),
        ({"task": generate(n=2), "overrides": {"seed": "s"}}, "set sampling.seed as well"),
        (
            {"task": generate(tokens={"top": 2}), "sampling": {"max_tokens": 1, "logprobs": 2}},
            "sampling.logprobs: tokens.top already sets it",
        ),
        ({"task": generate(tokens={"top": 21})}, "less than or equal to 20"),
        ({"task": generate(reasoning={"end": "<think>"})}, "neither may contain the other"),
        ({"sampling": {"max_tokens": 1, "n": 2}}, "set n or best_of in the task"),
    ],
)
def test_impossible_sections_are_errors(keys: dict[str, Any], message: str) -> None:
    """Contradictions are found when the job is read."""
    with pytest.raises(ValidationError) as raised:
        make_job(**keys)
    assert message in str(raised.value)


def test_a_rows_cost_counts_all_samples() -> None:
    """The plan sizes units by the maximum length of all samples."""
    step = one_step(task=generate(n=3), sampling=WARM)
    assert [params.max_tokens for params in step.params] == [16] * 3


STOPPING = {"max_tokens": 16, "stop": ["\n"], "stop_token_ids": [28]}


@pytest.mark.parametrize(
    ("reason", "expected"), [("\n", "\n"), (28, "28"), (2, None), (None, None)]
)
def test_the_stop_reason_is_the_stop_of_the_job(
    reason: str | int | None, expected: str | None
) -> None:
    """It is the job's stop string or token that ended the answer; null for any other end."""
    assert one(completion(stop_reason=reason), sampling=STOPPING).cells["stop_reason"] == expected


def test_a_job_without_stops_has_no_stop_reason() -> None:
    """`stop_reason` is a column only if the sampling or a row's overrides can set stops."""
    names = [field.name for field in one_step(overrides={"stop": "until"}).fields]
    assert "stop_reason" in names
    assert "stop_reason" not in [field.name for field in one_step().fields]


class ReasoningTokenizer(FakeTokenizer):
    """A tokenizer with the reasoning markers among its special tokens."""

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset({"<think>", "</think>", "<|end|>"})


OPEN = {"text": "Name a tree.\n<think>\n"}


@pytest.mark.parametrize(
    ("text", "row", "reasoning", "answer"),
    [
        ("<think>Trees.</think>\n\nAn elm.", ROW, "Trees.", "An elm."),
        ("\n<think>\nTrees.\n</think>An elm.", ROW, "Trees.", "An elm."),
        ("Trees.\n</think>\n\nAn elm.", OPEN, "Trees.", "An elm."),
        ("<think>Trees.</think>An elm.", OPEN, "Trees.", "An elm."),
        ("Trees.</think>An elm.", ROW, "Trees.", "An elm."),
        ("<think>\n\n</think>\n\nAn elm.", ROW, "", "An elm."),
        ("<think>a</think>b</think>c", ROW, "a", "b</think>c"),
        ("<think>a</think>", ROW, "a", ""),
        ("An elm.", ROW, None, "An elm."),
        ("Write <think> to think.", ROW, None, "Write <think> to think."),
        (" An elm.", ROW, None, " An elm."),
    ],
)
def test_reasoning_is_split_from_the_answer(
    text: str, row: dict[str, str], reasoning: str | None, answer: str
) -> None:
    """Reasoning goes to its own column, whether the prompt or the answer opens it."""
    asked = one(completion(text), row=row, task=generate(reasoning=True))
    assert asked.cells["reasoning_text"] == reasoning
    assert asked.cells["generated_text"] == answer


@pytest.mark.parametrize(
    ("text", "row", "finish", "message"),
    [
        ("<think>Trees are", ROW, "length", "no answer within 1,234 tokens of reasoning"),
        ("Trees are", OPEN, "length", "raise sampling.max_tokens"),
        ("<think>Trees are", ROW, "stop", "the model stopped before the end of its reasoning"),
    ],
)
def test_unfinished_reasoning_is_rejected(
    text: str, row: dict[str, str], finish: str, message: str
) -> None:
    """Without an end marker the row is rejected, and the message keeps the end of the reasoning."""
    answer = completion(text, num_generated_tokens=1234, finish_reason=finish)
    reject = one(answer, row=row, task=generate(reasoning=True)).reject
    assert reject.reject_class is RejectClass.TRUNCATED_ANSWER
    assert message in reject.message
    assert reject.message.endswith("Trees are")
    assert reject.attempts == 1


def test_a_rejects_message_is_bounded() -> None:
    """Of ten thousand words of reasoning, the message keeps the last ones."""
    answer = completion("<think>" + "tree " * 10_000 + "last", finish_reason="length")
    message = one(answer, task=generate(reasoning=True)).reject.message
    assert len(message) < 2200
    assert message.endswith("last")


def test_unfinished_reasoning_does_not_affect_other_samples() -> None:
    """A sample without an answer is null in all lists."""
    answers = [completion("<think>Trees", finish_reason="length"), completion("<think>a</think>b")]
    cells = several(answers, task=generate(n=2, reasoning=True), sampling=WARM).cells
    assert cells["generated_texts"] == [None, "b"]
    assert cells["reasoning_texts"] == [None, "a"]
    assert cells["finish_reasons"] == [None, "stop"]


def test_a_job_can_set_other_markers() -> None:
    """Markers other than `<think>` are split in the same way."""
    task = generate(reasoning={"start": "[THINK]", "end": "[/THINK]"})
    cells = one(completion("[THINK]Trees.[/THINK]An elm."), task=task).cells
    assert (cells["reasoning_text"], cells["generated_text"]) == ("Trees.", "An elm.")


def test_markers_that_are_special_tokens_are_requested() -> None:
    """Requests keep special tokens in the text, and the other special tokens are removed."""
    text = "<think>Trees.<|end|></think>An elm.<|end|>"
    answer = completion(text)
    asked = Asked(
        one_step(task=generate(reasoning=True)),
        ROW,
        lambda _request, _index: answer,
        ReasoningTokenizer(),
    )
    assert asked.sampled("skip_special_tokens") == [False]
    assert asked.cells["reasoning_text"] == "Trees."
    assert asked.cells["generated_text"] == "An elm."
    plain = one(answer, task=generate(reasoning=True))
    assert plain.sampled("skip_special_tokens") == [None]
    assert plain.cells["generated_text"] == "An elm.<|end|>"


def test_skipping_special_tokens_that_are_markers_is_an_error() -> None:
    """The contradiction is found once the model's tokenizer is known."""
    sampling = {"max_tokens": 4, "skip_special_tokens": True}
    step = one_step(task=generate(reasoning=True), sampling=sampling)
    with pytest.raises(UserError, match="skip_special_tokens"):
        Asked(step, ROW, lambda _request, _index: completion(), ReasoningTokenizer())


TOKENS = [
    TokenLogprob("An", -0.5, [("An", -0.5), ("The", -1.0)]),
    TokenLogprob(" elm", -2.5, [(" oak", -0.1), (" ash", -2.0)]),
]


def test_tokens_have_their_alternatives() -> None:
    """`tokens: {top: 2}` requests two alternatives per token and stores them as nested lists."""
    asked = one(completion(tokens=TOKENS), task=generate(tokens={"top": 2}))
    assert asked.sampled("logprobs") == [2]
    assert asked.cells["tokens"] == [
        {
            "token": "An",
            "logprob": -0.5,
            "top": [{"token": "An", "logprob": -0.5}, {"token": "The", "logprob": -1.0}],
        },
        {
            "token": " elm",
            "logprob": -2.5,
            "top": [{"token": " oak", "logprob": -0.1}, {"token": " ash", "logprob": -2.0}],
        },
    ]


def test_the_tokens_of_several_samples_are_lists_of_lists() -> None:
    """With `n`, the column is a list of each sample's tokens, null for a failed sample."""
    answers = [completion(tokens=TOKENS), FAILED]
    cells = several(answers, task=generate(n=2, tokens={}), sampling=WARM).cells
    assert [None if tokens is None else len(tokens) for tokens in cells["tokens"]] == [2, None]


def test_likeliest_tokens_and_labels_cannot_share_an_engine() -> None:
    """Requests that corrupt each other's log-probabilities are found by their parameters."""
    top = one_step(task=generate(tokens={"top": 1})).params
    plain = one_step(task=generate(tokens={"top": 0})).params
    labels = one_step(task={"kind": "tag", "choices": ["a"]}, sampling=None).params
    check_logprobs([*plain, *labels])
    check_logprobs([*top, *top])
    with pytest.raises(ValueError, match="make two jobs"):
        check_logprobs([*top, *labels])


def fake_answers(requests: Sequence[Request]) -> list[Any]:
    engine = FakeEngine(FakeSettings(output_tokens=20))
    for key, request in enumerate(requests):
        engine.add(key, request)
    answers: dict[int, Any] = {}
    while len(answers) < len(requests):
        answers.update((answer.key, answer) for answer in engine.step())
    return [answers[key] for key in range(len(requests))]


def test_the_fake_engine_supports_seeds_adapters_stops_and_tokens() -> None:
    """Seeds and adapters change its answers; stops and token log-probabilities work as in vLLM."""

    def ask(adapter: str | None = None, **values: Any) -> Request:
        return Request([1, 2, 3], Sampling({"max_tokens": 30, **values}), adapter=adapter)

    plain, again, seeded, adapted, stopped, detailed = fake_answers(
        [ask(), ask(), ask(seed=0), ask("fr"), ask(stop=["h "]), ask(logprobs=3)]
    )
    assert plain.text == again.text
    assert len({plain.text, seeded.text, adapted.text}) == 3
    assert (plain.finish_reason, plain.tokens, plain.stop_reason) == ("stop", None, None)
    if "h " in plain.text:
        assert stopped.text == plain.text.split("h ")[0]
        assert stopped.stop_reason == "h "
    assert len(detailed.tokens) == detailed.num_generated_tokens
    assert sum(token.logprob for token in detailed.tokens) == pytest.approx(
        detailed.cumulative_logprob
    )
    assert {len(token.top) for token in detailed.tokens} == {3}
    assert all(token.top[0] == (token.token, token.logprob) for token in detailed.tokens)


def test_the_cells_of_chunks_are_joined() -> None:
    """Texts are concatenated, the mean covers all tokens, and one cut chunk cuts the row."""
    step = one_step(task=generate(tokens={"top": 1}, best_of={"n": 2}), sampling=WARM)
    parts = [
        several(
            [answer, FAILED],
            task=step.section.model_dump(exclude={"prompt", "sampling"}),
            sampling=WARM,
        )
        for answer in (
            completion("An elm. ", cumulative_logprob=-2.0, num_generated_tokens=4, tokens=TOKENS),
            completion(
                "An oak.",
                cumulative_logprob=-10.0,
                num_generated_tokens=2,
                tokens=TOKENS,
                finish_reason="length",
            ),
        )
    ]
    cells = step.join.cells([part.cells for part in parts])
    assert cells["generated_text"] == "An elm. An oak."
    assert cells["finish_reason"] == "length"
    assert (cells["cumulative_logprob"], cells["mean_logprob"]) == (-12, -2)
    assert len(cells["tokens"]) == 4
    assert cells["num_samples"] == 1
    assert cells.keys() == parts[0].cells.keys()


def test_chunks_without_log_probabilities_have_none_when_joined() -> None:
    """If one chunk has no log-probabilities, the row has none."""
    parts = [one(completion(cumulative_logprob=logprob)).cells for logprob in (-1.0, None)]
    cells = one_step().join.cells(parts)
    assert (cells["cumulative_logprob"], cells["mean_logprob"]) == (None, None)
