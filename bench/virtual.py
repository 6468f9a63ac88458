"""Simulate replicas on a virtual clock, with the real scheduler, plan and limit of units in flight.

Time jumps from the end of one request to the next, so hours of 64 replicas take seconds, and every
figure is reproducible.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
from tokenmill.engine.base import EngineInfo, EngineUsage
from tokenmill.job.job import Job
from tokenmill.plan.plan import Unit
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.request import Completion, FinishReason, Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import rendered_table

_MAX_MODEL_LEN = 2**20


class VirtualEngine:
    """An engine that runs `max_num_seqs` requests at a time; its clock `now` is set from outside.

    `seconds` is called when a request enters the batch, and returns how long it stays; `leave` is
    called when it has left.
    """

    def __init__(
        self,
        max_num_seqs: int,
        seconds: Callable[[Request], float],
        leave: Callable[[Request], None] = lambda _: None,
    ) -> None:
        self.info = EngineInfo("virtual", "1", _MAX_MODEL_LEN, max_num_seqs)
        self.now = 0.0
        self.most_held = 0
        self._seconds = seconds
        self._leave = leave
        self._waiting: deque[tuple[int, Request]] = deque()
        # Sorted by end, then in the order in which they were added.
        self._running: list[tuple[float, int, Request]] = []

    @property
    def next_end(self) -> float | None:
        """The time at which the next request ends; None for an empty batch."""
        return self._running[0][0] if self._running else None

    @property
    def num_running(self) -> int:
        """The number of requests in the batch."""
        return len(self._running)

    def add(self, key: int, request: Request) -> None:
        self._waiting.append((key, request))
        self.most_held = max(self.most_held, len(self._waiting) + len(self._running))

    def abort(self, key: int) -> None:
        raise NotImplementedError

    def step(self) -> Sequence[Completion]:
        """Return the requests that have ended by `now`, and start waiting ones in their place."""
        ended = []
        while self._running and self._running[0][0] <= self.now:
            _, key, request = heapq.heappop(self._running)
            self._leave(request)
            num_tokens = len(request.prompt_token_ids)
            ended.append(Completion(key, "", FinishReason.STOP, num_tokens, 1, None))
        while self._waiting and len(self._running) < self.info.max_num_seqs:
            key, request = self._waiting.popleft()
            heapq.heappush(self._running, (self.now + self._seconds(request), key, request))
        return ended

    @property
    def usage(self) -> EngineUsage:
        """No usage: it is not read, and nothing takes CPU time."""
        return EngineUsage()


def generating() -> RowTasks:
    """Return a task with one request per row."""
    job = Job.model_validate(
        {
            "name": "virtual",
            "input": {"path": "in"},
            "model": {"source": "fake"},
            "prompt": {"text": "{{ text }}"},
            "sampling": {"max_tokens": 1},
            "output": {"path": "out"},
        }
    )
    return RowTasks(job.steps, TaskContext(FakeTokenizer(), _MAX_MODEL_LEN))


def unit_of(prompts: Sequence[Sequence[int]]) -> pa.Table:
    """Return a rendered unit of these prompts."""
    kept = pa.table({ROW_COLUMN: pa.array(range(len(prompts)), pa.int64())})
    return rendered_table(kept, [[PreparedRow([prompt])] for prompt in prompts], kept.select([]))


def simulate(
    units: Sequence[Unit],
    render: Callable[[Unit], pa.Table],
    engines: Sequence[VirtualEngine],
    in_flight: int,
    look: Callable[[float, Collection[UnitInFlight]], None] = lambda *_: None,
) -> float:
    """Return the seconds that the engines take to answer the units.

    As in Ray Data, the next unit goes to the replica with the fewest units, a replica has at most
    `in_flight` units, and units are never moved. `look` is called with the time and the units in
    flight whenever requests have ended.
    """
    tasks = generating()
    replicas = [Scheduler(engine, tasks) for engine in engines]
    num_units = [0] * len(replicas)
    waiting = deque(units)
    open_units: list[UnitInFlight] = []
    ends: list[tuple[float, int]] = []
    now = 0.0

    def advance(place: int) -> None:
        engines[place].now = now
        for unit in replicas[place].step():
            num_units[place] -= 1
            open_units.remove(unit)
        end = engines[place].next_end
        if end is not None:
            heapq.heappush(ends, (end, place))

    def hand_out() -> None:
        while waiting:
            place = min(range(len(replicas)), key=num_units.__getitem__)
            if num_units[place] >= in_flight:
                return
            num_units[place] += 1
            open_units.append(replicas[place].submit(render(waiting.popleft())))
            advance(place)

    hand_out()
    while ends:
        end, place = heapq.heappop(ends)
        # The entry is outdated if other units were added in the meantime.
        if end != engines[place].next_end:
            continue
        now = end
        advance(place)
        hand_out()
        look(now, open_units)
    return now
