"""Carries claims and answers from a replica to the registry, and updates back, in two threads.

One thread sends claims and answers as they come. The other polls for updates; a poll is answered as
soon as there are some. Nothing is lost silently: when a call fails, or the registry does not know
the replica (any more), the replica is disconnected until it has joined again.
"""

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from tokenmill.scheduling.dedup.registry import InFlightRegistry, PackedAnswer, RegistryUpdate

# How long a poll waits for updates. Well below the registry's `MEMBER_TIMEOUT_S`, because polls are
# also the sign that the replica is alive.
_POLL_TIMEOUT_S = 1.0
# Pause before the next attempt to reach a registry that could not be reached.
_RETRY_INTERVAL_S = 1.0


class RegistryConnection(Protocol):
    """One replica's connection to the registry. Thread-safe."""

    def join(self, membership: str) -> bool:
        """Become a member. False if the registry cannot be reached."""

    def exchange(
        self,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
        timeout_s: float,
    ) -> RegistryUpdate | None:
        """Call `InFlightRegistry.exchange`; wait up to `timeout_s` for updates if there are none.

        Also returns None if the registry cannot be reached, or if it is unknown whether it was.
        """


class Transport:
    """The two threads. Both pass updates to `receive`; None means that the replica is alone."""

    def __init__(
        self, connection: RegistryConnection, receive: Callable[[RegistryUpdate | None], None]
    ) -> None:
        self._connection = connection
        self._receive = receive
        self._outbox: queue.SimpleQueue[tuple[Sequence[bytes], Sequence[PackedAnswer]]] = (
            queue.SimpleQueue()
        )
        self._changing = threading.Lock()
        # A new id each time the replica joins, so that calls under way when another call failed
        # have no effect. None: disconnected.
        self._membership: str | None = None
        # Never set; waiting for it is a pause.
        self._never = threading.Event()

    def start(self) -> None:
        """Join, if the registry can be reached, and start the threads."""
        self._join()
        threading.Thread(target=self._send_all, name="registry-send", daemon=True).start()
        threading.Thread(target=self._poll, name="registry-poll", daemon=True).start()

    def send(self, claims: Sequence[bytes], answers: Sequence[PackedAnswer]) -> None:
        """Queue claims and answers; does not block."""
        self._outbox.put((claims, answers))

    def _send_all(self) -> None:
        while True:
            claims, answers = self._outbox.get()
            self._exchange(claims, answers, 0.0)

    def _poll(self) -> None:
        while True:
            if self._membership is None:
                self._never.wait(_RETRY_INTERVAL_S)
                self._join()
            else:
                self._exchange((), (), _POLL_TIMEOUT_S)

    def _join(self) -> None:
        membership = uuid.uuid4().hex
        if self._connection.join(membership):
            with self._changing:
                self._membership = membership
                self._receive(RegistryUpdate())

    def _exchange(
        self, claims: Sequence[bytes], answers: Sequence[PackedAnswer], timeout_s: float
    ) -> None:
        membership = self._membership
        if membership is None:
            return
        update = self._connection.exchange(membership, claims, answers, timeout_s)
        with self._changing:
            if self._membership != membership:
                return
            if update is None:
                self._membership = None
            if update is None or update:
                self._receive(update)


class LocalConnection:
    """A connection to a registry in the same process; `changed` guards the registry."""

    def __init__(
        self, registry: InFlightRegistry, changed: threading.Condition, replica: str
    ) -> None:
        self._registry = registry
        self._changed = changed
        self._replica = replica

    def join(self, membership: str) -> bool:
        with self._changed:
            self._registry.join(self._replica, membership)
            self._changed.notify_all()
        return True

    def exchange(
        self,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
        timeout_s: float,
    ) -> RegistryUpdate | None:
        with self._changed:
            update = self._registry.exchange(self._replica, membership, claims, answers)
            self._changed.notify_all()
            if update is not None and not update:
                self._changed.wait_for(lambda: self._replica in self._registry.updates, timeout_s)
                update = self._registry.exchange(self._replica, membership, (), ())
        return update
