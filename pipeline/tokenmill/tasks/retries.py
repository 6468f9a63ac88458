"""Asking again: a request whose answer does not do is sent once more, changed as the job says.

A part of a dialogue, for any task that writes text and can tell whether an answer does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason, Media, Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Dialogue, Result

_MOST_ANSWER_CHARACTERS = 1000


def ask_until_valid(
    prompt: Sequence[int],
    samplings: Sequence[Sampling],
    check: Callable[[Completion], Result | Reject],
    media: Media | None = None,
) -> Dialogue[Result | Reject]:
    """Send the prompt with one sampling after the other until `check` makes a result of an answer.

    Otherwise the last answer's reject, with that answer in its message and the attempts counted.
    What the engine itself refuses or fails is not sent again: at a retry, because a longer answer
    does not fit say, the reject of the answer before it stands.
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
        message = f"{result.message}; the last answer: {shortened(answer.text)}"
        last = Reject(result.reject_class, message, attempt)
    if last is None:
        raise ValueError("a task asks at least once")
    return last


def check_whole_answers(step: TaskStep[Any], *, complete: bool) -> None:
    """Raise `ValueError` for retries if every answer is valid unless `complete` is set."""
    if step.section.retries is not None and not complete:
        raise ValueError(
            f"{step.key_prefix}retries: every answer does; "
            "write complete: true to ask again for those that are cut off"
        )


def cut_off(answer: Completion) -> Reject | None:
    """The reject of an answer that max_tokens has cut off; None for one that came to its end."""
    if answer.finish_reason != FinishReason.LENGTH:
        return None
    return Reject(
        RejectClass.TRUNCATED_ANSWER,
        f"the answer was cut off after {answer.num_generated_tokens} tokens; "
        "raise sampling.max_tokens",
    )


def shortened(text: str) -> str:
    """The beginning of an answer, long enough to see what is wrong with it."""
    limit = _MOST_ANSWER_CHARACTERS
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
