"""Generate: one answer, several, the best; thinking split off; stop strings; tokens told."""

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
    """A row whose every request gets this answer."""
    return Asked(one_step(**keys), row, lambda _request, _at: answer)


def several(answers: Sequence[Answer], **keys: Any) -> Asked:
    """A row whose requests get these answers in their order."""
    return Asked(one_step(**keys), ROW, lambda _request, at: answers[at])


def test_one_answer_has_todays_columns() -> None:
    """Without options a row has its text, why it ended and its log-probabilities, as scalars."""
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
    """`n: 3` asks the same prompt three times; each column is a list with a place for each."""
    answers = [
        completion(text, cumulative_logprob=-at, num_generated_tokens=2)
        for at, text in enumerate("abc")
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


def test_samples_have_seeds_of_their_own() -> None:
    """With a seed in the job the samples have this one and those after it; without one, none."""
    seeded = one(completion(), task=generate(n=3), sampling={**WARM, "seed": 5})
    assert seeded.sampled("seed") == [5, 6, 7]
    assert one(completion(), task=generate(n=3), sampling=WARM).sampled("seed") == [None] * 3


@given(st.lists(st.booleans(), min_size=2, max_size=6))
def test_a_sample_that_fails_is_null_in_its_place(succeed: list[bool]) -> None:
    """A failed sample touches no other; the row is a reject only if all of them failed."""
    answers = [completion(str(at)) if good else FAILED for at, good in enumerate(succeed)]
    asked = several(answers, task=generate(n=len(succeed)), sampling=WARM)
    if any(succeed):
        expected = [str(at) if good else None for at, good in enumerate(succeed)]
        assert asked.cells["generated_texts"] == expected
    else:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        assert f"all {len(succeed)} samples failed" in asked.reject.message


@given(st.lists(st.none() | st.tuples(st.integers(1, 9), st.floats(-99, 0)), min_size=2))
def test_the_best_has_the_highest_log_probability_per_token(
    samples: list[tuple[int, float] | None],
) -> None:
    """`best_of` gives the sample that no other exceeds, as scalars, and of how many it is."""
    answers: list[Answer] = [
        FAILED
        if sample is None
        else completion(str(at), num_generated_tokens=sample[0], cumulative_logprob=sample[1])
        for at, sample in enumerate(samples)
    ]
    best_of = {"n": len(samples), "by": "mean_logprob"}
    asked = several(answers, task=generate(best_of=best_of), sampling=WARM)
    means = {at: sample[1] / sample[0] for at, sample in enumerate(samples) if sample is not None}
    if not means:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        return
    best = max(means.values())
    assert asked.cells["mean_logprob"] == best
    assert means[int(asked.cells["generated_text"])] == best
    assert asked.cells["num_samples"] == len(means)


def test_an_empty_sample_is_not_the_best() -> None:
    """A sample without tokens has no log-probability and stands behind all that have one."""
    answers = [
        completion("", num_generated_tokens=0, cumulative_logprob=0.0),
        completion("an elm", cumulative_logprob=-50.0),
    ]
    asked = several(answers, task=generate(best_of={"n": 2}), sampling=WARM)
    assert asked.cells["generated_text"] == "an elm"


REWARD = {"n": 3, "by": "reward", "model": {"source": "fake"}}


def judged(rewards: Sequence[float | None], **keys: Any) -> Asked:
    """A row with the answers `answer 0`, `answer 1`, …, and a judge's numbers for them."""

    def answer(request: Request, at: int) -> Answer:
        if request.model is None:
            return completion(f"answer {at}")
        number = rewards[at - len(rewards)]
        if number is None:
            return FAILED
        return completion("", vector=np.array([number]))

    best_of = {**REWARD, "n": len(rewards)}
    return Asked(one_step(task=generate(best_of=best_of), sampling=WARM, **keys), ROW, answer)


@given(st.lists(st.none() | st.floats(-9, 9), min_size=2, max_size=5))
def test_a_reward_model_chooses_the_best(rewards: list[float | None]) -> None:
    """It reads the prompt and each answer; the one with the largest number stands, with it."""
    asked = judged(rewards)
    of_judge = [request for request in asked.requests if request.model == "task.best_of.model"]
    assert len(of_judge) == len(rewards)
    decode = FakeTokenizer().decode
    read = [decode(request.prompt_token_ids) for request in of_judge]
    assert read == [f"{ROW['text']}answer {at}" for at in range(len(rewards))]
    known = [number for number in rewards if number is not None]
    if not known:
        assert asked.reject.reject_class is RejectClass.ENGINE_ERROR
        return
    assert asked.cells["reward"] == max(known)
    assert asked.cells["generated_text"] == f"answer {rewards.index(max(known))}"
    assert asked.cells["num_samples"] == len(rewards)


def test_what_a_row_varies_does_not_reach_its_judge() -> None:
    """An adapter is the writer's."""
    model = {"source": "fake", "adapters": {"a": "folder"}}
    task = generate(best_of=REWARD, adapter="style")
    step = one_step(task=task, sampling=WARM, model=model)
    one_number = completion("an elm", vector=np.array([1.0]))
    row = {**ROW, "style": "a"}
    asked = Asked(step, row, lambda _request, _at: one_number, adapters=["a"])
    assert [(request.model, request.adapter) for request in asked.requests] == [
        *[(None, "a")] * 3,
        *[("task.best_of.model", None)] * 3,
    ]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task": generate(best_of={"n": 2, "by": "reward"})}, "by: reward goes with"),
        ({"task": generate(best_of={"n": 2, "model": {"source": "fake"}})}, "by: reward goes with"),
        ({"task": generate(n=0)}, "greater than or equal to 1"),
        ({"task": generate(n=2, best_of={"n": 2})}, "one of n and best_of"),
        ({"task": generate(n=2), "sampling": {"max_tokens": 1, "temperature": 0}}, "are alike"),
        ({"task": generate(n=2), "sampling": {"max_tokens": 1, "top_k": 1}}, "are alike"),
        (
            {"task": generate(best_of={"n": 2}), "sampling": {"max_tokens": 1, "temperature": 0}},
            "are alike",
        ),
        (
            {"task": generate(best_of={"n": 2}), "sampling": {"max_tokens": 1, "logprobs": None}},
            "best_of compares them",
        ),
        ({"task": generate(n=2), "overrides": {"seed": "s"}}, "set sampling.seed as well"),
        (
            {"task": generate(tokens={"top": 2}), "sampling": {"max_tokens": 1, "logprobs": 2}},
            "sampling.logprobs: tokens.top says it",
        ),
        ({"task": generate(tokens={"top": 21})}, "less than or equal to 20"),
        ({"task": generate(reasoning={"end": "<think>"})}, "one of start and end holds the other"),
        ({"sampling": {"max_tokens": 1, "n": 2}}, "set n or best_of in the task"),
    ],
)
def test_a_section_that_cannot_work_is_refused(keys: dict[str, Any], said: str) -> None:
    """What contradicts itself is said when the job is read."""
    with pytest.raises(ValidationError) as caught:
        make_job(**keys)
    assert said in str(caught.value)


def test_the_rows_cost_counts_all_samples() -> None:
    """A plan sizes its units by the longest answers of all samples."""
    assert [known.max_tokens for known in one_step(task=generate(n=3), sampling=WARM).params] == (
        [16] * 3
    )


STOPPING = {"max_tokens": 16, "stop": ["\n"], "stop_token_ids": [28]}


@pytest.mark.parametrize(("reason", "told"), [("\n", "\n"), (28, "28"), (2, None), (None, None)])
def test_the_stop_reason_is_the_jobs_own(reason: str | int | None, told: str | None) -> None:
    """The stop string or token of the job that ended the answer; null for the model's own end."""
    assert one(completion(stop_reason=reason), sampling=STOPPING).cells["stop_reason"] == told


def test_a_job_without_stops_has_no_column_for_them() -> None:
    """`stop_reason` is a column where the sampling, or a row's, can stop."""
    names = [field.name for field in one_step(overrides={"stop": "until"}).fields]
    assert "stop_reason" in names
    assert "stop_reason" not in [field.name for field in one_step().fields]


class Marked(FakeTokenizer):
    """A tokenizer whose marks are special tokens, among others."""

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
def test_thinking_is_told_from_the_answer(
    text: str, row: dict[str, str], reasoning: str | None, answer: str
) -> None:
    """Wherever the thinking was opened, it goes to its column and the answer stands alone."""
    asked = one(completion(text), row=row, task=generate(reasoning=True))
    assert asked.cells["reasoning_text"] == reasoning
    assert asked.cells["generated_text"] == answer


@pytest.mark.parametrize(
    ("text", "row", "finish", "said"),
    [
        ("<think>Trees are", ROW, "length", "no answer within 1,234 tokens of thinking"),
        ("Trees are", OPEN, "length", "raise sampling.max_tokens"),
        ("<think>Trees are", ROW, "stop", "the model ended inside of its thinking"),
    ],
)
def test_unfinished_thinking_is_no_answer(
    text: str, row: dict[str, str], finish: str, said: str
) -> None:
    """Thinking without its end is a reject that keeps the thinking's end."""
    answer = completion(text, num_generated_tokens=1234, finish_reason=finish)
    reject = one(answer, row=row, task=generate(reasoning=True)).reject
    assert reject.reject_class is RejectClass.TRUNCATED_ANSWER
    assert said in reject.message
    assert reject.message.endswith("Trees are")
    assert reject.attempts == 1


def test_a_rejects_message_is_bounded() -> None:
    """Of ten thousand words of thinking the message keeps the last ones."""
    answer = completion("<think>" + "tree " * 10_000 + "last", finish_reason="length")
    message = one(answer, task=generate(reasoning=True)).reject.message
    assert len(message) < 2200
    assert message.endswith("last")


def test_unfinished_thinking_of_one_sample_touches_no_other() -> None:
    """Among several samples, one without an answer is null in all lists."""
    answers = [completion("<think>Trees", finish_reason="length"), completion("<think>a</think>b")]
    cells = several(answers, task=generate(n=2, reasoning=True), sampling=WARM).cells
    assert cells["generated_texts"] == [None, "b"]
    assert cells["reasoning_texts"] == [None, "a"]
    assert cells["finish_reasons"] == [None, "stop"]


def test_other_marks_may_be_given() -> None:
    """The marks are the model's own."""
    task = generate(reasoning={"start": "[THINK]", "end": "[/THINK]"})
    cells = one(completion("[THINK]Trees.[/THINK]An elm."), task=task).cells
    assert (cells["reasoning_text"], cells["generated_text"]) == ("Trees.", "An elm.")


def test_marks_that_are_special_tokens_are_asked_for() -> None:
    """VLLM leaves special tokens out of texts, so they are asked for; the others are taken out."""
    text = "<think>Trees.<|end|></think>An elm.<|end|>"
    answer = completion(text)
    asked = Asked(
        one_step(task=generate(reasoning=True)), ROW, lambda _request, _at: answer, Marked()
    )
    assert asked.sampled("skip_special_tokens") == [False]
    assert asked.cells["reasoning_text"] == "Trees."
    assert asked.cells["generated_text"] == "An elm."
    plain = one(answer, task=generate(reasoning=True))
    assert plain.sampled("skip_special_tokens") == [None]
    assert plain.cells["generated_text"] == "An elm.<|end|>"


def test_leaving_out_special_tokens_that_are_marks_is_refused() -> None:
    """A job that says both is refused when it meets the model."""
    sampling = {"max_tokens": 4, "skip_special_tokens": True}
    step = one_step(task=generate(reasoning=True), sampling=sampling)
    with pytest.raises(UserError, match="skip_special_tokens"):
        Asked(step, ROW, lambda _request, _at: completion(), Marked())


TOLD = [
    TokenLogprob("An", -0.5, [("An", -0.5), ("The", -1.0)]),
    TokenLogprob(" elm", -2.5, [(" oak", -0.1), (" ash", -2.0)]),
]


def test_tokens_are_told_with_what_else_was_likely() -> None:
    """`tokens: {top: 2}` asks for two alternatives and lays them out as nested columns."""
    asked = one(completion(tokens=TOLD), task=generate(tokens={"top": 2}))
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
    """With n the column is a list of each sample's tokens, null for one that failed."""
    answers = [completion(tokens=TOLD), FAILED]
    cells = several(answers, task=generate(n=2, tokens={}), sampling=WARM).cells
    assert [None if told is None else len(told) for told in cells["tokens"]] == [2, None]


def test_likeliest_tokens_and_labels_do_not_go_together() -> None:
    """Requests that break each other's numbers in one engine are told by their parameters."""
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
    done: dict[int, Any] = {}
    while len(done) < len(requests):
        done.update((answer.key, answer) for answer in engine.step())
    return [done[key] for key in range(len(requests))]


def test_the_fake_engine_knows_seeds_adapters_stops_and_tokens() -> None:
    """The twin answers another seed or adapter differently, stops and tells tokens as vLLM does."""

    def ask(adapter: str | None = None, **values: Any) -> Request:
        return Request([1, 2, 3], Sampling({"max_tokens": 30, **values}), adapter=adapter)

    plain, again, seeded, adapted, stopped, told = fake_answers(
        [ask(), ask(), ask(seed=0), ask("fr"), ask(stop=["h "]), ask(logprobs=3)]
    )
    assert plain.text == again.text
    assert len({plain.text, seeded.text, adapted.text}) == 3
    assert (plain.finish_reason, plain.tokens, plain.stop_reason) == ("stop", None, None)
    if "h " in plain.text:
        assert stopped.text == plain.text.split("h ")[0]
        assert stopped.stop_reason == "h "
    assert len(told.tokens) == told.num_generated_tokens
    assert sum(token.logprob for token in told.tokens) == pytest.approx(told.cumulative_logprob)
    assert {len(token.top) for token in told.tokens} == {3}
    assert all(token.top[0] == (token.token, token.logprob) for token in told.tokens)


def test_the_cells_of_chunks_become_one_rows() -> None:
    """Texts follow each other; the mean is over the tokens of all; a cut part cuts the whole."""
    step = one_step(task=generate(tokens={"top": 1}, best_of={"n": 2}), sampling=WARM)
    parts = [
        several(
            [answer, FAILED],
            task=step.section.model_dump(exclude={"prompt", "sampling"}),
            sampling=WARM,
        )
        for answer in (
            completion("An elm. ", cumulative_logprob=-2.0, num_generated_tokens=4, tokens=TOLD),
            completion(
                "An oak.",
                cumulative_logprob=-10.0,
                num_generated_tokens=2,
                tokens=TOLD,
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


def test_chunks_without_log_probabilities_have_none_together() -> None:
    """One part without them leaves the whole without."""
    parts = [one(completion(cumulative_logprob=logprob)).cells for logprob in (-1.0, None)]
    cells = one_step().join.cells(parts)
    assert (cells["cumulative_logprob"], cells["mean_logprob"]) == (None, None)
