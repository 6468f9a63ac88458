"""Feeds the rows of several units into one engine, oldest unit first, so that it never waits.

There is no batch: as a row ends, the next one takes its place, also from another unit. At most
`window` requests are in the engine, the rest stay as Arrow tokens; a unit is handed back when its
last row is answered. Knows nothing of Ray, threads or vLLM.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.engine import Engine, RequestRefused
from pipeline.render import ERROR_COLUMN, TOKENS_COLUMN
from pipeline.schema import Answer, Completion, Reject, RejectClass, Request, reject_from_cell

# The engine's own queue must not run dry between two steps.
_WINDOW_PER_SEQUENCE = 2


@dataclass(slots=True, eq=False)
class UnitInFlight:
    """A rendered unit on its way through the engine; `answers` has one place per row."""

    tokens: pa.Array
    answers: list[Answer | None]
    unsent: Iterator[int]
    num_open: int
    submitted_at: float
    finished_at: float = field(default=0.0)

    @property
    def seconds(self) -> float:
        """From submission to the last answer."""
        return self.finished_at - self.submitted_at


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, and what it has done since it started."""

    num_running: int
    num_units: int
    input_tokens: int
    generated_tokens: int


class Scheduler:
    """One engine's feeder. Not thread-safe: the thread that steps is the one that submits."""

    def __init__(self, engine: Engine, max_tokens: int | None) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._window = _WINDOW_PER_SEQUENCE * engine.info.max_num_seqs
        self._sending: deque[UnitInFlight] = deque()
        self._sent: dict[int, tuple[UnitInFlight, int]] = {}
        self._num_units = 0
        self._next_key = 0
        self._input_tokens = 0
        self._generated_tokens = 0

    @property
    def load(self) -> Load:
        return Load(len(self._sent), self._num_units, self._input_tokens, self._generated_tokens)

    @property
    def has_work(self) -> bool:
        """Whether a step would advance anything."""
        return bool(self._num_units)

    def submit(self, rendered: pa.Table) -> UnitInFlight:
        """Take a rendered unit's table; its rows follow those of the units before it."""
        answers: list[Answer | None] = [
            reject_from_cell(cell) for cell in rendered.column(ERROR_COLUMN).to_pylist()
        ]
        unsent = [row for row, answer in enumerate(answers) if answer is None]
        unit = UnitInFlight(
            tokens=rendered.column(TOKENS_COLUMN).combine_chunks(),
            answers=answers,
            unsent=iter(unsent),
            num_open=len(unsent),
            submitted_at=time.monotonic(),
        )
        self._sending.append(unit)
        self._num_units += 1
        return unit

    def step(self) -> list[UnitInFlight]:
        """Fill the engine's window, advance it once, and return the units that are answered.

        An exception means that the engine is dead.
        """
        finished = self._fill()
        if self._sent:
            for completion in self._engine.step():
                unit, row = self._sent.pop(completion.key)
                self._input_tokens += completion.num_input_tokens
                self._generated_tokens += completion.num_generated_tokens
                if self._answer(unit, row, _checked(completion)):
                    finished.append(unit)
        for unit in finished:
            unit.finished_at = time.monotonic()
        self._num_units -= len(finished)
        return finished

    def _fill(self) -> list[UnitInFlight]:
        """Send rows until the window is full; the units that end by that, all rows refused."""
        finished = []
        while self._sending and len(self._sent) < self._window:
            unit = self._sending[0]
            row = next(unit.unsent, None)
            if row is None:
                self._sending.popleft()
                # A unit without a row to send has nobody to wait for.
                if unit.num_open == 0 and unit.finished_at == 0.0:
                    finished.append(unit)
                continue
            reject = self._send(unit, row)
            if reject is not None:
                unit.answers[row] = reject
                unit.num_open -= 1
        return finished

    def _send(self, unit: UnitInFlight, row: int) -> Reject | None:
        token_ids: Sequence[int] = unit.tokens[row].values.to_numpy().tolist()
        reject = self._too_long(len(token_ids))
        if reject is not None:
            return reject
        key = self._next_key
        self._next_key += 1
        try:
            self._engine.add(Request(key, token_ids))
        except RequestRefused as error:
            return Reject(RejectClass.ENGINE_ERROR, str(error), attempts=1)
        self._sent[key] = (unit, row)
        return None

    def _too_long(self, num_tokens: int) -> Reject | None:
        """VLLM would cut the answer to what fits, without a word."""
        limit = self._engine.info.max_model_len
        answer = 1 if self._max_tokens is None else self._max_tokens
        if num_tokens + answer <= limit:
            return None
        return Reject(
            RejectClass.PROMPT_TOO_LONG,
            f"the prompt's {num_tokens} tokens and {answer} for the answer exceed the context of "
            f"{limit}; raise model.engine.max_model_len or shorten the text",
        )

    def _answer(self, unit: UnitInFlight, row: int, answer: Answer) -> bool:
        """Whether this was the unit's last open row."""
        unit.answers[row] = answer
        unit.num_open -= 1
        return unit.num_open == 0 and unit not in self._sending


def _checked(completion: Completion) -> Answer:
    if completion.finish_reason in ("stop", "length"):
        return completion
    return Reject(
        RejectClass.ENGINE_ERROR,
        f"the engine ended the request with {completion.finish_reason or 'no reason'}",
        attempts=1,
    )
