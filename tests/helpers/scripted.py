"""A task's dialogue held against written answers, without an engine."""

from collections.abc import Sequence
from typing import Any

from tokenmill.request import Answer, Completion, Request
from tokenmill.tasks.task import Dialogue


def written(text: str, finish_reason: str = "stop") -> Completion:
    """A completion of this text."""
    return Completion(0, text, finish_reason, 7, 4, -2.0)


def hold(dialogue: Dialogue[Any], answers: Sequence[Answer]) -> tuple[Any, list[Request]]:
    """The dialogue's result, and what it asked: one request a round, each with the next answer."""
    asked: list[Request] = []
    script = iter(answers)
    try:
        requests = next(dialogue)
        while True:
            (request,) = requests
            asked.append(request)
            requests = dialogue.send([next(script)])
    except StopIteration as end:
        assert next(script, None) is None, "an answer was left over"
        return end.value, asked
