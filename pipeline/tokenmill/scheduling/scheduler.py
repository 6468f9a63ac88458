"""Feeds the rows of several units into one engine, oldest unit first, so that it never waits.

There is no batch: as a request ends, the next one takes its place, also from another row or unit.
Each row is a dialogue of its tasks. At most `window` requests are in the engine; what rows under
way ask goes before rows that have not begun, which stay as Arrow tokens. A request whose answer is
known, or on its way (`reuse`), is not sent again. Where other replicas may ask the same, the ledger
is asked before (`claims`), and rows begin so much earlier that the engine does not wait for it. A
unit is handed back when its last row has its result. Knows nothing of Ray, threads or vLLM.
"""

import heapq
import math
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import pyarrow as pa

from tokenmill.engine.base import Engine, RequestRefused
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion
from tokenmill.scheduling.dedup.answer_cache import AnswerCache
from tokenmill.scheduling.dedup.client import DedupClient, SendClaims, unpacked
from tokenmill.scheduling.dedup.registry import RegistryUpdate
from tokenmill.scheduling.in_flight import Leader, RequestInFlight, RowInFlight, UnitInFlight
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.tasks.length.reject import ContextLimits
from tokenmill.tasks.row_tasks import RowResult, RowTasks
from tokenmill.tasks.unit_tables import RenderedRows

# The engine's own queue must not run dry between two steps.
_WINDOW_PER_SEQUENCE = 2
# Requests that wait for another's answer take no place in the engine, but memory.
_MOST_FOLLOWERS_PER_SEQUENCE = 32
# Behind those in the engine, where a ledger is asked: one part ready to be sent, one being asked.
_CHUNKS_AHEAD = 2


class Scheduler:
    """One engine's feeder. Not thread-safe: the thread that steps is the one that submits."""

    def __init__(
        self,
        engine: Engine,
        tasks: RowTasks,
        timeout_s: float = math.inf,
        *,
        deduplicate: bool = False,
        tell: SendClaims | None = None,
    ) -> None:
        self._engine = engine
        self._reuse = AnswerCache()
        self._deduplicates = deduplicate
        self._contexts = ContextLimits(engine.info.max_model_len, engine.info.beside)
        self._tasks = tasks
        self._timeout_s = timeout_s
        max_num_seqs = engine.info.max_num_seqs
        self._window = _WINDOW_PER_SEQUENCE * max_num_seqs
        self._most_followers = _MOST_FOLLOWERS_PER_SEQUENCE * max_num_seqs
        self._claims = None if tell is None else DedupClient(tell, max_num_seqs)
        num_ahead = 0 if tell is None else _CHUNKS_AHEAD * max_num_seqs
        self._most_taken_up = self._window + num_ahead
        # Units with rows that have not begun.
        self._sending: deque[UnitInFlight] = deque()
        # What rows under way ask, as a heap: by the row's number, then by the place in its round.
        self._pending: list[tuple[int, int, RequestInFlight]] = []
        # What may be sent, in the same order.
        self._ready: list[tuple[int, int, Leader]] = []
        self._sent: dict[int, Leader] = {}
        # Time runs for as many as are in the engine's batch, the oldest; what waits behind one that
        # hangs must not end with it. With the same time for all, the first runs out of it first.
        self._deadlines: OrderedDict[int, float] = OrderedDict()
        self._behind: deque[int] = deque()
        # Of all that may repeat and has no answer yet, in the engine or on its way to it.
        self._leaders: dict[bytes, Leader] = {}
        self._num_followers = 0
        self._finished: list[UnitInFlight] = []
        self._num_units = 0
        self._num_rows = 0
        self._next_key = 0
        self._input_tokens = 0
        self._generated_tokens = 0
        self._answered_rows = 0
        self._engine_seconds = 0.0

    @property
    def load(self) -> ReplicaLoad:
        return ReplicaLoad(
            num_running=len(self._sent),
            num_units=self._num_units,
            input_tokens=self._input_tokens,
            generated_tokens=self._generated_tokens,
            answered_rows=self._answered_rows,
            num_held=len(self._pending) + len(self._ready),
            usage=self._engine.usage,
            engine_seconds=self._engine_seconds,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would advance anything; what is left waits for units, or for news."""
        return bool(self._sent or self._ready or self._finished or self._may_take_up)

    def submit(self, rendered: pa.Table) -> UnitInFlight:
        """Take a rendered unit's table; its rows follow those of the units before it."""
        rows = RenderedRows(rendered)
        unit = UnitInFlight(
            rows=rows,
            answers=[None] * len(rows),
            num_open=len(rows),
            submitted_at=time.monotonic(),
        )
        self._num_units += 1
        if len(rows):
            self._sending.append(unit)
        else:
            self._finish(unit)
        return unit

    def step(self) -> list[UnitInFlight]:
        """Fill the engine's window, advance it once, and return the units that are answered.

        An exception means that the engine is dead.
        """
        self._fill()
        self._expire()
        if self._sent:
            began_at = time.monotonic()
            completions = self._engine.step()
            self._engine_seconds += time.monotonic() - began_at
            for completion in completions:
                self._input_tokens += completion.num_input_tokens
                self._generated_tokens += completion.num_generated_tokens
                leader = self._sent.pop(completion.key)
                self._deadlines.pop(completion.key, None)
                leader.asked.row.count(completion)
                self._answered(leader, _checked(completion))
        self._flush()
        finished, self._finished = self._finished, []
        self._num_units -= len(finished)
        return finished

    def hear(self, news: RegistryUpdate | None) -> None:
        """Take what the ledger tells; None: it is away, and each replica alone."""
        claims = self._claims
        if claims is None:
            return
        if news is None:
            for mark in claims.leave():
                self._make_ready(self._leaders[mark])
            return
        claims.join()
        for mark in news.granted:
            if claims.settle(mark):
                self._make_ready(self._leaders[mark])
            elif mark not in self._leaders:
                # Asked before the ledger was away: nobody waits for it here, but others may.
                claims.answer(mark, self._reuse.find(mark))
        for mark, answer in news.known:
            if claims.settle(mark):
                self._known(self._leaders.pop(mark), mark, unpacked(answer))
        for mark in news.elsewhere:
            claims.wait(mark)
        self._flush()

    def _flush(self) -> None:
        if self._claims is not None:
            self._claims.flush(len(self._ready), is_idle=not self._sent)

    def _fill(self) -> None:
        """Send requests until the window is full."""
        while True:
            while self._may_take_up:
                self._take_up()
            if not self._ready or len(self._sent) >= self._window:
                return
            *_, leader = heapq.heappop(self._ready)
            self._send(leader)

    @property
    def _may_take_up(self) -> bool:
        """Whether there are requests to look at, and room for them.

        Those that others compute take no place of those that can be sent, or two replicas might
        wait for each other; but memory.
        """
        if not self._pending and not self._sending:
            return False
        num_taken_up, num_waiting = len(self._sent) + len(self._ready), self._num_followers
        if self._claims is not None:
            num_taken_up += self._claims.num_undecided
            num_waiting += self._claims.num_elsewhere
        return num_taken_up < self._most_taken_up and num_waiting < self._most_followers

    def _take_up(self) -> None:
        """Look at the next request of a row under way; if there is none, begin the next row."""
        if not self._pending:
            self._begin_row(self._sending[0])
            return
        *_, asked = heapq.heappop(self._pending)
        reject = self._contexts.too_long(asked.request)
        if reject is not None:
            self._place(asked, reject)
            return
        mark = self._reuse.mark(asked.request) if self._deduplicates else None
        if mark is None:
            self._make_ready(Leader(asked, None))
        elif not self._reused(mark, asked):
            leader = self._leaders[mark] = Leader(asked, mark)
            if self._claims is None or self._claims.ask(mark):
                self._make_ready(leader)

    def _make_ready(self, leader: Leader) -> None:
        heapq.heappush(self._ready, (leader.asked.row.number, leader.asked.place, leader))

    def _begin_row(self, unit: UnitInFlight) -> None:
        """Begin the dialogue of the unit's next row."""
        position = unit.num_begun
        unit.num_begun += 1
        if unit.num_begun == len(unit.answers):
            self._sending.popleft()
        self._num_rows += 1
        entries = unit.rows.entries(position)
        # A row that every task rejects may hold values that Python cannot.
        is_rejected = all(isinstance(entry, Reject) for entry in entries)
        late = {} if is_rejected else unit.rows.late(position)
        dialogue = self._tasks.answer(entries, late)
        self._advance(RowInFlight(self._num_rows, unit, position, dialogue), None)

    def _advance(self, row: RowInFlight, answers: Sequence[Answer] | None) -> None:
        """Hold the row's next round until there is room for it, or take the row's result."""
        try:
            # `send(None)` begins a generator.
            requests = row.dialogue.send(answers)  # type: ignore[arg-type]
            while not requests:
                requests = row.dialogue.send([])
        except StopIteration as end:
            self._end(row, end.value)
            return
        row.answers = [None] * len(requests)
        row.num_open = len(requests)
        for place, request in enumerate(requests):
            self._hold(RequestInFlight(row, place, request))

    def _hold(self, asked: RequestInFlight) -> None:
        """Keep it until there is room for it."""
        heapq.heappush(self._pending, (asked.row.number, asked.place, asked))

    def _answered(self, leader: Leader, answer: Answer) -> None:
        """Hand an answer to all that wait for it; without one, the next of them is sent."""
        self._place(leader.asked, answer)
        if leader.mark is None:
            return
        if isinstance(answer, Completion):
            del self._leaders[leader.mark]
            self._reuse.keep(leader.mark, answer)
            self._tell_answer(leader.mark, answer)
            self._hand_on(leader, answer)
        elif leader.followers:
            leader.asked = leader.followers.pop(0)
            self._num_followers -= 1
            self._make_ready(leader)
        else:
            del self._leaders[leader.mark]
            self._tell_answer(leader.mark, None)

    def _tell_answer(self, mark: bytes, completion: Completion | None) -> None:
        if self._claims is not None:
            self._claims.answer(mark, completion)

    def _known(self, leader: Leader, mark: bytes, completion: Completion) -> None:
        """Take an answer of another replica's."""
        self._reuse.keep(mark, completion)
        self._place_reused(leader.asked, completion)
        self._hand_on(leader, completion)

    def _hand_on(self, leader: Leader, completion: Completion) -> None:
        self._num_followers -= len(leader.followers)
        for follower in leader.followers:
            self._place_reused(follower, completion)

    def _place_reused(self, asked: RequestInFlight, completion: Completion) -> None:
        asked.row.unit.num_reused += 1
        asked.row.count(completion)
        self._place(asked, completion)

    def _place(self, asked: RequestInFlight, answer: Answer) -> None:
        """Put an answer into its round; the last one goes back to the row's dialogue with all."""
        row = asked.row
        row.answers[asked.place] = answer
        row.num_open -= 1
        if not row.num_open:
            self._advance(row, [answer for answer in row.answers if answer is not None])

    def _end(self, row: RowInFlight, result: RowResult) -> None:
        """Put the result into the row's place in its unit."""
        row.unit.answers[row.position] = row.answered(result)
        row.unit.num_open -= 1
        self._answered_rows += 1
        if not row.unit.num_open:
            self._finish(row.unit)

    def _finish(self, unit: UnitInFlight) -> None:
        unit.finished_at = time.monotonic()
        self._finished.append(unit)

    def _send(self, leader: Leader) -> None:
        """Put a request into the engine."""
        key = self._next_key
        self._next_key += 1
        try:
            self._engine.add(key, leader.asked.request)
        except RequestRefused as error:
            self._answered(leader, Reject(error.reject_class, str(error), attempts=1))
            return
        self._sent[key] = leader
        self._behind.append(key)

    def _reused(self, mark: bytes, asked: RequestInFlight) -> bool:
        """Whether another's answer does: one that is there, or that will be."""
        completion = self._reuse.find(mark)
        if completion is not None:
            self._place_reused(asked, completion)
            return True
        leader = self._leaders.get(mark)
        if leader is None:
            return False
        leader.followers.append(asked)
        self._num_followers += 1
        return True

    def _expire(self) -> None:
        """Abort the requests whose time is over; those that take their places have theirs."""
        now = time.monotonic()
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            key, _ = self._deadlines.popitem(last=False)
            leader = self._sent.pop(key)
            self._engine.abort(key)
            message = f"no answer within model.request_timeout_s ({self._timeout_s:g} s)"
            self._answered(leader, Reject(RejectClass.TIMEOUT, message, attempts=1))
        while self._behind and len(self._deadlines) < self._engine.info.max_num_seqs:
            key = self._behind.popleft()
            if key in self._sent:
                self._deadlines[key] = now + self._timeout_s


def _checked(completion: Completion) -> Answer:
    if completion.finish_reason in ("stop", "length"):
        return completion
    return Reject(
        RejectClass.ENGINE_ERROR,
        f"the engine ended the request with {completion.finish_reason or 'no reason'}",
        attempts=1,
    )
