"""What every task is: columns in, prompts out, and a dialogue with the engine for each row.

A task prepares whole units, so that texts are tokenized in batches on any CPU of the cluster. In
the engine's process it holds a dialogue for each row: a generator that yields rounds of requests
and returns the row's cells or a reject. Knows nothing of engines, units or Ray.
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
#: VLLM's two ways to run a model: one writes text, the other gives vectors and numbers.
Runner = Literal["generate", "pooling"]
#: Yields rounds of requests, is sent their answers in the same order, and returns its result.
Dialogue = Generator[Sequence[Request], Sequence[Answer], Result]


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A row made ready for its dialogue: prompts' token ids, and what the task notes of the row.

    Notes are values that JSON holds: they cross from the process that renders to the engine's, as
    `media`, the row's checked image or pieces of audio, does.
    """

    prompts: Sequence[Sequence[int]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[Media] = ()


@dataclass(frozen=True, slots=True)
class TaskContext:
    """What a task is built with: the model's tokenizer, its context in tokens, its config.json.

    `adapters` are the names of the job's LoRA adapters. `auxiliary` holds the contexts of the
    models besides the job's own, by their keys in the job. `storage` is where the input is, for
    tasks that read media.
    """

    tokenizer: Tokenizer
    max_model_len: int
    config: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: Mapping[str, "TaskContext"] = field(default_factory=dict)
    adapters: Sequence[str] = ()
    storage: Store | None = None


@dataclass(frozen=True, slots=True)
class AuxiliaryModel:
    """A model besides the job's own, and which of vLLM's two runners it needs."""

    source: ModelSource
    runner: Runner


class Task(Protocol):
    """One kind of work over rows, for one job and model."""

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        """One entry a row, in order."""

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        """The dialogue that ends with a cell for each of the step's `fields`."""


def gather(dialogues: Sequence[Dialogue[Result]]) -> Dialogue[list[Result]]:
    """Hold dialogues side by side: each round asks what all of them ask; their results in order."""
    if len(dialogues) == 1:
        # Nearly every row of nearly every job: a third of the scheduler's own cost.
        return [(yield from dialogues[0])]
    results: dict[int, Result] = {}
    asked: dict[int, Sequence[Request]] = {}

    def advance(position: int, answers: Sequence[Answer] | None) -> None:
        try:
            # `send(None)` begins a generator.
            asked[position] = dialogues[position].send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            results[position] = end.value

    for position in range(len(dialogues)):
        advance(position, None)
    while asked:
        round_asked, asked = asked, {}
        answers = iter(
            (yield [request for requests in round_asked.values() for request in requests])
        )
        for position, requests in round_asked.items():
            advance(position, [next(answers) for _ in requests])
    return [results[position] for position in range(len(dialogues))]


def routed_to(model: str | None, dialogue: Dialogue[Result]) -> Dialogue[Result]:
    """The dialogue, its requests to the job's own model sent to this one instead."""
    if model is None:
        return (yield from dialogue)
    answers: Sequence[Answer] | None = None
    while True:
        try:
            # `send(None)` begins a generator.
            requests = dialogue.send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            result: Result = end.value
            return result
        answers = yield [
            request if request.model is not None else replace(request, model=model)
            for request in requests
        ]
