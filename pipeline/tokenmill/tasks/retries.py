"""Retries: a request with an invalid answer is sent again with other sampling parameters.

This is a part of a dialogue, for any task that generates text and can check it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason, Media, Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Dialogue, Result

_MAX_ANSWER_CHARACTERS = 1000


def ask_until_valid(
    prompt: Sequence[int],
    samplings: Sequence[Sampling],
    check: Callable[[Completion], Result | Reject],
    media: Media | None = None,
) -> Dialogue[Result | Reject]:
    """Send the prompt with one sampling after the other, until `check` accepts an answer.

    If it accepts none, returns the reject of the last answer, with that answer in its message and
    the number of attempts. A request that the engine rejects is not retried. If the engine rejects
    a retry, for example because a longer answer does not fit, the previous reject is returned.
    """
    last: Reject | None = None
    for attempt, sampling in enumerate(samplings, start=1):
        (answer,) = yield [Request(prompt, sampling, media=media)]
        if isinstance(answer, Reject):
            if last is None:
                return answer
            return replace(last, attempts=last.attempts + answer.attempts)
        result = check(answer)
        if not isinstance(result, Reject):
            return result
        message = f"{result.message}; the last answer: {shorten_answer(answer.text)}"
        last = Reject(result.reject_class, message, attempt)
    if last is None:
        raise ValueError("there is no sampling to ask with")
    return last


def check_whole_answers(step: TaskStep[Any], *, complete: bool) -> None:
    """Raise `ValueError` for retries if every answer is valid unless `complete` is set."""
    if step.section.retries is not None and not complete:
        raise ValueError(
            f"{step.key_prefix}retries: every answer is valid; set complete: true to retry answers "
            "that are cut off"
        )


def cut_off(answer: Completion) -> Reject | None:
    """The reject of an answer that was cut off; None for a complete answer."""
    if not answer.is_cut:
        return None
    message = f"the answer was cut off after {answer.num_generated_tokens} tokens"
    if answer.finish_reason == FinishReason.LENGTH:
        message += "; increase sampling.max_tokens"
    else:
        message += ", where it began to loop"
    return Reject(RejectClass.TRUNCATED_ANSWER, message)


def shorten_answer(text: str) -> str:
    """The beginning of an answer, long enough to see what is wrong with it."""
    limit = _MAX_ANSWER_CHARACTERS
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
