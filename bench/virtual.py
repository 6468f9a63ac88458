"""A pool of replicas on a virtual clock: the real scheduler, plan and in-flight rule, no waiting.

Time goes from one request's end to the next, so that hours of 64 replicas take seconds, and every
figure is the same each time.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
from tokenmill.engine.base import EngineInfo, EngineUsage
from tokenmill.job.job import Job
from tokenmill.plan.plan import Unit
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.request import Completion, Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext
from tokenmill.tasks.unit_tables import rendered_table

_MAX_MODEL_LEN = 2**20


class VirtualEngine:
    """`max_num_seqs` requests at a time; its clock, `now` in seconds, is set from outside.

    `seconds` says for how long a request stays in the batch as it enters it; `leave` hears of it
    when it has left.
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
        # By their ends, then as they were added.
        self._running: list[tuple[float, int, Request]] = []

    @property
    def next_end(self) -> float | None:
        """When the next request ends; None for an empty batch."""
        return self._running[0][0] if self._running else None

    @property
    def num_running(self) -> int:
        """The requests in its batch."""
        return len(self._running)

    def add(self, key: int, request: Request) -> None:
        self._waiting.append((key, request))
        self.most_held = max(self.most_held, len(self._waiting) + len(self._running))

    def abort(self, key: int) -> None:
        raise NotImplementedError

    def step(self) -> Sequence[Completion]:
        """The requests that have ended by `now`; others take their places."""
        ended = []
        while self._running and self._running[0][0] <= self.now:
            _, key, request = heapq.heappop(self._running)
            self._leave(request)
            ended.append(Completion(key, "", "stop", len(request.prompt_token_ids), 1, None))
        while self._waiting and len(self._running) < self.info.max_num_seqs:
            key, request = self._waiting.popleft()
            heapq.heappush(self._running, (self.now + self._seconds(request), key, request))
        return ended

    @property
    def usage(self) -> EngineUsage:
        """Nobody looks, and it takes no time."""
        return EngineUsage()


def generating() -> RowTasks:
    """A task that asks a row's one prompt and takes the answer."""
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
    """A rendered unit of these prompts."""
    kept = pa.table({ROW_COLUMN: pa.array(range(len(prompts)), pa.int64())})
    return rendered_table(kept, [[PreparedRow([prompt])] for prompt in prompts], kept.select([]))


def simulate(
    units: Sequence[Unit],
    render: Callable[[Unit], pa.Table],
    engines: Sequence[VirtualEngine],
    in_flight: int,
    look: Callable[[float, Collection[UnitInFlight]], None] = lambda *_: None,
) -> float:
    """The seconds in which the engines answer the units.

    As Ray Data does, each next unit goes to the replica with the fewest, none has more than
    `in_flight` of them, and what a replica has been given stays with it. `look` sees the time and
    the units in flight each time that requests have ended.
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
        # Other units may have come in between, and with them the same end again.
        if end != engines[place].next_end:
            continue
        now = end
        advance(place)
        hand_out()
        look(now, open_units)
    return now
