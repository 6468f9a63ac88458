"""Requests that repeat: asked once, answered everywhere, unless an answer is left to chance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.factories import job, rendered, row_tasks
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Params, Pooling, Request, Sampling
from tokenmill.scheduling.dedup.answer_cache import AnswerCache
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.scheduler import Scheduler

GREEDY = {"temperature": 0, "max_tokens": 6}
UNITS = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=5)


class Asked(FakeEngine):
    """The fake engine, and the prompts that it was given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(FakeSettings(output_tokens=3, **settings))
        self.prompts: list[Sequence[int]] = []

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self.prompts.append(request.prompt_token_ids)


def run(
    engine: Asked,
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
def test_what_repeats_is_asked_once_and_each_row_has_its_answer(
    units: list[list[int]], max_num_seqs: int
) -> None:
    """Across units, in flight and after: one request a prompt; the rows are as without reuse."""
    engine, plain = Asked(max_num_seqs=max_num_seqs), Asked(max_num_seqs=max_num_seqs)
    reused = run(engine, units, deduplicate=True)
    expected = run(plain, units, deduplicate=False)
    assert [unit.answers for unit in reused] == [unit.answers for unit in expected]
    distinct = {token for unit in units for token in unit}
    assert sorted(engine.prompts) == sorted([token] for token in distinct)
    assert sum(unit.num_reused for unit in reused) == sum(map(len, units)) - len(distinct)
    assert [unit.num_reused for unit in expected] == [0] * len(units)


@pytest.mark.parametrize(
    ("values", "num_asked"),
    [
        ({}, 3),
        ({"temperature": 0.7}, 3),
        ({"temperature": 0.7, "seed": 3}, 1),
        ({"temperature": 0.7, "top_k": 1}, 1),
    ],
    ids=["default", "warm", "seeded", "top 1"],
)
def test_what_is_drawn_is_asked_each_time(values: dict[str, Any], num_asked: int) -> None:
    """At a temperature above 0 (vLLM's default is 1) answers differ, unless a seed fixes them."""
    engine = Asked()
    run(engine, [[1, 1, 1]], {"max_tokens": 6, **values})
    assert len(engine.prompts) == num_asked


class Unlucky(Asked):
    """Its first answers are none."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self._failures = num_failures

    def step(self) -> Sequence[Completion]:
        ended = []
        for completion in super().step():
            fails = self._failures > 0
            self._failures -= fails
            reason = "error" if fails else completion.finish_reason
            ended.append(Completion(completion.key, completion.text, reason, 1, 1, None))
        return ended


def test_a_request_that_fails_takes_no_other_along() -> None:
    """Those that waited for its answer ask again, one after another, until one is answered."""
    engine = Unlucky(2)
    (unit,) = run(engine, [[1] * 5])
    results = [answer.result.reject for answer in unit.answers if answer is not None]
    assert [reject is None for reject in results] == [False, False, True, True, True]
    assert (len(engine.prompts), unit.num_reused) == (3, 2)


def test_a_request_out_of_time_takes_no_other_along() -> None:
    """Each of the same kind has the time that it is allowed."""
    engine = Asked(hang_on="\x01")
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


def request(tokens: Sequence[int], params: Params, **where: Any) -> Request:
    return Request(list(tokens), params, **where)


def test_all_that_an_answer_depends_on_is_in_its_mark() -> None:
    """Another prompt, sampling, adapter, model or pooling task has another; equal ones the same."""
    reuse = AnswerCache()
    different = [
        request([1, 2], Sampling(GREEDY)),
        request([1], Sampling(GREEDY)),
        request([2, 1], Sampling(GREEDY)),
        request([1, 2], Sampling({**GREEDY, "max_tokens": 7})),
        request([1, 2], Sampling({**GREEDY, "structured_outputs": {"regex": "a"}})),
        request([1, 2], Sampling(GREEDY), adapter="a"),
        request([1, 2], Sampling(GREEDY), model="a"),
        request([1, 2], Pooling("embed")),
        request([1, 2], Pooling("classify")),
        request([1, 2], Pooling("classify", {"use_activation": False})),
    ]
    marks = [reuse.mark(each) for each in different]
    assert None not in marks
    assert len(set(marks)) == len(different)
    assert reuse.mark(request([1, 2], Sampling(dict(reversed(GREEDY.items()))))) == marks[0]


def test_the_memory_is_bounded_and_forgets_what_is_asked_least_lately() -> None:
    """Vectors and texts count by their size."""
    reuse = AnswerCache(most_bytes=20_000)

    def completion(key: int) -> Completion:
        return Completion(key, "x" * 1000, "stop", 1, 1, None, vector=np.zeros(750, np.float32))

    marks = [bytes([at]) for at in range(8)]
    for at, mark in enumerate(marks):
        assert reuse.find(marks[0]) is not None or not at
        reuse.keep(mark, completion(at))
    kept = [mark for mark in marks if reuse.find(mark) is not None]
    assert kept == [marks[0], *marks[-3:]]


def test_rejected_rows_are_never_asked() -> None:
    """A prompt that is too long has no answer to share."""
    engine = Asked(max_model_len=8)
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    scheduler = Scheduler(engine, tasks, deduplicate=True)
    unit = scheduler.submit(rendered([[1] * 5] * 3))
    scheduler.step()
    rejects = [answer.result.reject for answer in unit.answers if answer is not None]
    assert all(isinstance(reject, Reject) for reject in rejects)
    assert engine.prompts == []
