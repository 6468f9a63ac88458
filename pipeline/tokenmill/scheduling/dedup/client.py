"""One replica's view of the registry: the hashes it waits for, and the answers it has to send.

Knows nothing about threads and processes. Claims and answers are sent in chunks, because a call
costs as much as some hundred hashes. Without a registry, or while the registry cannot be reached,
every claim is granted at once.
"""

import pickle
import time
from collections.abc import Callable, Sequence
from operator import attrgetter

from tokenmill.request import Completion
from tokenmill.scheduling.dedup.registry import PackedAnswer

# Answers wait no longer than this for a full chunk: other replicas may wait for them.
_SEND_INTERVAL_S = 0.25
# In the order of the constructor. A tuple is pickled ten times as fast as a dataclass.
_fields_of = attrgetter(*Completion.__dataclass_fields__)
#: Sends claimed hashes, and answers, to the registry.
SendClaims = Callable[[Sequence[bytes], Sequence[PackedAnswer]], None]


class DedupClient:
    """The request hashes that a replica has claimed.

    `chunk` is the number of hashes or answers that are worth a call.
    """

    def __init__(
        self, send: SendClaims, chunk: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._chunk = chunk
        self._clock = clock
        # Until the first update from the registry.
        self._is_connected = False
        # A claimed hash is in one of these three until it is settled: to be sent, sent, or computed
        # by another replica. The dict keeps the order of the claims.
        self._unsent: dict[bytes, None] = {}
        self._sent: set[bytes] = set()
        self._elsewhere: set[bytes] = set()
        self._answers: list[PackedAnswer] = []
        self._sent_at = 0.0

    @property
    def num_undecided(self) -> int:
        """Number of claimed hashes that the registry has not decided about yet."""
        return len(self._unsent) + len(self._sent)

    @property
    def num_elsewhere(self) -> int:
        """Number of claimed hashes that other replicas compute."""
        return len(self._elsewhere)

    def claim(self, request_hash: bytes) -> bool:
        """Claim a hash. True if it may be computed at once; if not, an update will follow."""
        if not self._is_connected:
            return True
        self._unsent[request_hash] = None
        return False

    def answer(self, request_hash: bytes, completion: Completion | None) -> None:
        """Share the answer to a granted hash; None gives the claim up without an answer."""
        if self._is_connected:
            packed = None if completion is None else pack(completion)
            self._answers.append((request_hash, packed))

    def flush(self, num_ready: int, *, is_idle: bool) -> None:
        """Send claims and answers if they are worth a call.

        `num_ready` requests can be sent to the engine without an update from the registry.
        """
        claims: list[bytes] = []
        answers: list[PackedAnswer] = []
        # One call with claims at a time: claims made in the meantime make the next call larger.
        if not self._sent and (len(self._unsent) >= self._chunk or num_ready < self._chunk):
            claims = list(self._unsent)
            self._sent.update(claims)
            self._unsent.clear()
        if self._answers and (claims or is_idle or self._is_due()):
            answers, self._answers = self._answers, answers
        if claims or answers:
            self._sent_at = self._clock()
            self._send(claims, answers)

    def _is_due(self) -> bool:
        is_overdue = self._clock() - self._sent_at >= _SEND_INTERVAL_S
        return is_overdue or len(self._answers) >= self._chunk

    def connect(self) -> None:
        """The registry can be reached: send it the claims from now on."""
        self._is_connected = True

    def disconnect(self) -> list[bytes]:
        """The registry cannot be reached: return all claimed hashes, which may be computed now."""
        self._is_connected = False
        hashes = [*self._unsent, *self._sent, *self._elsewhere]
        self._unsent.clear()
        self._sent.clear()
        self._elsewhere.clear()
        self._answers.clear()
        return hashes

    def settle(self, request_hash: bytes) -> bool:
        """Forget a claimed hash that was granted or answered. False if it was not claimed."""
        if request_hash in self._unsent:
            del self._unsent[request_hash]
            return True
        for hashes in (self._sent, self._elsewhere):
            if request_hash in hashes:
                hashes.remove(request_hash)
                return True
        return False

    def wait(self, request_hash: bytes) -> None:
        """Another replica computes the hash."""
        if request_hash in self._sent:
            self._sent.remove(request_hash)
            self._elsewhere.add(request_hash)


def pack(completion: Completion) -> bytes:
    """Serialize a completion for other replicas."""
    return pickle.dumps(_fields_of(completion), pickle.HIGHEST_PROTOCOL)


def unpack(answer: bytes) -> Completion:
    """The inverse of `pack`."""
    return Completion(*pickle.loads(answer))  # noqa: S301 - from a replica of the same run
