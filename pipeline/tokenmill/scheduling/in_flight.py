"""Units, rows and requests that are on their way through an engine."""

from dataclasses import dataclass, field

from tokenmill.request import Answer, Completion, Request
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult
from tokenmill.tasks.task import Dialogue
from tokenmill.tasks.unit_tables import RenderedRows


@dataclass(slots=True, eq=False)
class UnitInFlight:
    """A rendered unit on its way through the engine; `answers` has one place per row.

    `num_reused` counts its requests that were not sent, as their answers were another's.
    """

    rows: RenderedRows
    answers: list[AnsweredRow | None]
    num_open: int
    submitted_at: float
    num_begun: int = 0
    finished_at: float = 0.0
    num_reused: int = 0

    @property
    def seconds(self) -> float:
        """From submission to the last answer."""
        return self.finished_at - self.submitted_at


@dataclass(slots=True, eq=False)
class RowInFlight:
    """A row in its dialogue; `answers` has one place for each request of the present round.

    `number` counts the rows as they begin.
    """

    number: int
    unit: UnitInFlight
    position: int
    dialogue: Dialogue[RowResult]
    answers: list[Answer | None] = field(default_factory=list)
    num_open: int = 0
    num_completions: int = 0
    num_input_tokens: int = 0
    num_generated_tokens: int = 0

    def count(self, completion: Completion) -> None:
        self.num_completions += 1
        self.num_input_tokens += completion.num_input_tokens
        self.num_generated_tokens += completion.num_generated_tokens

    def answered(self, result: RowResult) -> AnsweredRow:
        if not self.num_completions:
            return AnsweredRow(result, None, None)
        return AnsweredRow(result, self.num_input_tokens, self.num_generated_tokens)


@dataclass(slots=True, eq=False)
class RequestInFlight:
    """A request of a row, and its place in the row's round."""

    row: RowInFlight
    place: int
    request: Request


@dataclass(slots=True, eq=False)
class Leader:
    """The request that is sent of all that ask the same, and those that wait for its answer."""

    asked: RequestInFlight
    mark: bytes | None
    followers: list[RequestInFlight] = field(default_factory=list)
