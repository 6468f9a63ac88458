"""Who computes what, so that replicas compute what they all ask for only once.

A replica asks before it sends. The first that asks for a mark (`reuse`) has claimed it: it computes
the answer and gives it to the ledger, which hands it to all that ask. Others wait. A claim ends
with the answer, with its holder's word that there is none, or with its holder, and then it is the
next one's that waits. So the worst that a death costs is a request that is computed twice.

Pure bookkeeping: knows nothing of processes, threads and completions. Answers are kept in bounded
memory, and so are claims, as no replica asks for more than it has under way.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenmill.scheduling.dedup.answer_cache import BoundedCache

_MOST_BYTES = 256 * 2**20
# Of Python's objects around an answer, its mark and its place in the memory.
_OVERHEAD_BYTES = 300
#: Seconds after which a replica that says nothing is taken for dead.
SILENCE_S = 15.0
#: A mark and its answer, packed (`claims`); None: there is none.
Answered = tuple[bytes, bytes | None]


@dataclass(slots=True)
class RegistryUpdate:
    """What the ledger has for a replica.

    `granted` are marks that are the replica's to compute, `known` those whose answers are there,
    and `elsewhere` those that another computes.
    """

    granted: list[bytes] = field(default_factory=list)
    known: list[tuple[bytes, bytes]] = field(default_factory=list)
    elsewhere: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.granted or self.known or self.elsewhere)


@dataclass(slots=True)
class _Member:
    """A replica that takes part, under the name that it has given to its present membership."""

    membership: str
    heard_at: float
    news: RegistryUpdate = field(default_factory=RegistryUpdate)


class InFlightRegistry:
    """The claims and answers of a run's replicas."""

    def __init__(
        self, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._members: dict[str, _Member] = {}
        self._holders: dict[bytes, str] = {}
        self._waiting: defaultdict[bytes, list[str]] = defaultdict(list)
        self._answers: BoundedCache[bytes] = BoundedCache(most_bytes, _num_bytes)

    @property
    def news(self) -> Mapping[str, RegistryUpdate]:
        """For each replica what it has not been told."""
        return {name: member.news for name, member in self._members.items() if member.news}

    def join(self, replica: str, membership: str) -> None:
        """Take a replica in. What it held and waited for under another membership is given up."""
        self.lost(replica)
        self._members[replica] = _Member(membership, self._clock())

    def exchange(
        self, replica: str, membership: str, asked: Sequence[bytes], answered: Sequence[Answered]
    ) -> RegistryUpdate | None:
        """Take a replica's answers and questions, and tell it all that there is for it.

        Each mark that is asked for is granted, known or elsewhere; one that is elsewhere is granted
        or known later. None: there is no such membership, or no longer.
        """
        member = self._members.get(replica)
        if member is None or member.membership != membership:
            return None
        member.heard_at = self._clock()
        self._give_up_the_silent(member.heard_at)
        for mark, answer in answered:
            self._answer(replica, mark, answer)
        for mark in asked:
            self._ask(replica, member, mark)
        told, member.news = member.news, RegistryUpdate()
        return told

    def lost(self, replica: str) -> None:
        """Pass the claims of a replica on that is there no more."""
        if self._members.pop(replica, None) is None:
            return
        for waiting in self._waiting.values():
            if replica in waiting:
                waiting.remove(replica)
        for mark in [mark for mark, holder in self._holders.items() if holder == replica]:
            self._release(mark)

    def _give_up_the_silent(self, now: float) -> None:
        silent = [
            name for name, member in self._members.items() if now - member.heard_at > SILENCE_S
        ]
        for name in silent:
            self.lost(name)

    def _ask(self, replica: str, member: _Member, mark: bytes) -> None:
        answer = self._answers.find(mark)
        if answer is not None:
            member.news.known.append((mark, answer))
        elif self._holders.setdefault(mark, replica) == replica:
            member.news.granted.append(mark)
        else:
            self._waiting[mark].append(replica)
            member.news.elsewhere.append(mark)

    def _answer(self, replica: str, mark: bytes, answer: bytes | None) -> None:
        if answer is None:
            if self._holders.get(mark) == replica:
                self._release(mark)
            return
        self._holders.pop(mark, None)
        self._answers.keep(mark, answer)
        for waiting in self._waiting.pop(mark, ()):
            self._members[waiting].news.known.append((mark, answer))

    def _release(self, mark: bytes) -> None:
        """Grant a mark to the first that waits for it, if anyone does."""
        waiting = self._waiting.get(mark)
        if not waiting:
            self._waiting.pop(mark, None)
            del self._holders[mark]
            return
        self._holders[mark] = first = waiting.pop(0)
        self._members[first].news.granted.append(mark)


def _num_bytes(answer: bytes) -> int:
    return _OVERHEAD_BYTES + len(answer)
