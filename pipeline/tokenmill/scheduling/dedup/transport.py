"""Carries what a replica tells the ledger, and brings what the ledger has for it: two threads.

One sends what is told, as it comes; the other asks for news, an answer to which takes until there
are some. Nothing is lost in silence: whenever a call fails, or the ledger does not know the replica
(any more), the replica hears of it and is alone until it has joined anew.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from tokenmill.scheduling.dedup.registry import Answered, InFlightRegistry, RegistryUpdate

# The ledger hears of each replica so often at least; well below its `SILENCE_S`.
_PATIENCE_S = 1.0
# Before a ledger that could not be reached is tried again.
_PAUSE_S = 1.0


class RegistryConnection(Protocol):
    """One replica's way to the ledger. Thread-safe."""

    def join(self, membership: str) -> bool:
        """Become a member; False where the ledger cannot be reached."""

    def exchange(
        self,
        membership: str,
        asked: Sequence[bytes],
        answered: Sequence[Answered],
        patience_s: float,
    ) -> RegistryUpdate | None:
        """`Ledger.exchange`; without news the answer may take `patience_s`.

        None also where the ledger cannot be reached, or nobody knows whether it was.
        """


class Transport:
    """The two threads. `hear` gets the news from either; None: the ledger is away."""

    def __init__(
        self, line: RegistryConnection, hear: Callable[[RegistryUpdate | None], None]
    ) -> None:
        self._line = line
        self._hear = hear
        self._outbox: queue.SimpleQueue[tuple[Sequence[bytes], Sequence[Answered]]] = (
            queue.SimpleQueue()
        )
        self._changing = threading.Lock()
        # A new one each time: what is under way when a call fails must count for nothing.
        self._membership: str | None = None
        # Never set: a pause.
        self._never = threading.Event()

    def start(self) -> None:
        """Join, if the ledger can be reached, and start the threads."""
        self._join()
        threading.Thread(target=self._send, name="ledger-send", daemon=True).start()
        threading.Thread(target=self._listen, name="ledger-news", daemon=True).start()

    def tell(self, asked: Sequence[bytes], answered: Sequence[Answered]) -> None:
        """Send it, without waiting."""
        self._outbox.put((asked, answered))

    def _send(self) -> None:
        while True:
            asked, answered = self._outbox.get()
            self._exchange(asked, answered, 0.0)

    def _listen(self) -> None:
        while True:
            if self._membership is None:
                self._never.wait(_PAUSE_S)
                self._join()
            else:
                self._exchange((), (), _PATIENCE_S)

    def _join(self) -> None:
        membership = uuid.uuid4().hex
        if self._line.join(membership):
            with self._changing:
                self._membership = membership
                self._hear(RegistryUpdate())

    def _exchange(
        self, asked: Sequence[bytes], answered: Sequence[Answered], patience_s: float
    ) -> None:
        membership = self._membership
        if membership is None:
            return
        news = self._line.exchange(membership, asked, answered, patience_s)
        with self._changing:
            if self._membership != membership:
                return
            if news is None:
                self._membership = None
            if news is None or news:
                self._hear(news)


class LocalConnection:
    """The way of a replica to a ledger in its own process; `changed` is the ledger's."""

    def __init__(
        self, ledger: InFlightRegistry, changed: threading.Condition, replica: str
    ) -> None:
        self._ledger = ledger
        self._changed = changed
        self._replica = replica

    def join(self, membership: str) -> bool:
        with self._changed:
            self._ledger.join(self._replica, membership)
            self._changed.notify_all()
        return True

    def exchange(
        self,
        membership: str,
        asked: Sequence[bytes],
        answered: Sequence[Answered],
        patience_s: float,
    ) -> RegistryUpdate | None:
        with self._changed:
            news = self._ledger.exchange(self._replica, membership, asked, answered)
            self._changed.notify_all()
            if news is not None and not news:
                self._changed.wait_for(lambda: self._replica in self._ledger.news, patience_s)
                news = self._ledger.exchange(self._replica, membership, (), ())
        return news
