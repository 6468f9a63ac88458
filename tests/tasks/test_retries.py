"""Retries: rows with an invalid answer are asked again, and a reject has the last answer."""

from typing import Any

import pytest
from helpers.scripted import hold, written
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.config.sampling import Retries
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Sampling
from tokenmill.tasks.retries import ask_until_valid
from tokenmill.tasks.task import PreparedRow, TaskContext

PROMPT = [1, 2, 3]
TOO_LONG = Reject(RejectClass.PROMPT_TOO_LONG, "the prompt is too long")
FAILED = Reject(RejectClass.ENGINE_ERROR, "the engine ended the request with error", attempts=1)


def samplings(times: int) -> list[Sampling]:
    return [Sampling({"max_tokens": 8 * (time + 1)}) for time in range(times)]


def good_or_reject(answer: Completion) -> str | Reject:
    """The only valid answer is `good`."""
    if answer.text == "good":
        return answer.text
    return Reject(RejectClass.INVALID_ANSWER, f"{answer.text[:9]} is not good")


@given(bad=st.integers(0, 4), times=st.integers(1, 5))
def test_a_row_is_asked_until_an_answer_is_valid(bad: int, times: int) -> None:
    """Each attempt has its own sampling; a valid answer or the last attempt ends it."""
    attempts = samplings(times)
    answers = [*(written(f"bad {time}") for time in range(bad)), written("good")][:times]
    result, asked = hold(ask_until_valid(PROMPT, attempts, good_or_reject), answers)
    assert [request.params for request in asked] == attempts[: bad + 1]
    assert all(list(request.prompt_token_ids) == PROMPT for request in asked)
    if bad < times:
        assert result == "good"
    else:
        last = f"bad {times - 1}"
        message = f"{last} is not good; the last answer: {last}"
        assert result == Reject(RejectClass.INVALID_ANSWER, message, attempts=times)


def test_a_retry_that_does_not_fit_keeps_the_earlier_reject() -> None:
    """The retry never reached the model, so the row keeps the reject of its answer."""
    asked = ask_until_valid(PROMPT, samplings(3), good_or_reject)
    result, requests = hold(asked, [written("bad"), TOO_LONG])
    assert result.reject_class == RejectClass.INVALID_ANSWER
    assert "the last answer: bad" in result.message
    assert result.attempts == 1
    assert len(requests) == 2


def test_a_retry_that_fails_in_the_engine_counts_as_an_attempt() -> None:
    """The engine tried it, whatever the outcome."""
    result, _ = hold(
        ask_until_valid(PROMPT, samplings(3), good_or_reject), [written("bad"), FAILED]
    )
    assert (result.reject_class, result.attempts) == (RejectClass.INVALID_ANSWER, 2)


@pytest.mark.parametrize("reject", [TOO_LONG, FAILED])
def test_a_request_that_the_engine_rejects_is_not_retried(reject: Reject) -> None:
    """Without an answer, other sampling parameters do not help."""
    result, asked = hold(ask_until_valid(PROMPT, samplings(3), good_or_reject), [reject])
    assert result == reject
    assert len(asked) == 1


def test_a_long_last_answer_is_shortened() -> None:
    """The error column does not hold whole books."""
    answer = written("x" * 100_000)
    result, _ = hold(ask_until_valid(PROMPT, samplings(1), good_or_reject), [answer])
    assert result.message.endswith("x…")
    assert len(result.message) < 1_100


@pytest.mark.parametrize(
    ("first", "retries", "seeds"),
    [
        ({"seed": 5}, {"times": 3}, [6, 7, 8]),
        ({"seed": 5}, {"times": 2, "sampling": {"seed": 1}}, [1, 2]),
        ({"seed": 5}, {"times": 2, "sampling": {"seed": 5}}, [6, 7]),
        ({}, {"times": 2, "sampling": {"seed": 1}}, [1, 2]),
        ({}, {"times": 2}, [None, None]),
    ],
)
def test_no_two_attempts_have_the_same_seed(
    first: dict[str, Any], retries: dict[str, Any], seeds: list[int | None]
) -> None:
    """A seed increases with each retry; without a seed the engine draws one."""
    changed = Retries(**retries).samplings({"max_tokens": 8, **first})
    assert [values.get("seed") for values in changed] == seeds
    assert all(values["max_tokens"] == 8 for values in changed)


def job(task: dict[str, Any], sampling: dict[str, Any]) -> Job:
    return Job.model_validate(
        {
            "name": "retries",
            "input": {"path": "corpus"},
            "model": {"source": "fake"},
            "prompt": {"user": "{{ text }}"},
            "sampling": sampling,
            "task": {"kind": "generate", **task},
            "output": {"path": "out"},
        }
    )


@pytest.mark.parametrize(
    ("retries", "sampling", "reason"),
    [
        ({}, {"temperature": 0}, "retries: at temperature 0 the same request"),
        ({"sampling": {"seed": 3}}, {"temperature": 0}, "at temperature 0 the same request"),
        ({"times": 2, "sampling": {"max_tokens": 9}}, {"temperature": 0}, "retries.times"),
        ({"sampling": {"max_tokens": 0}}, {}, "max_tokens must be a whole number, 1 or more"),
        ({"sampling": {"seed": "x"}}, {}, "seed must be a whole number"),
        ({"sampling": {"n": 2}}, {}, "n must be 1"),
        ({"times": 0}, {}, "retries.times"),
        ({"time": 1}, {}, "retries.time"),
    ],
)
def test_retries_that_cannot_help_are_errors(
    retries: dict[str, Any], sampling: dict[str, Any], reason: str
) -> None:
    """A retry must be valid, and able to return another answer."""
    with pytest.raises(ValidationError, match=reason.replace(".", r"\.")):
        job({"complete": True, "retries": retries}, {"max_tokens": 8, **sampling})


def test_retries_need_answers_that_can_be_invalid() -> None:
    """Plain text is always valid, unless it must be complete."""
    with pytest.raises(ValidationError, match="set complete: true"):
        job({"retries": {}}, {"max_tokens": 8})


def test_every_attempts_sampling_is_checked_before_the_run() -> None:
    """The engine checks the parameters of retries together with those of first attempts."""
    task = {"complete": True, "retries": {"times": 2, "sampling": {"max_tokens": 9, "seed": 1}}}
    params = job(task, {"max_tokens": 8, "temperature": 0.5}).params
    assert [dict(each.values) for each in params] == [
        {"max_tokens": 8, "temperature": 0.5},
        {"max_tokens": 9, "temperature": 0.5, "seed": 1},
        {"max_tokens": 9, "temperature": 0.5, "seed": 2},
    ]


def generator(**keys: Any) -> Any:
    return job(keys, {"max_tokens": 8}).steps[0].build(TaskContext(FakeTokenizer(), 100))


def test_with_complete_a_cut_answer_is_retried() -> None:
    """An answer that is cut off at max_tokens is asked again, and then rejected."""
    cut, whole = written("an ans", "length"), written("an answer")
    task = generator(complete=True, retries={"sampling": {"max_tokens": 99}})
    cells, asked = hold(task.answer(PreparedRow([PROMPT])), [cut, whole])
    assert cells["generated_text"] == "an answer"
    assert [request.params.max_tokens for request in asked] == [8, 99]
    reject, _ = hold(task.answer(PreparedRow([PROMPT])), [cut, cut])
    assert (reject.reject_class, reject.attempts) == (RejectClass.TRUNCATED_ANSWER, 2)
    assert reject.message.endswith("the last answer: an ans")


def test_without_complete_a_cut_answer_is_valid() -> None:
    """By default, the row has the text and its finish reason."""
    cells, _ = hold(generator().answer(PreparedRow([PROMPT])), [written("an ans", "length")])
    assert (cells["generated_text"], cells["finish_reason"]) == ("an ans", "length")
