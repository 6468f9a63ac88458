"""Units, rows and requests on their way through an engine."""

from dataclasses import dataclass, field

from tokenmill.request import Answer, Completion, Request
from tokenmill.row_columns import TOKEN_FIELDS
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult
from tokenmill.tasks.task import Dialogue
from tokenmill.tasks.unit_tables import RenderedRows

_TOKEN_COLUMNS = tuple(field.name for field in TOKEN_FIELDS)


@dataclass(slots=True, eq=False)
class UnitInFlight:
    """A rendered unit on its way through the engine; `answers` has one entry per row.

    `num_begun` counts the rows whose dialogue has begun, `num_open` the rows without an answer.
    `num_reused` counts the requests that reused the answer of an equal request.
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
        """Time from submission to the last answer."""
        return self.finished_at - self.submitted_at


@dataclass(slots=True, eq=False)
class RowInFlight:
    """A row and its dialogue; `answers` has one entry per request of the current round.

    `number` counts the rows in the order in which they begin.
    """

    number: int
    unit: UnitInFlight
    position: int
    dialogue: Dialogue[RowResult]
    answers: list[Answer | None] = field(default_factory=list)
    num_open: int = 0
    token_counts: dict[str, int] | None = None

    def count(self, completion: Completion) -> None:
        """Add a completion's tokens to the row's."""
        if self.token_counts is None:
            self.token_counts = dict.fromkeys(_TOKEN_COLUMNS, 0)
        for name in _TOKEN_COLUMNS:
            self.token_counts[name] += getattr(completion, name)

    def answered(self, result: RowResult) -> AnsweredRow:
        """The result with the row's token counts, which are None if no request was completed."""
        return AnsweredRow(result, self.token_counts)


@dataclass(slots=True, eq=False)
class RequestInFlight:
    """A request of a row; `index` is its position in the row's current round."""

    row: RowInFlight
    index: int
    request: Request

    @property
    def priority(self) -> tuple[int, int]:
        """Smaller is earlier: oldest row first, then in the order of the round."""
        return self.row.number, self.index


@dataclass(slots=True, eq=False)
class EqualRequests:
    """Requests that share one answer: `leader` is sent, `followers` wait for its answer.

    Without a `request_hash` the leader is on its own: its answer may not be shared.
    """

    leader: RequestInFlight
    request_hash: bytes | None
    followers: list[RequestInFlight] = field(default_factory=list)
