"""The pool on a virtual clock: replicas that wait for none, full batches, prefixes in the cache.

The figures are exact: the same rows, the real scheduler, plan and rule of units in flight.
"""

from functools import cache

import pytest
from tokenmill.plan.plan import RowGroup, Shard
from tokenmill.plan.units import UnitSize, plan_units
from tokenmill.request import Request, Sampling

from bench import lost, prefixes, tail
from bench.prefixes import PrefixCache, block_marks
from bench.virtual import VirtualEngine, simulate, unit_of

ROWS = 10_000


@cache
def outcome(*speeds: float) -> tail.Outcome:
    return tail.run(speeds, ROWS, max_num_seqs=16)


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_log_normal_lengths_end_near_the_optimum(replicas: int) -> None:
    """Batches stay full behind units that wait for their longest rows, to the end of the run."""
    assert outcome(*[1.0] * replicas).ratio <= 1.05


def test_64_replicas_end_together() -> None:
    """Sixty-four share the work as one does, with a batch of four each."""
    assert tail.run([1.0] * 64, 1_000, 4).ratio <= 1.05


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_slow_replica_gets_less(replicas: int) -> None:
    """One that is three times slower does not hold the others up at the end."""
    assert outcome(1 / 3, *[1.0] * (replicas - 1)).ratio <= 1.10


def test_eight_replicas_do_eight_times_the_work() -> None:
    """Eight times the rows on eight replicas take at most 1/0.95 of one's time."""
    one, eight = (outcome(*[1.0] * number).seconds for number in (1, 8))
    assert one / eight >= 0.95


def test_a_kill_loses_the_batch_and_a_part_of_a_unit() -> None:
    """Of rows that are equally long: units are answered one after another, whatever is ready."""
    lengths = lost.equal_lengths(1_000)
    assert lost.begun_and_lost(lengths, lost.SEQS) <= lost.SEQS
    assert lost.begun_and_lost(lengths, 3 * lost.SEQS) <= 3 * lost.SEQS


def request(prompt: list[int]) -> Request:
    return Request(prompt, Sampling({"max_tokens": 1}))


def test_a_block_is_found_by_all_that_stands_before_it() -> None:
    """Equal blocks behind different ones are different; a prompt's last token is never found."""
    assert len(block_marks([1] * 32)) == 1
    assert len(block_marks([1] * 33)) == 2
    assert block_marks([1] * 33)[0] == block_marks([1] * 16 + [2] * 17)[0]
    assert block_marks([1] * 33)[1] != block_marks([2] * 16 + [1] * 17)[1]


def test_a_cache_forgets_what_was_used_the_longest_ago() -> None:
    """Two blocks are kept: of three prompts of one each, the first is forgotten."""
    blocks = PrefixCache(2)
    prompts = [request([token] * 17) for token in (1, 2, 3)]
    for asked in prompts:
        blocks.enter(asked)
        blocks.leave(asked)
    for asked, found in zip(reversed(prompts), (16, 32, 32), strict=True):
        blocks.enter(asked)
        blocks.leave(asked)
        assert blocks.found_tokens == found


def test_a_running_requests_blocks_are_kept() -> None:
    """However small the cache is, what a request in the batch uses is found."""
    blocks = PrefixCache(1)
    held, other = request([1] * 17), request([2] * 17)
    blocks.enter(held)
    blocks.enter(other)
    blocks.leave(other)
    blocks.enter(held)
    assert blocks.found_tokens == 16


def test_one_instruction_is_computed_once_a_replica() -> None:
    """All but nothing of what an unlimited cache finds, with room for the batch alone."""
    prompts = prefixes.with_prefixes(1, 2_000, 64, 16)
    assert prefixes.share_found(prompts, 4, 64 * 80, 64) >= 0.95


def test_interleaved_prefixes_stay_where_the_cache_holds_them() -> None:
    """Two hundred prefixes over four replicas, and room for twice their tokens."""
    prompts = prefixes.with_prefixes(200, 10_000, 64, 16)
    assert prefixes.share_found(prompts, 4, 2 * 200 * 64, 64) >= 0.90


def test_a_documents_questions_share_it() -> None:
    """Five questions in a row find their document, but where a unit ends between them."""
    prompts = prefixes.with_questions(500, 96, 5)
    assert prefixes.share_found(prompts, 4, 64 * 128, 64) >= 0.95


def test_no_engine_holds_more_than_two_batches() -> None:
    """However many units a replica has: rows in its engine are twice its batch at most."""
    engines = [VirtualEngine(8, lambda asked: asked.prompt_token_ids[0]) for _ in range(2)]
    units = plan_units([Shard("a.parquet", 1, "1", (RowGroup(500, 1),))], UnitSize(rows=20), 0)
    simulate(units, lambda unit: unit_of([[3]] * unit.num_rows), engines, 5)
    assert [engine.most_held for engine in engines] == [16, 16]
