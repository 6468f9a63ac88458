"""Requests whose answer is known: the same prompt and media, asked alike, have the same answer.

Corpora repeat themselves. A request that leaves nothing to chance (greedy, or with a seed) is
answered once by an engine; whoever asks the same again gets that answer. Answers are kept in
bounded memory, the one that was asked for the longest ago goes first.
"""

import hashlib
import json
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from tokenmill.request import Completion, Params, Pooling, Request

_MOST_BYTES = 64 * 2**20
# Of Python's objects around a completion, its mark and its place in the memory.
_OVERHEAD_BYTES = 700
_BYTES_PER_FLOAT = 32
# A token of the generated ones, or of those in its place: a text, a number, and their tuple.
_BYTES_PER_TOKEN = 150
_MARK_BYTES = 16


_T = TypeVar("_T")


class BoundedCache(Generic[_T]):
    """Answers under their marks, in bounded memory; `num_bytes` says what one takes."""

    def __init__(self, most_bytes: int, num_bytes: Callable[[_T], int]) -> None:
        self._most_bytes = most_bytes
        self._num_bytes_of = num_bytes
        self._num_bytes = 0
        self._answers: OrderedDict[bytes, _T] = OrderedDict()

    def find(self, mark: bytes) -> _T | None:
        """The answer that was kept under the mark, if it still is."""
        answer = self._answers.get(mark)
        if answer is not None:
            self._answers.move_to_end(mark)
        return answer

    def keep(self, mark: bytes, answer: _T) -> None:
        """Remember an answer, and forget others to make room; one that is kept already stays."""
        if mark in self._answers:
            return
        self._answers[mark] = answer
        self._num_bytes += self._num_bytes_of(answer)
        while self._num_bytes > self._most_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._num_bytes -= self._num_bytes_of(oldest)


class AnswerCache(BoundedCache[Completion]):
    """One engine's memory of its answers."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        super().__init__(most_bytes, _num_bytes)
        # A task makes few parameters for its many requests. None: left to chance.
        self._digests: WeakKeyDictionary[Params, Any | None] = WeakKeyDictionary()

    def mark(self, request: Request) -> bytes | None:
        """What requests with the same answer have in common; None where chance has a part in it."""
        params = request.params
        if params not in self._digests:
            self._digests[params] = _digest(params) if is_repeatable(params) else None
        digest = self._digests[params]
        if digest is None:
            return None
        digest = digest.copy()
        num_tokens = len(request.prompt_token_ids)
        digest.update(f"{request.model}\0{request.adapter}\0{num_tokens}\0".encode())
        digest.update(array("i", request.prompt_token_ids))
        if request.media is not None:
            digest.update(request.media.kind.encode())
            digest.update(request.media.data)
        mark: bytes = digest.digest()
        return mark


def is_repeatable(params: Params) -> bool:
    """Whether the same request has the same answer again: nothing is drawn, or from a seed."""
    if isinstance(params, Pooling):
        return True
    values = params.values
    # By default vLLM draws, at temperature 1.
    greedy = values.get("temperature") == 0 or values.get("top_k") == 1
    return greedy or values.get("seed") is not None


def _digest(params: Params) -> Any:
    """A hash that has read the parameters, to be copied for each prompt."""
    kind = params.task if isinstance(params, Pooling) else "generate"
    values = json.dumps(dict(params.values), sort_keys=True, default=repr)
    return hashlib.blake2b(f"{kind}\0{values}\0".encode(), digest_size=_MARK_BYTES)


def _num_bytes(completion: Completion) -> int:
    """About what a completion takes in memory."""
    num_bytes = _OVERHEAD_BYTES + len(completion.text)
    for numbers in (completion.choice_logprobs, completion.prompt_logprobs):
        num_bytes += _BYTES_PER_FLOAT * len(numbers or ())
    for token in completion.tokens or ():
        num_bytes += _BYTES_PER_TOKEN * (1 + len(token.top))
    return num_bytes if completion.vector is None else num_bytes + completion.vector.nbytes
