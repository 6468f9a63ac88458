"""One replica's side of the ledger: what it waits for, and what it has still to tell.

Knows nothing of threads and processes. What is asked and answered goes out in chunks, as a call
costs as much as some hundred marks. Without a ledger, or while it is away, a replica is alone:
whatever it asks for is its own to compute.
"""

import pickle
import time
from collections.abc import Callable, Sequence
from operator import attrgetter

from tokenmill.request import Completion
from tokenmill.scheduling.dedup.registry import Answered

# An answer is told after so long even if there are few: others may wait for it.
_TELL_EVERY_S = 0.25
# In the order of the constructor. A tuple is pickled in a tenth of the time of a data class.
_fields_of = attrgetter(*Completion.__dataclass_fields__)
#: Takes the marks that are asked for, and the answers, on their way to the ledger.
SendClaims = Callable[[Sequence[bytes], Sequence[Answered]], None]


class DedupClient:
    """The marks that a replica has asked the ledger for."""

    def __init__(self, tell: SendClaims, chunk: int) -> None:
        self._tell = tell
        self._chunk = chunk
        # Until the ledger has been heard.
        self._is_alone = True
        # A mark is in one of these until it is settled. In the order in which they are asked for.
        self._to_ask: dict[bytes, None] = {}
        self._asked: set[bytes] = set()
        self._elsewhere: set[bytes] = set()
        self._to_answer: list[Answered] = []
        self._told_at = 0.0

    @property
    def num_undecided(self) -> int:
        """Asked for, and nothing heard of it."""
        return len(self._to_ask) + len(self._asked)

    @property
    def num_elsewhere(self) -> int:
        """Asked for, and being computed by others."""
        return len(self._elsewhere)

    def ask(self, mark: bytes) -> bool:
        """Whether the mark is one's own to compute at once; if not, something is heard of it."""
        if self._is_alone:
            return True
        self._to_ask[mark] = None
        return False

    def answer(self, mark: bytes, completion: Completion | None) -> None:
        """Give an answer to whoever asks; without one the mark is the next one's to compute."""
        if not self._is_alone:
            self._to_answer.append((mark, None if completion is None else packed(completion)))

    def flush(self, num_ready: int, *, is_idle: bool) -> None:
        """Tell what is worth a call; `num_ready` requests can be sent without an answer to it."""
        asked: list[bytes] = []
        answered: list[Answered] = []
        # One question at a time: those that come up meanwhile make the next one larger.
        if not self._asked and (len(self._to_ask) >= self._chunk or num_ready < self._chunk):
            asked = list(self._to_ask)
            self._asked.update(asked)
            self._to_ask.clear()
        if self._to_answer and (asked or is_idle or self._is_due()):
            answered, self._to_answer = self._to_answer, answered
        if asked or answered:
            self._told_at = time.monotonic()
            self._tell(asked, answered)

    def _is_due(self) -> bool:
        is_long_ago = time.monotonic() - self._told_at >= _TELL_EVERY_S
        return is_long_ago or len(self._to_answer) >= self._chunk

    def join(self) -> None:
        """The ledger is there: what is asked from now on goes to it."""
        self._is_alone = False

    def leave(self) -> list[bytes]:
        """The ledger is away: all that was asked for is one's own to compute."""
        self._is_alone = True
        marks = [*self._to_ask, *self._asked, *self._elsewhere]
        self._to_ask.clear()
        self._asked.clear()
        self._elsewhere.clear()
        self._to_answer.clear()
        return marks

    def settle(self, mark: bytes) -> bool:
        """Whether the mark is still waited for; from now on it is not."""
        if mark in self._to_ask:
            del self._to_ask[mark]
            return True
        for marks in (self._asked, self._elsewhere):
            if mark in marks:
                marks.remove(mark)
                return True
        return False

    def wait(self, mark: bytes) -> None:
        """Another computes it."""
        if mark in self._asked:
            self._asked.remove(mark)
            self._elsewhere.add(mark)


def packed(completion: Completion) -> bytes:
    """A completion on its way to other replicas."""
    return pickle.dumps(_fields_of(completion), pickle.HIGHEST_PROTOCOL)


def unpacked(answer: bytes) -> Completion:
    """The inverse of `packed`."""
    return Completion(*pickle.loads(answer))  # noqa: S301 - from a replica of the same run
