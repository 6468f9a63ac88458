"""The scheduler: every row answered once and in its place, and an engine that never waits."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from factories import rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import EngineInfo, RequestRefused
from pipeline.fake import FakeEngine, FakeSettings
from pipeline.scheduler import Load, Scheduler, UnitInFlight
from pipeline.schema import Answer, Completion, Reject, RejectClass, Request

Prompt = list[int] | Reject

MAX_TOKENS = 6
MAX_MODEL_LEN = 12
EARLIER = Reject(RejectClass.EMPTY_INPUT, "the prompt is empty")
# More than the context holds, so that some rows are too long.
PROMPTS = st.one_of(
    st.just(EARLIER), st.lists(st.integers(0, 2**24 - 1), max_size=MAX_MODEL_LEN - MAX_TOKENS + 2)
)
UNITS = st.lists(st.lists(PROMPTS, max_size=12), max_size=6)


class ScriptedEngine:
    """An engine whose prompts are scripts: `[steps, ...]` ends with "stop" after so many steps.

    A prompt of 0 steps is refused. It remembers what it was given and how full it was.
    """

    def __init__(self, max_num_seqs: int = 4, max_model_len: int = 1000) -> None:
        self.info = EngineInfo("scripted", "1", max_model_len, max_num_seqs)
        self.prompts: list[list[int]] = []
        self.most_requests = 0
        self._waiting: list[Request] = []
        self._running: dict[Request, int] = {}

    def add(self, request: Request) -> None:
        self.prompts.append(list(request.prompt_token_ids))
        if not request.prompt_token_ids[0]:
            raise RequestRefused("scripted to be refused")
        self._waiting.append(replace(request, prompt_token_ids=tuple(request.prompt_token_ids)))
        self.most_requests = max(self.most_requests, len(self._waiting) + len(self._running))

    def step(self) -> Sequence[Completion]:
        while self._waiting and len(self._running) < self.info.max_num_seqs:
            request = self._waiting.pop(0)
            self._running[request] = request.prompt_token_ids[0]
        self._running = {request: left - 1 for request, left in self._running.items()}
        ended = [request for request, left in self._running.items() if not left]
        for request in ended:
            del self._running[request]
        return [self._completion(request) for request in ended]

    @staticmethod
    def _completion(request: Request) -> Completion:
        ids = request.prompt_token_ids
        return Completion(request.key, str(list(ids)), "stop", len(ids), ids[0], -1.0)


def finish(scheduler: Scheduler) -> list[UnitInFlight]:
    """Step until nothing is left; the units in the order in which they came back."""
    units = []
    while scheduler.has_work:
        units += scheduler.step()
    return units


def answers_of(unit: UnitInFlight) -> list[Answer | None]:
    """The unit's answers, without the keys that the scheduler gave to its requests."""
    return [
        replace(answer, key=0) if isinstance(answer, Completion) else answer
        for answer in unit.answers
    ]


def texts_of(unit: UnitInFlight) -> list[str]:
    """What a scripted engine wrote into each row: the row's own prompt."""
    return [answer.text for answer in unit.answers if isinstance(answer, Completion)]


def in_chunks(table: pa.Table, size: int) -> pa.Table:
    """The same table, its columns in chunks of so many rows, each with an offset of its own."""
    pieces = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    return pa.concat_tables([table.slice(0, 0), *pieces])


def ask_alone(fake: FakeSettings, prompt: Prompt) -> Answer | RejectClass:
    """What a row must come to: its answer from an engine that has no other row."""
    if isinstance(prompt, Reject):
        return prompt
    if len(prompt) + MAX_TOKENS > MAX_MODEL_LEN:
        return RejectClass.PROMPT_TOO_LONG
    engine = FakeEngine(fake, MAX_TOKENS)
    try:
        engine.add(Request(0, prompt))
    except RequestRefused:
        return RejectClass.ENGINE_ERROR
    ended: Sequence[Completion] = []
    while not ended:
        ended = engine.step()
    return RejectClass.ENGINE_ERROR if ended[0].finish_reason == "error" else ended[0]


def assert_answered(unit: UnitInFlight, prompts: Iterable[Prompt], fake: FakeSettings) -> None:
    """Each row of the unit holds what it gets alone; for a new reject its class."""
    expected = [ask_alone(fake, prompt) for prompt in prompts]
    found = [
        answer.reject_class
        if isinstance(answer, Reject) and isinstance(wanted, RejectClass)
        else answer
        for answer, wanted in zip(answers_of(unit), expected, strict=True)
    ]
    assert found == expected


@settings(max_examples=150, deadline=None)
@given(
    units=UNITS,
    steps_between=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    max_num_seqs=st.integers(1, 5),
    chunk=st.integers(1, 12),
    rates=st.sampled_from([(0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3), (1.0, 0.0)]),
)
def test_every_row_gets_its_own_answer_and_every_unit_comes_back_once(
    units: list[list[Prompt]],
    steps_between: list[int],
    max_num_seqs: int,
    chunk: int,
    rates: tuple[float, float],
) -> None:
    """Whatever runs beside it, a row's answer is the one that it gets alone, in its own place."""
    fake = FakeSettings(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_num_seqs,
        output_tokens=5,
        refuse_rate=rates[0],
        error_rate=rates[1],
    )
    scheduler = Scheduler(FakeEngine(fake, MAX_TOKENS), MAX_TOKENS)
    submitted, finished = [], []
    for prompts, steps in zip(units, steps_between, strict=False):
        submitted.append(scheduler.submit(in_chunks(rendered(prompts), chunk)))
        for _ in range(steps):
            finished += scheduler.step()
    finished += finish(scheduler)
    assert sorted(map(id, finished)) == sorted(map(id, submitted))
    for unit, prompts in zip(submitted, units, strict=True):
        assert_answered(unit, prompts, fake)
    assert (scheduler.load.num_running, scheduler.load.num_units) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.lists(st.integers(0, 5), max_size=15), max_size=5),
    max_num_seqs=st.integers(1, 4),
)
def test_never_more_than_the_window_and_oldest_unit_first(
    units: list[list[int]], max_num_seqs: int
) -> None:
    """At most twice the batch is in the engine; rows are sent in order, unit after unit."""
    engine = ScriptedEngine(max_num_seqs)
    scheduler = Scheduler(engine, 1)
    rows = [
        [[steps, number, row] for row, steps in enumerate(unit)]
        for number, unit in enumerate(units)
    ]
    for unit in rows:
        scheduler.submit(rendered(unit))
    finish(scheduler)
    assert engine.prompts == [prompt for unit in rows for prompt in unit]
    assert engine.most_requests <= 2 * max_num_seqs


@pytest.mark.parametrize("prompts", [[], [EARLIER], [EARLIER] * 30], ids=["none", "one", "many"])
def test_a_unit_with_nothing_to_ask_comes_back_in_one_step(prompts: list[Prompt]) -> None:
    """A unit without rows, or with all rows rejected before, waits for no other unit's rows."""
    engine = ScriptedEngine()
    scheduler = Scheduler(engine, 1)
    busy = scheduler.submit(rendered([[50]]))
    idle = scheduler.submit(rendered(prompts))
    assert scheduler.step() == [idle]
    assert idle.answers == prompts
    assert finish(scheduler) == [busy]
    assert engine.prompts == [[50]]


def test_a_unit_whose_rows_are_all_refused_comes_back() -> None:
    """Refusals alone end a unit, in the very step that sent them."""
    scheduler = Scheduler(ScriptedEngine(), 1)
    unit = scheduler.submit(rendered([[0, row] for row in range(30)]))
    assert scheduler.step() == [unit]
    assert {answer.reject_class for answer in unit.answers if isinstance(answer, Reject)} == {
        RejectClass.ENGINE_ERROR
    }
    assert len(unit.answers) == 30


def test_a_long_answer_does_not_hold_back_the_next_unit() -> None:
    """There is no batch barrier: beside one long answer the next units' rows run and finish."""
    scheduler = Scheduler(ScriptedEngine(max_num_seqs=4), 1)
    slow = scheduler.submit(rendered([[100, 0], [2, 1], [2, 2]]))
    quick = [scheduler.submit(rendered([[3, row] for row in range(9)])) for _ in range(2)]
    finished = []
    for _ in range(30):
        finished += scheduler.step()
    assert finished == quick
    assert all(texts_of(unit) == [str([3, row]) for row in range(9)] for unit in quick)
    assert scheduler.load.num_running == 1
    assert finish(scheduler) == [slow]
    assert texts_of(slow) == ["[100, 0]", "[2, 1]", "[2, 2]"]


def test_the_engine_is_full_at_every_step_while_rows_are_left() -> None:
    """A place that becomes free is taken in the next step, also by another unit's row."""
    engine = ScriptedEngine(max_num_seqs=4)
    scheduler = Scheduler(engine, 1)
    for _ in range(10):
        scheduler.submit(rendered([[1], [1], [1]]))
    num_steps = 0
    while scheduler.has_work:
        scheduler.step()
        num_steps += 1
    # 30 rows of one step each, four at a time; the last unit comes back with its last row.
    assert num_steps == 8


def test_a_prompt_that_leaves_no_room_for_its_answer_is_rejected_with_the_numbers() -> None:
    """Prompt and longest answer must fit into the context; what fits exactly is answered."""
    scheduler = Scheduler(ScriptedEngine(max_model_len=100), 90)
    unit = scheduler.submit(rendered([[1] * 10, [1] * 11, [1] * 200, [1]]))
    finish(scheduler)
    fits, one_too_long, far_too_long, short = unit.answers
    assert isinstance(fits, Completion) and isinstance(short, Completion)
    for answer, length in ((one_too_long, "11"), (far_too_long, "200")):
        assert isinstance(answer, Reject)
        assert answer.reject_class is RejectClass.PROMPT_TOO_LONG
        assert answer.attempts == 0
        assert all(number in answer.message for number in (length, "90", "100")), answer.message


@pytest.mark.parametrize(("length", "is_answered"), [(99, True), (100, False)])
def test_without_a_limit_an_answer_needs_room_for_one_token(length: int, is_answered: bool) -> None:
    """With `max_tokens: null` a prompt that fills the context has no answer to give."""
    scheduler = Scheduler(ScriptedEngine(max_model_len=100), None)
    unit = scheduler.submit(rendered([[1] * length]))
    finish(scheduler)
    assert isinstance(unit.answers[0], Completion) == is_answered


@pytest.mark.parametrize(
    ("fake", "words"),
    [(FakeSettings(refuse_rate=1), "refuses"), (FakeSettings(error_rate=1), "ended")],
    ids=["refused", "finish reason error"],
)
def test_what_the_engine_cannot_answer_is_an_engine_error(fake: FakeSettings, words: str) -> None:
    """A refused request and one that ends with "error" are rejects that were tried once."""
    scheduler = Scheduler(FakeEngine(fake, MAX_TOKENS), MAX_TOKENS)
    unit = scheduler.submit(rendered([[1, 2, 3]]))
    finish(scheduler)
    (answer,) = unit.answers
    assert isinstance(answer, Reject)
    assert (answer.reject_class, answer.attempts) == (RejectClass.ENGINE_ERROR, 1)
    assert words in answer.message


def test_a_dead_engine_is_an_exception() -> None:
    """What kills the engine is not taken for a row's fault."""
    dying = FakeEngine(FakeSettings(crash_on="!"), MAX_TOKENS)
    scheduler = Scheduler(dying, MAX_TOKENS)
    scheduler.submit(rendered([[ord("!")]]))
    with pytest.raises(RuntimeError, match="dies"):
        scheduler.step()


def test_the_load_counts_what_runs_and_the_tokens_of_what_ended() -> None:
    """Load tells the requests in the engine, the open units, and all tokens so far."""
    scheduler = Scheduler(ScriptedEngine(), 1)
    assert scheduler.load == Load(0, 0, 0, 0)
    scheduler.submit(rendered([[1, 7, 7], [2, 7], EARLIER]))
    scheduler.submit(rendered([[3]]))
    assert scheduler.load == Load(0, 2, 0, 0)
    loads = []
    while scheduler.has_work:
        scheduler.step()
        loads.append(scheduler.load)
    assert loads == [Load(2, 2, 3, 1), Load(1, 1, 5, 3), Load(0, 0, 6, 6)]


def test_a_units_seconds_end_with_its_last_answer() -> None:
    """A unit's time runs from its submission to its end, and is known when it comes back."""
    scheduler = Scheduler(ScriptedEngine(), 1)
    unit = scheduler.submit(rendered([[3]]))
    finish(scheduler)
    assert unit.submitted_at <= unit.finished_at
    assert unit.seconds == unit.finished_at - unit.submitted_at
