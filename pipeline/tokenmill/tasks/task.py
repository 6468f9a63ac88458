"""The interface of a task: prompts for rows, and a dialogue with the engine for each row.

A task prepares the rows of a unit together, so that texts are tokenized in batches, on any CPU of
the cluster. In the engine's process, each row has a dialogue: a generator that yields rounds of
requests, receives their answers, and returns the row's cells or a reject. A task knows nothing of
engines, units or Ray.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from tokenmill.config.model_source import ModelSource
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.reject import Reject
from tokenmill.request import Answer, Media, Request
from tokenmill.storage.base import Store

Row = Mapping[str, Any]
Cells = Mapping[str, Any]
Result = TypeVar("Result")
#: The two runners of vLLM: one generates text, the other returns vectors and numbers.
Runner = Literal["generate", "pooling"]
#: Yields rounds of requests, receives their answers in the same order, and returns a result.
Dialogue = Generator[Sequence[Request], Sequence[Answer], Result]


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A row that is ready for its dialogue.

    `prompts` are token ids. `notes` are other facts about the row that the dialogue needs; they
    must be JSON values, since they cross from the rendering process to the engine's. `media` are
    the row's image or pieces of audio, decoded and checked.
    """

    prompts: Sequence[Sequence[int]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[Media] = ()


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a task is built with: its model's tokenizer, context length and config.json.

    `adapters` are the names of the job's LoRA adapters. `auxiliary` holds the contexts of the
    auxiliary models by their job keys. `storage` contains the input, for tasks that read media.
    """

    tokenizer: Tokenizer
    max_model_len: int
    config: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: Mapping[str, "TaskContext"] = field(default_factory=dict)
    adapters: Sequence[str] = ()
    storage: Store | None = None


@dataclass(frozen=True, slots=True)
class AuxiliaryModel:
    """A model in addition to the job's model, and the runner of vLLM that it needs."""

    source: ModelSource
    runner: Runner


class Task(Protocol):
    """What is done to rows, for one job and model."""

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        """Prepare rows. Returns one entry for each row, in order."""

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        """The dialogue of a row. It returns a cell for each of the step's `fields`."""


def gather(dialogues: Sequence[Dialogue[Result]]) -> Dialogue[list[Result]]:
    """Run dialogues at the same time: each round has the requests of all of them.

    Returns their results in order.
    """
    if len(dialogues) == 1:
        # The usual case. The general code below is a third of the scheduler's cost.
        return [(yield from dialogues[0])]
    results: dict[int, Result] = {}
    rounds: dict[int, Sequence[Request]] = {}

    def advance(position: int, answers: Sequence[Answer] | None) -> None:
        try:
            # `send(None)` starts a generator.
            rounds[position] = dialogues[position].send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            results[position] = end.value

    for position in range(len(dialogues)):
        advance(position, None)
    while rounds:
        current, rounds = rounds, {}
        answers = iter((yield [request for requests in current.values() for request in requests]))
        for position, requests in current.items():
            advance(position, [next(answers) for _ in requests])
    return [results[position] for position in range(len(dialogues))]


def routed_to(model: str | None, dialogue: Dialogue[Result]) -> Dialogue[Result]:
    """The dialogue with `model` in place of the job's model; None changes nothing."""
    if model is None:
        return (yield from dialogue)
    answers: Sequence[Answer] | None = None
    while True:
        try:
            # `send(None)` starts a generator.
            requests = dialogue.send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            result: Result = end.value
            return result
        answers = yield [
            request if request.model is not None else replace(request, model=model)
            for request in requests
        ]
