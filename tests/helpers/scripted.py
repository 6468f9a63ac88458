"""Run a dialogue without an engine, with a list of answers."""

from collections.abc import Sequence
from typing import Any

from tokenmill.request import Answer, Completion, Request
from tokenmill.tasks.task import Dialogue


def written(text: str, finish_reason: str = "stop") -> Completion:
    """A completion with this text."""
    return Completion(0, text, finish_reason, 7, 4, -2.0)


def hold(dialogue: Dialogue[Any], answers: Sequence[Answer]) -> tuple[Any, list[Request]]:
    """The dialogue's result, and its requests: one a round, each with the next answer."""
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
