"""Equal requests are sent once, and share the answer if it is deterministic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.factories import job, rendered, row_tasks
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason, Params, Pooling, Request, Sampling
from tokenmill.scheduling.dedup.answer_cache import AnswerCache
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.scheduler import Scheduler

GREEDY = {"temperature": 0, "max_tokens": 6}
UNITS = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=5)


class RecordingEngine(FakeEngine):
    """The fake engine, which records the prompts that are added."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(FakeSettings(output_tokens=3, **settings))
        self.prompts: list[Sequence[int]] = []

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self.prompts.append(request.prompt_token_ids)


def run(
    engine: RecordingEngine,
    units: Sequence[Sequence[int]],
    sampling: dict[str, Any] = GREEDY,
    *,
    deduplicate: bool = True,
) -> list[UnitInFlight]:
    """Units whose rows are prompts of one token, through a scheduler."""
    tasks = row_tasks(job({"sampling": sampling}).steps)
    scheduler = Scheduler(engine, tasks, deduplicate=deduplicate)
    submitted = [scheduler.submit(rendered([[token] for token in unit])) for unit in units]
    while scheduler.has_work:
        scheduler.step()
    assert scheduler.load.num_running == 0
    return submitted


@given(units=UNITS, max_num_seqs=st.integers(1, 4))
def test_equal_requests_are_sent_once_and_each_row_has_its_answer(
    units: list[list[int]], max_num_seqs: int
) -> None:
    """Across units, in flight and later: one request per prompt; rows are as without reuse."""
    engine, plain = (
        RecordingEngine(max_num_seqs=max_num_seqs),
        RecordingEngine(max_num_seqs=max_num_seqs),
    )
    reused = run(engine, units, deduplicate=True)
    expected = run(plain, units, deduplicate=False)
    assert [unit.answers for unit in reused] == [unit.answers for unit in expected]
    distinct = {token for unit in units for token in unit}
    assert sorted(engine.prompts) == sorted([token] for token in distinct)
    assert sum(unit.num_reused for unit in reused) == sum(map(len, units)) - len(distinct)
    assert [unit.num_reused for unit in expected] == [0] * len(units)


@pytest.mark.parametrize(
    ("values", "num_sent"),
    [
        ({}, 3),
        ({"temperature": 0.7}, 3),
        ({"temperature": 0.7, "seed": 3}, 1),
        ({"temperature": 0.7, "top_k": 1}, 1),
    ],
    ids=["default", "warm", "seeded", "top 1"],
)
def test_sampled_answers_are_not_shared(values: dict[str, Any], num_sent: int) -> None:
    """At temperatures above 0 (vLLM's default is 1) answers differ, unless there is a seed."""
    engine = RecordingEngine()
    run(engine, [[1, 1, 1]], {"max_tokens": 6, **values})
    assert len(engine.prompts) == num_sent


class FailingEngine(RecordingEngine):
    """Its first answers end with an error."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self._failures = num_failures

    def step(self) -> Sequence[Completion]:
        ended = []
        for completion in super().step():
            fails = self._failures > 0
            self._failures -= fails
            reason = FinishReason.ERROR if fails else completion.finish_reason
            ended.append(Completion(completion.key, completion.text, reason, 1, 1, None))
        return ended


def test_a_request_that_fails_fails_alone() -> None:
    """Requests that waited for its answer are sent, one after another, until one is answered."""
    engine = FailingEngine(2)
    (unit,) = run(engine, [[1] * 5])
    results = [answer.result.reject for answer in unit.answers if answer is not None]
    assert [reject is None for reject in results] == [False, False, True, True, True]
    assert (len(engine.prompts), unit.num_reused) == (3, 2)


def test_a_request_that_expires_expires_alone() -> None:
    """Each equal request gets the full time limit."""
    engine = RecordingEngine(hang_on="\x01")
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    scheduler = Scheduler(engine, tasks, timeout_s=0.01, deduplicate=True)
    unit = scheduler.submit(rendered([[1], [1], [2]]))
    while scheduler.has_work:
        scheduler.step()
    rejects = [answer.result.reject for answer in unit.answers if answer is not None]
    assert [reject and reject.reject_class for reject in rejects] == [
        RejectClass.TIMEOUT,
        RejectClass.TIMEOUT,
        None,
    ]
    assert len(engine.prompts) == 3


def request_of(tokens: Sequence[int], params: Params, **fields: Any) -> Request:
    return Request(list(tokens), params, **fields)


def test_the_hash_covers_everything_that_an_answer_depends_on() -> None:
    """It differs by prompt, sampling, adapter, model and pooling task; equal requests share it."""
    cache = AnswerCache()
    different = [
        request_of([1, 2], Sampling(GREEDY)),
        request_of([1], Sampling(GREEDY)),
        request_of([2, 1], Sampling(GREEDY)),
        request_of([1, 2], Sampling({**GREEDY, "max_tokens": 7})),
        request_of([1, 2], Sampling({**GREEDY, "structured_outputs": {"regex": "a"}})),
        request_of([1, 2], Sampling(GREEDY), adapter="a"),
        request_of([1, 2], Sampling(GREEDY), model="a"),
        request_of([1, 2], Pooling("embed")),
        request_of([1, 2], Pooling("classify")),
        request_of([1, 2], Pooling("classify", {"use_activation": False})),
    ]
    hashes = [cache.request_hash(request) for request in different]
    assert None not in hashes
    assert len(set(hashes)) == len(different)
    equal = request_of([1, 2], Sampling(dict(reversed(GREEDY.items()))))
    assert cache.request_hash(equal) == hashes[0]


def test_memory_is_bounded_and_the_least_recently_used_answer_is_evicted() -> None:
    """Vectors and texts count with their size."""
    cache = AnswerCache(max_bytes=20_000)

    def completion(key: int) -> Completion:
        vector = np.zeros(750, np.float32)
        return Completion(key, "x" * 1000, FinishReason.STOP, 1, 1, None, vector=vector)

    hashes = [bytes([number]) for number in range(8)]
    for number, request_hash in enumerate(hashes):
        assert cache.get(hashes[0]) is not None or not number
        cache.put(request_hash, completion(number))
    cached = [request_hash for request_hash in hashes if cache.get(request_hash) is not None]
    assert cached == [hashes[0], *hashes[-3:]]


def test_rejected_rows_are_never_sent() -> None:
    """Prompts that are too long are rejected before equal requests are looked for."""
    engine = RecordingEngine(max_model_len=8)
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    scheduler = Scheduler(engine, tasks, deduplicate=True)
    unit = scheduler.submit(rendered([[1] * 5] * 3))
    scheduler.step()
    rejects = [answer.result.reject for answer in unit.answers if answer is not None]
    assert all(isinstance(reject, Reject) for reject in rejects)
    assert engine.prompts == []
