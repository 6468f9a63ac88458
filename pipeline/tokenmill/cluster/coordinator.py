"""The board on which a run's replicas tell what they do: an actor's class, light to import.

Its process starts while others load an engine and a tokenizer, on the same cores.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from tokenmill.errors import TokenmillError
from tokenmill.scheduling.dedup.registry import InFlightRegistry, PackedAnswer, RegistryUpdate
from tokenmill.scheduling.load import PoolState, ReplicaLoad
from tokenmill.scheduling.poison_rows import PoisonSearch, RunAdvice


class Coordinator:
    """Where replicas tell what they do: an actor, so that nobody waits for the driver.

    It is asynchronous, so that many may wait for the ledger's news; the rest takes no time. If its
    process is killed, its next one knows nothing: what is suspected is suspected anew, and who took
    part in the ledger is told to join again.
    """

    def __init__(self) -> None:
        self._loads: dict[str, ReplicaLoad] = {}
        self._running: dict[int, str] = {}
        self._dead: set[str] = set()
        self._last_death = ""
        self._last_dead = ""
        self._failure: TokenmillError | None = None
        self._suspects = PoisonSearch()
        self._ready_at: float | None = None
        self._ledger = InFlightRegistry()
        self._listening: dict[str, asyncio.Event] = {}

    def begin(self, unit: int, replica: str) -> RunAdvice:
        before = self._running.get(unit, replica)
        if before != replica:
            # An engine that takes its process along says nothing.
            self.died(before, "a killed process")
        self._running[unit] = replica
        return self._suspects.begin(unit)

    def next_group(self, unit: int, unanswered: Sequence[int]) -> Sequence[int]:
        return self._suspects.next_group(unit, unanswered)

    def survived(self, unit: int) -> None:
        self._suspects.survived(unit)

    def end(self, unit: int) -> None:
        self._running.pop(unit, None)
        self._suspects.end(unit)

    def report(self, replica: str, load: ReplicaLoad) -> None:
        # The driver asks once a second, which is a part of a short run that counts.
        self._ready_at = self._ready_at or time.monotonic()
        self._loads[replica] = load

    def died(self, replica: str, reason: str) -> None:
        self._loads.pop(replica, None)
        self._ledger.remove(replica)
        self._wake_listeners()
        if replica not in self._dead:
            self._dead.add(replica)
            self._last_death = reason
            self._last_dead = replica

    def failed(self, failure: TokenmillError) -> None:
        self._failure = self._failure or failure

    def failure(self) -> TokenmillError | None:
        return self._failure

    def join(self, replica: str, membership: str) -> None:
        self._ledger.join(replica, membership)
        self._wake_listeners()

    async def exchange(
        self,
        replica: str,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
        timeout_s: float,
    ) -> RegistryUpdate | None:
        news = self._ledger.exchange(replica, membership, claims, answers)
        self._wake_listeners()
        if news is None or news or not timeout_s:
            return news
        has_news = self._listening[replica] = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(has_news.wait(), timeout_s)
        return self._ledger.exchange(replica, membership, (), ())

    def _wake_listeners(self) -> None:
        for replica in self._ledger.updates:
            if replica in self._listening:
                self._listening.pop(replica).set()

    def state(self) -> PoolState:
        poison_rows = self._suspects.num_poison
        ready_s = 0.0 if self._ready_at is None else time.monotonic() - self._ready_at
        return PoolState(
            loads=dict(self._loads),
            crashes=len(self._dead),
            crash_reason=self._last_death,
            crashed_replica=self._last_dead,
            poison_rows=poison_rows,
            ready_s=ready_s,
        )
