"""Run a dialogue without an engine, by the texts of its prompts."""

from collections.abc import Callable
from typing import TypeVar

from tokenmill.request import Answer, Completion
from tokenmill.tasks.task import Dialogue

from helpers.factories import text_of

Result = TypeVar("Result")


def hold(
    dialogue: Dialogue[Result], answer: Callable[[str], Answer]
) -> tuple[Result, list[list[str]]]:
    """The dialogue's result, and the texts of its rounds; `answer` maps a prompt's text."""
    rounds: list[list[str]] = []
    try:
        requests = next(dialogue)
        while True:
            rounds.append([text_of(request.prompt_token_ids) for request in requests])
            requests = dialogue.send([answer(text) for text in rounds[-1]])
    except StopIteration as end:
        return end.value, rounds


def echo(text: str) -> Completion:
    """An answer that contains its prompt."""
    return Completion(0, f"<{text}>", "stop", len(text), 2, -1.0)
