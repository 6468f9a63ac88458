"""The actor to which a run's replicas report. Its imports are light.

Its process starts while others load an engine and a tokenizer on the same cores.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from tokenmill.errors import TokenmillError
from tokenmill.scheduling.crashes import KILLED, KILLED_WHILE_LOADING, CrashHistory
from tokenmill.scheduling.dedup.registry import InFlightRegistry, PackedAnswer, RegistryUpdate
from tokenmill.scheduling.load import PoolState, ReplicaLoad
from tokenmill.scheduling.poison_rows import PoisonSearch, RunAdvice

#: The coordinator answers within milliseconds; this leaves time for a slow network.
ANSWER_TIMEOUT_S = 10


class Coordinator:
    """Collects what replicas report, and answers them without the driver.

    It is asynchronous, because many replicas may wait for updates of the registry; every other call
    is short. If its process is killed, the next one starts empty: the search for poison rows starts
    again, and replicas join the registry again.
    """

    def __init__(self) -> None:
        self._loads: dict[str, ReplicaLoad] = {}
        self._running: dict[int, str] = {}
        self._crashed: set[str] = set()
        self._crash_reason = ""
        self._crashed_replica = ""
        self._crash_history = CrashHistory()
        self._replica_by_actor: dict[str, str] = {}
        self._loading: set[str] = set()
        self._load_crashes = 0
        self._failure: TokenmillError | None = None
        self._poison_search = PoisonSearch()
        self._ready_at: float | None = None
        self._registry = InFlightRegistry()
        self._waiting: dict[str, asyncio.Event] = {}

    def loading(self, actor: str, replica: str) -> None:
        """A replica starts to load its model; an actor that restarts is a new replica."""
        previous = self._replica_by_actor.get(actor)
        self._replica_by_actor[actor] = replica
        self._loading.add(replica)
        if previous in self._loading:
            self._load_crashes += 1
            self.crashed(previous, KILLED_WHILE_LOADING)
        elif previous is not None:
            # An engine that takes its process down with it cannot report the crash.
            self.crashed(previous, KILLED)

    def begin(self, unit: int, replica: str) -> RunAdvice:
        """A replica starts a unit."""
        previous = self._running.get(unit, replica)
        if previous != replica:
            self.crashed(previous, KILLED)
        self._running[unit] = replica
        return self._poison_search.begin(unit)

    def next_group(self, unit: int, unanswered: Sequence[int]) -> Sequence[int]:
        """The rows of a unit that runs alone to answer next."""
        return self._poison_search.next_group(unit, unanswered)

    def survived(self, unit: int) -> None:
        """The last group of a unit that runs alone is answered."""
        self._poison_search.survived(unit)
        self._crash_history.progressed()

    def end(self, unit: int) -> None:
        """All rows of a unit are answered."""
        self._running.pop(unit, None)
        if self._poison_search.end(unit):
            self._crash_history.progressed()

    def report(self, replica: str, load: ReplicaLoad) -> None:
        """A replica's load, about once a second; the first report says that it is ready."""
        # Measured here: the driver asks once a second, which is too coarse for a short run.
        self._ready_at = self._ready_at or time.monotonic()
        self._loads[replica] = load
        if replica in self._loading:
            self._loading.remove(replica)
            self._load_crashes = 0

    def crashed(self, replica: str, reason: str) -> None:
        """A replica's engine has crashed; reported twice, it counts once."""
        self._loads.pop(replica, None)
        self._loading.discard(replica)
        self._registry.remove(replica)
        self._wake_waiting()
        if replica not in self._crashed:
            self._crashed.add(replica)
            self._crash_reason = reason
            self._crashed_replica = replica
            self._crash_history.crashed(reason, self._row_alone(replica))

    def _row_alone(self, replica: str) -> tuple[int, int] | None:
        """The unit and the row that are alone in the replica's engine, if it tests one row."""
        for unit in [unit for unit, owner in self._running.items() if owner == replica]:
            row = self._poison_search.row_alone(unit)
            if row is not None:
                return unit, row
        return None

    def failed(self, failure: TokenmillError) -> None:
        """A stage has failed; the first failure is the run's reason to end."""
        self._failure = self._failure or failure

    def failure(self) -> TokenmillError | None:
        """The first failure of a stage."""
        return self._failure

    def join(self, replica: str, membership: str) -> None:
        """Add a replica to the registry of requests in flight."""
        self._registry.join(replica, membership)
        self._wake_waiting()

    async def exchange(
        self,
        replica: str,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
        timeout_s: float,
    ) -> RegistryUpdate | None:
        """`InFlightRegistry.exchange`; if there is no update, wait for one until the timeout."""
        update = self._registry.exchange(replica, membership, claims, answers)
        self._wake_waiting()
        if update is None or update or not timeout_s:
            return update
        has_update = self._waiting[replica] = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(has_update.wait(), timeout_s)
        return self._registry.exchange(replica, membership, (), ())

    def _wake_waiting(self) -> None:
        for replica in self._registry.updates:
            if replica in self._waiting:
                self._waiting.pop(replica).set()

    def state(self) -> PoolState:
        """What the driver shows of the replicas."""
        ready_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        return PoolState(
            loads=dict(self._loads),
            crashes=len(self._crashed),
            crash_reason=self._crash_reason,
            crashed_replica=self._crashed_replica,
            poison_rows=self._poison_search.num_poison,
            ready_s=ready_s,
            crashed_rows=self._crash_history.num_rows,
            num_loading=len(self._loading),
            load_crashes=self._load_crashes,
        )
