"""Reuse answers: equal requests for the same prompt and media have the same answer.

Corpora contain duplicates. A deterministic request (greedy, or with a seed) is sent once, and later
equal requests reuse its answer. The cache is bounded; it evicts the least recently used answer.
"""

import hashlib
import json
from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from tokenmill.request import Completion, Params, Pooling, Request

_MAX_BYTES = 64 * 2**20
# Estimated bytes of the Python objects per answer: the answer itself, its hash, its cache entry.
_OVERHEAD_BYTES = 700
_BYTES_PER_FLOAT = 32
# Of a generated token or one of its alternatives: a string, a float and the tuple of both.
_BYTES_PER_TOKEN = 150
_HASH_BYTES = 16


_T = TypeVar("_T")


class BoundedCache(Generic[_T]):
    """A cache of answers by request hash, of at most `max_bytes`.

    `num_bytes` returns the size of an answer.
    """

    def __init__(self, max_bytes: int, num_bytes: Callable[[_T], int]) -> None:
        self._max_bytes = max_bytes
        self._num_bytes_of = num_bytes
        self._num_bytes = 0
        self._answers: OrderedDict[bytes, _T] = OrderedDict()

    def get(self, request_hash: bytes) -> _T | None:
        """Return the cached answer, if there is one, and mark it as recently used."""
        answer = self._answers.get(request_hash)
        if answer is not None:
            self._answers.move_to_end(request_hash)
        return answer

    def put(self, request_hash: bytes, answer: _T) -> None:
        """Cache an answer and evict others to make room. A cached answer is not replaced."""
        if request_hash in self._answers:
            return
        self._answers[request_hash] = answer
        self._num_bytes += self._num_bytes_of(answer)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._num_bytes -= self._num_bytes_of(oldest)


class AnswerCache(BoundedCache[Completion]):
    """The completions of one engine."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        super().__init__(max_bytes, _num_bytes)
        # A task has few parameters and many requests. None: not deterministic.
        self._digests: WeakKeyDictionary[Params, Any | None] = WeakKeyDictionary()

    def request_hash(self, request: Request) -> bytes | None:
        """Return the hash of everything that the answer depends on; None if answers may differ."""
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
        request_hash: bytes = digest.digest()
        return request_hash


def is_repeatable(params: Params) -> bool:
    """Whether the same request always has the same answer: greedy, seeded, or pooling."""
    if isinstance(params, Pooling):
        return True
    values = params.values
    # By default vLLM samples at temperature 1.
    greedy = values.get("temperature") == 0 or values.get("top_k") == 1
    return greedy or values.get("seed") is not None


def _digest(params: Params) -> Any:
    """A hash object that has consumed the parameters, to be copied for each prompt."""
    kind = params.task if isinstance(params, Pooling) else "generate"
    values = json.dumps(dict(params.values), sort_keys=True, default=repr)
    return hashlib.blake2b(f"{kind}\0{values}\0".encode(), digest_size=_HASH_BYTES)


def _num_bytes(completion: Completion) -> int:
    """The approximate size of a completion in memory."""
    num_bytes = _OVERHEAD_BYTES + len(completion.text)
    for numbers in (completion.choice_logprobs, completion.prompt_logprobs):
        num_bytes += _BYTES_PER_FLOAT * len(numbers or ())
    for token in completion.tokens or ():
        num_bytes += _BYTES_PER_TOKEN * (1 + len(token.top))
    return num_bytes if completion.vector is None else num_bytes + completion.vector.nbytes
