"""Which replica computes which request, so that the replicas compute equal requests once.

Before a replica sends a request, it claims the request's hash. The first replica that claims a hash
gets the claim granted: it computes the answer and gives it to the registry, which passes it on to
all replicas that claimed the same hash and wait. A claim ends with the answer, when its holder
gives it up without one, or when its holder is gone; then it is granted to the next waiting replica.
So a crash costs at most that some requests are computed twice.

This module is pure bookkeeping: it knows nothing about processes, threads or completions. Memory is
bounded: answers are in a bounded cache, and a replica claims only what it has in flight.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenmill.scheduling.dedup.answer_cache import BoundedCache

_MAX_BYTES = 256 * 2**20
# Estimated bytes of the Python objects per answer: the answer itself, its hash, its cache entry.
_OVERHEAD_BYTES = 300
#: Seconds without a call after which a replica is considered gone.
MEMBER_TIMEOUT_S = 15.0
#: A request hash and its answer as packed by the client; None if there is no answer.
PackedAnswer = tuple[bytes, bytes | None]


@dataclass(slots=True)
class RegistryUpdate:
    """News from the registry for one replica.

    `granted` are the hashes that the replica is to compute, `answers` the hashes with their packed
    answers, and `elsewhere` the hashes that another replica computes.
    """

    granted: list[bytes] = field(default_factory=list)
    answers: list[tuple[bytes, bytes]] = field(default_factory=list)
    elsewhere: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.granted or self.answers or self.elsewhere)


@dataclass(slots=True)
class _Member:
    """A replica that takes part; each time it joins, it chooses a new `membership` id."""

    membership: str
    last_call_at: float
    update: RegistryUpdate = field(default_factory=RegistryUpdate)


class InFlightRegistry:
    """The claims and answers of a run's replicas."""

    def __init__(
        self, max_bytes: int = _MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._holders: dict[bytes, str] = {}
        self._waiting: defaultdict[bytes, list[str]] = defaultdict(list)
        self._answers: BoundedCache[bytes] = BoundedCache(max_bytes, _num_bytes)

    @property
    def updates(self) -> Mapping[str, RegistryUpdate]:
        """The updates that replicas have not fetched yet, by replica."""
        return {name: member.update for name, member in self._members.items() if member.update}

    def join(self, replica: str, membership: str) -> None:
        """Add a replica. Its claims under an earlier membership are passed on."""
        self.remove(replica)
        self._members[replica] = _Member(membership, self._clock())

    def exchange(
        self,
        replica: str,
        membership: str,
        claims: Sequence[bytes],
        answers: Sequence[PackedAnswer],
    ) -> RegistryUpdate | None:
        """Take a replica's answers and new claims, and return all updates for it.

        Each claimed hash is granted, answered or elsewhere; one that is elsewhere is granted or
        answered by a later update. Returns None if the replica has no such membership (any more).
        """
        member = self._members.get(replica)
        if member is None or member.membership != membership:
            return None
        member.last_call_at = self._clock()
        self._remove_silent(member.last_call_at)
        for request_hash, answer in answers:
            self._answer(replica, request_hash, answer)
        for request_hash in claims:
            self._claim(replica, member, request_hash)
        update, member.update = member.update, RegistryUpdate()
        return update

    def remove(self, replica: str) -> None:
        """Remove a replica that is gone, if it is a member, and pass its claims on."""
        if self._members.pop(replica, None) is None:
            return
        for waiting in self._waiting.values():
            if replica in waiting:
                waiting.remove(replica)
        for request_hash in [key for key, holder in self._holders.items() if holder == replica]:
            self._release(request_hash)

    def _remove_silent(self, now: float) -> None:
        silent = [
            name
            for name, member in self._members.items()
            if now - member.last_call_at > MEMBER_TIMEOUT_S
        ]
        for name in silent:
            self.remove(name)

    def _claim(self, replica: str, member: _Member, request_hash: bytes) -> None:
        answer = self._answers.get(request_hash)
        if answer is not None:
            member.update.answers.append((request_hash, answer))
        elif self._holders.setdefault(request_hash, replica) == replica:
            member.update.granted.append(request_hash)
        else:
            self._waiting[request_hash].append(replica)
            member.update.elsewhere.append(request_hash)

    def _answer(self, replica: str, request_hash: bytes, answer: bytes | None) -> None:
        if answer is None:
            if self._holders.get(request_hash) == replica:
                self._release(request_hash)
            return
        self._holders.pop(request_hash, None)
        self._answers.put(request_hash, answer)
        for waiting in self._waiting.pop(request_hash, ()):
            self._members[waiting].update.answers.append((request_hash, answer))

    def _release(self, request_hash: bytes) -> None:
        """Grant a hash to the replica that has waited longest, if one waits."""
        waiting = self._waiting.get(request_hash)
        if not waiting:
            self._waiting.pop(request_hash, None)
            del self._holders[request_hash]
            return
        self._holders[request_hash] = first = waiting.pop(0)
        self._members[first].update.granted.append(request_hash)


def _num_bytes(answer: bytes) -> int:
    return _OVERHEAD_BYTES + len(answer)
