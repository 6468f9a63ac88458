"""Feeds the rows of several units into one engine, oldest unit first, so that it never waits.

There are no batches: when a request ends, the next one takes its place, also from another row or
unit. Each row is a dialogue with its tasks. At most `window` requests are in the engine. Requests
of rows that have begun go before rows that have not, which stay in their Arrow table. A request
reuses the answer of an equal request that was answered or is in flight (`dedup`). If other replicas
may send equal requests too, the registry is asked first, and rows begin early enough that the
engine does not wait for it. A unit is handed back when its last row has its result. Knows nothing
about Ray, threads or vLLM.
"""

import heapq
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import pyarrow as pa

from tokenmill.engine.base import Engine, RequestRefused
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, FinishReason
from tokenmill.scheduling.dedup.answer_cache import AnswerCache
from tokenmill.scheduling.dedup.client import DedupClient, SendClaims, unpack
from tokenmill.scheduling.dedup.registry import RegistryUpdate
from tokenmill.scheduling.in_flight import EqualRequests, RequestInFlight, RowInFlight, UnitInFlight
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.tasks.length.reject import ContextLimits
from tokenmill.tasks.row_tasks import RowResult, RowTasks
from tokenmill.tasks.unit_tables import RenderedRows

# The engine's own queue must not run empty between two steps.
_WINDOW_PER_SEQUENCE = 2
# Requests that wait for another's answer take no room in the engine, but they take memory.
_MAX_FOLLOWERS_PER_SEQUENCE = 32
# On top of the window if there is a registry: one chunk ready to be sent, one being decided.
_CHUNKS_AHEAD = 2


class Scheduler:
    """Feeds one engine. Not thread-safe: `submit` and `step` are called by the same thread.

    With `deduplicate`, equal requests are sent once; with `send_claims` also across replicas: it
    sends claims and answers to the registry, whose updates come back by `receive`.
    """

    def __init__(  # noqa: PLR0913 - an engine, its work, and two seams
        self,
        engine: Engine,
        tasks: RowTasks,
        timeout_s: float = math.inf,
        *,
        deduplicate: bool = False,
        send_claims: SendClaims | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._cache = AnswerCache()
        self._deduplicates = deduplicate
        self._contexts = ContextLimits(engine.info.max_model_len, engine.info.auxiliary)
        self._tasks = tasks
        self._timeout_s = timeout_s
        max_num_seqs = engine.info.max_num_seqs
        self._window = _WINDOW_PER_SEQUENCE * max_num_seqs
        self._max_followers = _MAX_FOLLOWERS_PER_SEQUENCE * max_num_seqs
        self._client: DedupClient | None = None
        self._max_taken_up = self._window
        if send_claims is not None:
            self._client = DedupClient(send_claims, max_num_seqs, clock)
            self._max_taken_up += _CHUNKS_AHEAD * max_num_seqs
        # Units with rows that have not begun.
        self._units: deque[UnitInFlight] = deque()
        # Requests of begun rows that nothing is decided about, as a heap by priority.
        self._pending: list[tuple[tuple[int, int], RequestInFlight]] = []
        # Requests that may be sent, as a heap by priority.
        self._ready: list[tuple[tuple[int, int], EqualRequests]] = []
        # Requests in the engine, by the key under which they were added.
        self._sent: dict[int, EqualRequests] = {}
        # Only the oldest requests, as many as fit into the engine's batch, have a deadline: those
        # queued behind a request that hangs must not expire with it. All have the same time limit,
        # so the first in the dict expires first.
        self._deadlines: OrderedDict[int, float] = OrderedDict()
        self._queued: deque[int] = deque()
        # Shared requests without an answer, sent or not, by hash.
        self._unanswered: dict[bytes, EqualRequests] = {}
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
        """Whether a step would advance anything. If not, only a unit or an update can."""
        return bool(self._sent or self._ready or self._finished or self._may_take_up)

    def submit(self, rendered: pa.Table) -> UnitInFlight:
        """Take a rendered unit; its rows begin after those of the units before it."""
        rows = RenderedRows(rendered)
        unit = UnitInFlight(
            rows=rows,
            answers=[None] * len(rows),
            num_open=len(rows),
            submitted_at=self._clock(),
        )
        self._num_units += 1
        if len(rows):
            self._units.append(unit)
        else:
            self._finish(unit)
        return unit

    def step(self) -> list[UnitInFlight]:
        """Fill the window, advance the engine once, and return the units that are answered.

        Any exception means that the engine has crashed.
        """
        self._fill()
        self._expire()
        if self._sent:
            began_at = self._clock()
            completions = self._engine.step()
            self._engine_seconds += self._clock() - began_at
            for completion in completions:
                self._input_tokens += completion.num_input_tokens
                self._generated_tokens += completion.num_generated_tokens
                equal = self._sent.pop(completion.key)
                self._deadlines.pop(completion.key, None)
                equal.leader.row.count(completion)
                self._answered(equal, _checked(completion))
        self._flush()
        finished, self._finished = self._finished, []
        self._num_units -= len(finished)
        return finished

    def receive(self, update: RegistryUpdate | None) -> None:
        """Take an update from the registry; None means that it cannot be reached."""
        client = self._client
        if client is None:
            return
        if update is None:
            for request_hash in client.disconnect():
                self._make_ready(self._unanswered[request_hash])
            return
        client.connect()
        for request_hash in update.granted:
            if client.settle(request_hash):
                self._make_ready(self._unanswered[request_hash])
            elif request_hash not in self._unanswered:
                # Claimed before the registry was lost and no longer needed here, but perhaps by
                # other replicas.
                client.answer(request_hash, self._cache.get(request_hash))
        for request_hash, answer in update.answers:
            if client.settle(request_hash):
                self._take_answer(self._unanswered.pop(request_hash), request_hash, unpack(answer))
        for request_hash in update.elsewhere:
            client.wait(request_hash)
        self._flush()

    def _flush(self) -> None:
        if self._client is not None:
            self._client.flush(len(self._ready), is_idle=not self._sent)

    def _fill(self) -> None:
        """Send requests until the window is full."""
        while True:
            while self._may_take_up:
                self._take_up()
            if not self._ready or len(self._sent) >= self._window:
                return
            _, equal = heapq.heappop(self._ready)
            self._send(equal)

    @property
    def _may_take_up(self) -> bool:
        """Whether there are requests to take up, and room for them.

        Requests that other replicas compute take no room from those that can be sent, or two
        replicas might wait for each other. They do take memory.
        """
        if not self._pending and not self._units:
            return False
        num_taken_up, num_waiting = len(self._sent) + len(self._ready), self._num_followers
        if self._client is not None:
            num_taken_up += self._client.num_undecided
            num_waiting += self._client.num_elsewhere
        return num_taken_up < self._max_taken_up and num_waiting < self._max_followers

    def _take_up(self) -> None:
        """Decide about the next request of the begun rows; if there is none, begin a row."""
        if not self._pending:
            self._begin_row(self._units[0])
            return
        _, request = heapq.heappop(self._pending)
        reject = self._contexts.too_long(request.request)
        if reject is not None:
            self._put_answer(request, reject)
            return
        request_hash = self._cache.request_hash(request.request) if self._deduplicates else None
        if request_hash is None:
            self._make_ready(EqualRequests(request, None))
        elif not self._reuse_answer(request_hash, request):
            equal = self._unanswered[request_hash] = EqualRequests(request, request_hash)
            if self._client is None or self._client.claim(request_hash):
                self._make_ready(equal)

    def _make_ready(self, equal: EqualRequests) -> None:
        heapq.heappush(self._ready, (equal.leader.priority, equal))

    def _begin_row(self, unit: UnitInFlight) -> None:
        """Begin the dialogue of the unit's next row."""
        position = unit.num_begun
        unit.num_begun += 1
        if unit.num_begun == len(unit.answers):
            self._units.popleft()
        self._num_rows += 1
        entries = unit.rows.entries(position)
        # A row that every task rejects may hold values that Python cannot represent.
        is_rejected = all(isinstance(entry, Reject) for entry in entries)
        late = {} if is_rejected else unit.rows.late(position)
        dialogue = self._tasks.answer(entries, late)
        self._advance(RowInFlight(self._num_rows, unit, position, dialogue), None)

    def _advance(self, row: RowInFlight, answers: Sequence[Answer] | None) -> None:
        """Pass a round's answers to the row's dialogue; take its next round, or its result."""
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
        for index, request in enumerate(requests):
            pending = RequestInFlight(row, index, request)
            heapq.heappush(self._pending, (pending.priority, pending))

    def _answered(self, equal: EqualRequests, answer: Answer) -> None:
        """Pass an answer to all equal requests. After a reject, the next of them is sent."""
        self._put_answer(equal.leader, answer)
        if equal.request_hash is None:
            return
        if isinstance(answer, Completion):
            del self._unanswered[equal.request_hash]
            self._cache.put(equal.request_hash, answer)
            self._share(equal.request_hash, answer)
            self._answer_followers(equal, answer)
        elif equal.followers:
            equal.leader = equal.followers.pop(0)
            self._num_followers -= 1
            self._make_ready(equal)
        else:
            del self._unanswered[equal.request_hash]
            self._share(equal.request_hash, None)

    def _share(self, request_hash: bytes, completion: Completion | None) -> None:
        if self._client is not None:
            self._client.answer(request_hash, completion)

    def _take_answer(
        self, equal: EqualRequests, request_hash: bytes, completion: Completion
    ) -> None:
        """Take an answer that another replica computed."""
        self._cache.put(request_hash, completion)
        self._put_reused(equal.leader, completion)
        self._answer_followers(equal, completion)

    def _answer_followers(self, equal: EqualRequests, completion: Completion) -> None:
        self._num_followers -= len(equal.followers)
        for follower in equal.followers:
            self._put_reused(follower, completion)

    def _put_reused(self, request: RequestInFlight, completion: Completion) -> None:
        request.row.unit.num_reused += 1
        request.row.count(completion)
        self._put_answer(request, completion)

    def _put_answer(self, request: RequestInFlight, answer: Answer) -> None:
        """Put an answer into its round. After the last one, the row's dialogue goes on."""
        row = request.row
        row.answers[request.index] = answer
        row.num_open -= 1
        if not row.num_open:
            self._advance(row, [answer for answer in row.answers if answer is not None])

    def _end(self, row: RowInFlight, result: RowResult) -> None:
        """Put the row's result into its unit."""
        row.unit.answers[row.position] = row.answered(result)
        row.unit.num_open -= 1
        self._answered_rows += 1
        if not row.unit.num_open:
            self._finish(row.unit)

    def _finish(self, unit: UnitInFlight) -> None:
        unit.finished_at = self._clock()
        self._finished.append(unit)

    def _send(self, equal: EqualRequests) -> None:
        """Put a request into the engine."""
        key = self._next_key
        self._next_key += 1
        try:
            self._engine.add(key, equal.leader.request)
        except RequestRefused as error:
            self._answered(equal, Reject(error.reject_class, str(error), attempts=1))
            return
        self._sent[key] = equal
        self._queued.append(key)

    def _reuse_answer(self, request_hash: bytes, request: RequestInFlight) -> bool:
        """Use the answer of an equal request: one that is cached, or one in flight."""
        completion = self._cache.get(request_hash)
        if completion is not None:
            self._put_reused(request, completion)
            return True
        equal = self._unanswered.get(request_hash)
        if equal is None:
            return False
        equal.followers.append(request)
        self._num_followers += 1
        return True

    def _expire(self) -> None:
        """Abort the requests that are out of time; those that take their places get deadlines."""
        now = self._clock()
        while self._deadlines and next(iter(self._deadlines.values())) <= now:
            key, _ = self._deadlines.popitem(last=False)
            equal = self._sent.pop(key)
            self._engine.abort(key)
            message = f"no answer within model.request_timeout_s ({self._timeout_s:g} s)"
            self._answered(equal, Reject(RejectClass.TIMEOUT, message, attempts=1))
        while self._queued and len(self._deadlines) < self._engine.info.max_num_seqs:
            key = self._queued.popleft()
            if key in self._sent:
                self._deadlines[key] = now + self._timeout_s


def _checked(completion: Completion) -> Answer:
    if completion.finish_reason == FinishReason.STOP or completion.is_cut:
        return completion
    reason = f"the engine ended the request with {completion.finish_reason}"
    return Reject(RejectClass.ENGINE_ERROR, reason, attempts=1)
