"""Measure how many prompt tokens the prefix caches of several replicas find.

The cache is a small model of vLLM's: blocks of tokens, identified by their whole prefix, kept while
a request uses them, and evicted least recently used first. The figure is the number of tokens
found, divided by the number that one unlimited cache for all replicas would find.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

import pyarrow as pa
from tokenmill.plan.plan import RowGroup, Shard, Unit
from tokenmill.plan.units import UnitSize, plan_units, units_in_flight
from tokenmill.request import Request

from bench.measure import Figure, at_least
from bench.virtual import VirtualEngine, simulate, unit_of

Prompt = Sequence[int]

_BLOCK_TOKENS = 16
_MAX_NUM_SEQS = 64
_UNIT_ROWS = 64
_STEPS = 16
_SEED = 1
_UNIT = "of unlimited"


class PrefixCache:
    """One engine's cache of `num_blocks` blocks; those of running requests are never evicted."""

    def __init__(self, num_blocks: int) -> None:
        self.found_tokens = 0
        self._num_blocks = num_blocks
        self._users: Counter[int] = Counter()
        # The blocks that no request uses, least recently used first.
        self._free: OrderedDict[int, None] = OrderedDict()

    def enter(self, request: Request) -> None:
        """Count the request's tokens that are cached, and hold all of its blocks."""
        marks = block_marks(request.prompt_token_ids)
        is_found = True
        for mark in marks:
            is_found = is_found and (mark in self._users or mark in self._free)
            if is_found:
                self.found_tokens += _BLOCK_TOKENS
            self._free.pop(mark, None)
            self._users[mark] += 1
        while self._free and len(self._free) + len(self._users) > self._num_blocks:
            self._free.popitem(last=False)

    def leave(self, request: Request) -> None:
        """Release the request's blocks; the last ones are evicted first."""
        for mark in reversed(block_marks(request.prompt_token_ids)):
            self._users[mark] -= 1
            if not self._users[mark]:
                del self._users[mark]
                self._free[mark] = None


def block_marks(prompt: Prompt, block_tokens: int = _BLOCK_TOKENS) -> list[int]:
    """Return a hash of each whole block and its prefix; the last token is always computed."""
    marks = []
    mark = 0
    for end in range(block_tokens, len(prompt), block_tokens):
        mark = hash((mark, *prompt[end - block_tokens : end]))
        marks.append(mark)
    return marks


def found_by_unlimited(prompts: Sequence[Prompt], block_tokens: int = _BLOCK_TOKENS) -> int:
    """Return the number of tokens that one unlimited cache would find."""
    marks = [mark for prompt in prompts for mark in block_marks(prompt, block_tokens)]
    return block_tokens * (len(marks) - len(set(marks)))


def share_found(
    prompts: Sequence[Prompt], replicas: int, cache_tokens: int, rows_per_unit: int
) -> float:
    """Return the tokens found by the replicas' caches, divided by those of an unlimited cache."""
    shard = Shard("a.parquet", 1, "1", (RowGroup(len(prompts), 1),))
    units = plan_units([shard], UnitSize(rows=rows_per_unit), 0)
    caches = [PrefixCache(cache_tokens // _BLOCK_TOKENS) for _ in range(replicas)]

    def render(unit: Unit) -> pa.Table:
        return unit_of(prompts[unit.first_row : unit.end_row])

    engines = [_engine(cache) for cache in caches]
    simulate(units, render, engines, units_in_flight(units, _MAX_NUM_SEQS))
    return sum(cache.found_tokens for cache in caches) / found_by_unlimited(prompts)


def _engine(cache: PrefixCache) -> VirtualEngine:
    def seconds(request: Request) -> float:
        cache.enter(request)
        # Requests don't all end at once, because their lengths differ.
        return _STEPS + request.prompt_token_ids[-1] % _STEPS

    return VirtualEngine(_MAX_NUM_SEQS, seconds, cache.leave)


def with_prefixes(num_prefixes: int, num_rows: int, prefix_tokens: int, own: int) -> list[Prompt]:
    """Return prompts with a random one of `num_prefixes` prefixes and `own` tokens per row."""
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    prefixes = [_tokens(draw, prefix_tokens) for _ in range(num_prefixes)]
    return [[*draw.choice(prefixes), *_tokens(draw, own)] for _ in range(num_rows)]


def with_questions(num_documents: int, document_tokens: int, questions: int) -> list[Prompt]:
    """Return the questions of each document, in order; the prompt starts with the document."""
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    asked = [_tokens(draw, 2 * _BLOCK_TOKENS) for _ in range(questions)]
    documents = [_tokens(draw, document_tokens) for _ in range(num_documents)]
    return [[*document, *question] for document in documents for question in asked]


def figures() -> Iterator[Figure]:
    """Run the part `prefixes`: half a minute, four replicas."""
    one = with_prefixes(1, 5_000, 400, 100)
    yield at_least(0.95, "one instruction, cache of 40,000 tokens", _share(one, 40_000), _UNIT)
    many = with_prefixes(200, 20_000, 512, 128)
    name = "200 prefixes of 512 tokens, cache of"
    yield at_least(0.90, f"{name} 200,000", _share(many, 200_000), _UNIT)
    for tokens in (130_000, 90_000, 45_000):
        yield Figure(f"{name} {tokens:,}", _share(many, tokens), _UNIT)
    asked = with_questions(500, 1_500, 5)
    name = "five questions about each document"
    # Each prompt begins with the 1,500 tokens of its document.
    yield at_least(0.95, f"{name}, in order", _share(asked, 130_000), _UNIT)
    random.Random(_SEED).shuffle(asked)  # noqa: S311 - no secret
    yield Figure(f"{name}, shuffled", _share(asked, 130_000), _UNIT)


def _share(prompts: Sequence[Prompt], cache_tokens: int) -> float:
    return share_found(prompts, 4, cache_tokens, _UNIT_ROWS)


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(50_000) for _ in range(count)]
