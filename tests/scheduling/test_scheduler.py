"""The scheduler: every row is answered once, in its own position, and the engine never waits."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pyarrow as pa
import pytest
from helpers.factories import (
    job,
    rendered,
    rendered_rows,
    row_tasks,
    script,
    scripted_step,
    token_counts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.engine.base import EngineInfo, EngineUsage, RequestRefused
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason, Request, Sampling
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.load import ReplicaLoad
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.tasks.generation.answer_columns import mean_logprob
from tokenmill.tasks.generation.generate import Generate
from tokenmill.tasks.kinds import step_of
from tokenmill.tasks.row_tasks import AnsweredRow, RowResult, RowTasks
from tokenmill.tasks.task import PreparedRow
from tokenmill.tasks.unit_tables import Entries

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
    """An engine whose prompts are scripts: `[n, ...]` ends with "stop" after n steps.

    A prompt of 0 steps is refused. The engine records its prompts and how full it was.
    """

    def __init__(self, max_num_seqs: int = 4, max_model_len: int = 1000) -> None:
        self.info = EngineInfo("scripted", "1", max_model_len, max_num_seqs)
        self.prompts: list[list[int]] = []
        self.max_requests = 0
        self._waiting: list[tuple[int, Request]] = []
        self._running: dict[int, tuple[Request, int]] = {}

    def add(self, key: int, request: Request) -> None:
        self.prompts.append(list(request.prompt_token_ids))
        if not request.prompt_token_ids[0]:
            raise RequestRefused("scripted to be refused")
        self._waiting.append((key, request))
        self.max_requests = max(self.max_requests, len(self._waiting) + len(self._running))

    def step(self) -> Sequence[Completion]:
        while self._waiting and len(self._running) < self.info.max_num_seqs:
            key, request = self._waiting.pop(0)
            self._running[key] = (request, request.prompt_token_ids[0])
        self._running = {key: (request, left - 1) for key, (request, left) in self._running.items()}
        ended = [key for key, (_, left) in self._running.items() if not left]
        return [self._completion(key, self._running.pop(key)[0]) for key in ended]

    @property
    def usage(self) -> EngineUsage:
        return EngineUsage(len(self._running), len(self._waiting))

    @staticmethod
    def _completion(key: int, request: Request) -> Completion:
        ids = request.prompt_token_ids
        return Completion(key, str(list(ids)), FinishReason.STOP, len(ids), ids[0], -1.0)


@cache
def answering(max_tokens: int | None) -> RowTasks:
    """Tasks with one request per row and answers of at most `max_tokens` tokens."""
    return row_tasks(job({"sampling.max_tokens": max_tokens}).steps)


@cache
def scripted() -> RowTasks:
    """Tasks whose rows are scripts of several requests and rounds."""
    return row_tasks([scripted_step()])


def finish(scheduler: Scheduler) -> list[UnitInFlight]:
    """Step until there is no work; return the units in the order in which they came back."""
    units = []
    while scheduler.has_work:
        units += scheduler.step()
    return units


def answers_of(unit: UnitInFlight) -> list[AnsweredRow]:
    """The answers of the unit's rows; every row has one."""
    assert None not in unit.answers
    return [answer for answer in unit.answers if answer is not None]


def rejects_of(unit: UnitInFlight) -> list[Reject | None]:
    """Each row's reject, if any; a row has either cells or a reject."""
    results = [answer.result for answer in answers_of(unit)]
    assert all(bool(result.cells) == (result.reject is None) for result in results)
    return [result.reject for result in results]


def cells_of(unit: UnitInFlight, column: str) -> list[object]:
    """A column of the unit's answers; None for rows without the cell."""
    return [answer.result.cells.get(column) for answer in answers_of(unit)]


def rejected(reject: Reject) -> AnsweredRow:
    """A row that was rejected before it was sent to an engine."""
    return AnsweredRow(RowResult({}, reject))


def in_chunks(table: pa.Table, size: int) -> pa.Table:
    """The same table with its columns in chunks of `size` rows, each with its own offset."""
    chunks = [table.slice(start, size) for start in range(0, table.num_rows, size)]
    return pa.concat_tables([table.slice(0, 0), *chunks])


def answered(completion: Completion) -> AnsweredRow:
    """A row whose only request was answered with this completion."""
    cells = {
        "generated_text": completion.text,
        "finish_reason": completion.finish_reason,
        "cumulative_logprob": completion.cumulative_logprob,
        "mean_logprob": mean_logprob(completion),
    }
    result = RowResult(cells, None)
    counts = token_counts(completion.num_input_tokens, completion.num_generated_tokens)
    return AnsweredRow(result, counts)


def answer_alone(fake: FakeSettings, prompt: Prompt) -> AnsweredRow | RejectClass:
    """A row's expected answer: that of an engine with no other row; for a new reject its class."""
    if isinstance(prompt, Reject):
        return rejected(prompt)
    if len(prompt) + MAX_TOKENS > MAX_MODEL_LEN:
        return RejectClass.PROMPT_TOO_LONG
    engine = FakeEngine(fake)
    try:
        engine.add(0, Request(prompt, Sampling({"max_tokens": MAX_TOKENS})))
    except RequestRefused:
        return RejectClass.ENGINE_ERROR
    ended: Sequence[Completion] = []
    while not ended:
        ended = engine.step()
    is_error = ended[0].finish_reason == FinishReason.ERROR
    return RejectClass.ENGINE_ERROR if is_error else answered(ended[0])


def assert_answered(unit: UnitInFlight, prompts: Iterable[Prompt], fake: FakeSettings) -> None:
    """Each row of the unit has the answer that it gets alone."""
    expected = [answer_alone(fake, prompt) for prompt in prompts]
    actual = [
        answer.result.reject.reject_class
        if answer.result.reject is not None and isinstance(expectation, RejectClass)
        else answer
        for answer, expectation in zip(answers_of(unit), expected, strict=True)
    ]
    assert actual == expected
    rejects_of(unit)


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
    """Whatever else is in the engine, each row has the answer it gets alone, in its position."""
    fake = FakeSettings(
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=max_num_seqs,
        output_tokens=5,
        refuse_rate=rates[0],
        error_rate=rates[1],
    )
    scheduler = Scheduler(FakeEngine(fake), answering(MAX_TOKENS))
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
def test_the_window_is_never_exceeded_and_the_oldest_unit_goes_first(
    units: list[list[int]], max_num_seqs: int
) -> None:
    """The engine has at most twice its batch; rows are sent in order, unit after unit."""
    engine = ScriptedEngine(max_num_seqs)
    scheduler = Scheduler(engine, answering(1))
    rows = [
        [[steps, number, row] for row, steps in enumerate(unit)]
        for number, unit in enumerate(units)
    ]
    for unit in rows:
        scheduler.submit(rendered(unit))
    finish(scheduler)
    assert engine.prompts == [prompt for unit in rows for prompt in unit]
    assert engine.max_requests <= 2 * max_num_seqs


@pytest.mark.parametrize("prompts", [[], [EARLIER], [EARLIER] * 30], ids=["none", "one", "many"])
def test_a_unit_without_requests_comes_back_in_one_step(prompts: list[Prompt]) -> None:
    """A unit without rows, or with rejected rows only, does not wait for other units."""
    engine = ScriptedEngine()
    scheduler = Scheduler(engine, answering(1))
    busy = scheduler.submit(rendered([[50]]))
    idle = scheduler.submit(rendered(prompts))
    assert scheduler.step() == [idle]
    assert idle.answers == [rejected(EARLIER)] * len(prompts)
    assert finish(scheduler) == [busy]
    assert engine.prompts == [[50]]


def test_a_unit_whose_rows_are_all_refused_comes_back() -> None:
    """It comes back in the step in which its requests were refused."""
    scheduler = Scheduler(ScriptedEngine(), answering(1))
    unit = scheduler.submit(rendered([[0, row] for row in range(30)]))
    assert scheduler.step() == [unit]
    rejects = [reject for reject in rejects_of(unit) if reject is not None]
    assert {reject.reject_class for reject in rejects} == {RejectClass.ENGINE_ERROR}
    assert len(rejects) == 30


def test_a_refusal_has_the_reject_class_that_the_engine_chose() -> None:
    """For example, only the engine knows the length of a prompt with an image."""

    class Full(ScriptedEngine):
        def add(self, key: int, request: Request) -> None:  # noqa: ARG002
            raise RequestRefused("too long", RejectClass.PROMPT_TOO_LONG)

    scheduler = Scheduler(Full(), answering(1))
    unit = scheduler.submit(rendered([[1, 0]]))
    assert scheduler.step() == [unit]
    (reject,) = rejects_of(unit)
    assert reject == Reject(RejectClass.PROMPT_TOO_LONG, "too long", attempts=1)


def test_a_long_answer_does_not_delay_the_next_unit() -> None:
    """There is no batch barrier: during one long answer, the rows of later units are answered."""
    scheduler = Scheduler(ScriptedEngine(max_num_seqs=4), answering(1))
    slow = scheduler.submit(rendered([[100, 0], [2, 1], [2, 2]]))
    quick = [scheduler.submit(rendered([[3, row] for row in range(9)])) for _ in range(2)]
    finished = []
    for _ in range(30):
        finished += scheduler.step()
    assert finished == quick
    expected = [str([3, row]) for row in range(9)]
    assert all(cells_of(unit, "generated_text") == expected for unit in quick)
    assert scheduler.load.num_running == 1
    assert finish(scheduler) == [slow]
    assert cells_of(slow, "generated_text") == ["[100, 0]", "[2, 1]", "[2, 2]"]


def test_the_engine_is_full_in_every_step_while_there_are_rows() -> None:
    """When a request ends, another takes its place in the next step, also from another unit."""
    engine = ScriptedEngine(max_num_seqs=4)
    scheduler = Scheduler(engine, answering(1))
    for _ in range(10):
        scheduler.submit(rendered([[1], [1], [1]]))
    num_steps = 0
    while scheduler.has_work:
        scheduler.step()
        num_steps += 1
    # 30 rows of one step each, four at a time.
    assert num_steps == 8


def test_a_prompt_that_leaves_no_room_for_its_answer_is_rejected_with_the_numbers() -> None:
    """Prompt and longest answer must fit into the context; an exact fit is answered."""
    scheduler = Scheduler(ScriptedEngine(max_model_len=100), answering(90))
    unit = scheduler.submit(rendered([[1] * 10, [1] * 11, [1] * 200, [1]]))
    finish(scheduler)
    fits, one_too_long, far_too_long, short = rejects_of(unit)
    assert fits is None and short is None
    for reject, length in ((one_too_long, "11"), (far_too_long, "200")):
        assert reject is not None
        assert reject.reject_class is RejectClass.PROMPT_TOO_LONG
        assert reject.attempts == 0
        assert all(number in reject.message for number in (length, "90", "100")), reject.message


@pytest.mark.parametrize(("length", "is_answered"), [(99, True), (100, False)])
def test_without_a_limit_an_answer_needs_room_for_one_token(length: int, is_answered: bool) -> None:
    """With `max_tokens: null`, a prompt that fills the context leaves no room for an answer."""
    scheduler = Scheduler(ScriptedEngine(max_model_len=100), answering(None))
    unit = scheduler.submit(rendered([[1] * length]))
    finish(scheduler)
    assert (rejects_of(unit) == [None]) == is_answered


@pytest.mark.parametrize(
    ("fake", "words"),
    [(FakeSettings(refuse_rate=1), "refuses"), (FakeSettings(error_rate=1), "ended")],
    ids=["refused", "finish reason error"],
)
def test_a_request_that_the_engine_cannot_answer_is_an_engine_error(
    fake: FakeSettings, words: str
) -> None:
    """A refused request and one that ends with "error" are rejects after one attempt."""
    scheduler = Scheduler(FakeEngine(fake), answering(MAX_TOKENS))
    unit = scheduler.submit(rendered([[1, 2, 3]]))
    finish(scheduler)
    (reject,) = rejects_of(unit)
    assert reject is not None
    assert (reject.reject_class, reject.attempts) == (RejectClass.ENGINE_ERROR, 1)
    assert words in reject.message


@pytest.mark.parametrize(
    ("reason", "is_answered"),
    [
        *((reason, True) for reason in ("stop", "length", "repetition")),
        *((reason, False) for reason in ("abort", "error")),
    ],
)
def test_an_answer_that_was_cut_off_is_an_answer(reason: str, is_answered: bool) -> None:
    """Also one that the engine ended because it loops (`repetition_detection`)."""

    class Ending(FakeEngine):
        def step(self) -> Sequence[Completion]:
            return [replace(ended, finish_reason=FinishReason(reason)) for ended in super().step()]

    scheduler = Scheduler(Ending(FakeSettings()), answering(MAX_TOKENS))
    unit = scheduler.submit(rendered([[1, 2, 3]]))
    finish(scheduler)
    assert (rejects_of(unit) == [None]) == is_answered


def test_a_crash_of_the_engine_is_an_exception() -> None:
    """A crash is not treated as the fault of a row."""
    scheduler = Scheduler(FakeEngine(FakeSettings(crash_on="!")), answering(MAX_TOKENS))
    scheduler.submit(rendered([[ord("!")]]))
    with pytest.raises(RuntimeError, match="crashes"):
        scheduler.step()


def test_the_load_counts_running_requests_and_the_tokens_of_ended_ones() -> None:
    """It has the requests in the engine, the open units, and all tokens and rows so far."""
    scheduler = Scheduler(ScriptedEngine(), answering(1))
    assert scheduler.load == ReplicaLoad(0, 0, 0, 0)
    scheduler.submit(rendered([[1, 7, 7], [2, 7], EARLIER]))
    scheduler.submit(rendered([[3]]))
    assert scheduler.load == ReplicaLoad(0, 2, 0, 0)
    loads = []
    while scheduler.has_work:
        scheduler.step()
        loads.append(scheduler.load)
    assert loads == [
        ReplicaLoad(2, 2, 3, 1, 2, usage=EngineUsage(2)),
        ReplicaLoad(1, 1, 5, 3, 3, usage=EngineUsage(1)),
        ReplicaLoad(0, 0, 6, 6, 4),
    ]


def test_the_load_counts_held_requests_and_the_engines_seconds() -> None:
    """Requests of a begun row that do not fit into the window are held; a step takes time."""
    scheduler = Scheduler(ScriptedEngine(max_num_seqs=1), scripted())
    scheduler.submit(rendered_rows([[script([[2], [2], [2], [2], [2]])]]))
    scheduler.step()
    load = scheduler.load
    assert (load.usage, load.num_running, load.num_held) == (EngineUsage(1, 1), 2, 3)
    assert load.engine_seconds > 0


def test_a_units_time_ends_with_its_last_answer() -> None:
    """It is measured from submission to the last answer, and set when the unit comes back."""
    scheduler = Scheduler(ScriptedEngine(), answering(1))
    unit = scheduler.submit(rendered([[3]]))
    finish(scheduler)
    assert unit.submitted_at <= unit.finished_at
    assert unit.seconds == unit.finished_at - unit.submitted_at


# Rows of several requests and rounds. Each prompt is [steps, row, round, index]; one of 0 steps is
# refused. Rows without rounds, and empty rounds, make no requests.
SHAPES = st.lists(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=4), max_size=8)


def rounds_of(shape: list[list[int]], row: int) -> list[list[list[int]]]:
    """A row's prompts, round by round, all of them different."""
    return [
        [[steps, row, number, index] for index, steps in enumerate(lengths)]
        for number, lengths in enumerate(shape)
    ]


@settings(max_examples=150, deadline=None)
@given(
    units=st.lists(st.tuples(SHAPES, st.integers(0, 3)), max_size=4),
    max_num_seqs=st.integers(1, 4),
    chunk=st.integers(1, 8),
)
def test_every_row_gets_all_its_answers_round_by_round(
    units: list[tuple[list[list[list[int]]], int]], max_num_seqs: int, chunk: int
) -> None:
    """A round comes back complete and in order, whatever else runs; costs are sums per row."""
    engine = ScriptedEngine(max_num_seqs)
    scheduler = Scheduler(engine, scripted())
    submitted, finished = [], []
    for shapes, steps in units:
        rows = [rounds_of(shape, row) for row, shape in enumerate(shapes)]
        table = rendered_rows([script(*rounds)] for rounds in rows)
        submitted.append((scheduler.submit(in_chunks(table, chunk)), rows))
        for _ in range(steps):
            finished += scheduler.step()
    finished += finish(scheduler)
    assert sorted(map(id, finished)) == sorted(id(unit) for unit, _ in submitted)
    for unit, rows in submitted:
        expected = []
        for rounds in rows:
            prompts = [prompt for round_ in rounds for prompt in round_]
            texts = [str(prompt) if prompt[0] else "engine_error" for prompt in prompts]
            completed = [prompt for prompt in prompts if prompt[0]]
            counts = token_counts(4 * len(completed), sum(p[0] for p in completed))
            expected.append(
                AnsweredRow(RowResult({"texts": texts}, None), counts if completed else None)
            )
        assert unit.answers == expected
    assert engine.max_requests <= 2 * max_num_seqs
    assert (scheduler.load.num_running, scheduler.load.num_units) == (0, 0)


def first_round(prompts: list[list[int]], row: int) -> int:
    """The position of the row's first request among those sent."""
    return next(position for position, prompt in enumerate(prompts) if prompt[1] == row)


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(bool), st.integers(1, 3))
def test_rows_begin_in_order_and_send_their_first_round_before_later_rows(
    shapes: list[list[list[int]]], max_num_seqs: int
) -> None:
    """No request of a later row is sent before the last request of a row's first round."""
    engine = ScriptedEngine(max_num_seqs)
    scheduler = Scheduler(engine, scripted())
    rows = [rounds_of(shape, row) for row, shape in enumerate(shapes)]
    scheduler.submit(rendered_rows([script(*rounds)] for rounds in rows))
    finish(scheduler)
    rows_with_requests = [row for row, rounds in enumerate(rows) if any(rounds)]
    begun = [first_round(engine.prompts, row) for row in rows_with_requests]
    assert begun == sorted(begun)
    for row, start in zip(rows_with_requests, begun, strict=True):
        first = next(round_ for round_ in rows[row] if round_)
        until = max(engine.prompts.index(prompt) for prompt in first)
        assert all(prompt[1] <= row for prompt in engine.prompts[start : until + 1])


def test_a_rows_next_round_goes_before_rows_that_have_not_begun() -> None:
    """Later rounds are sent as soon as there is room, so that begun rows end soon."""
    engine = ScriptedEngine(max_num_seqs=1)
    scheduler = Scheduler(engine, scripted())
    two_rounds = [rounds_of([[1], [1]], row) for row in range(4)]
    scheduler.submit(rendered_rows([script(*rounds)] for rounds in two_rounds))
    finish(scheduler)
    sent = [(row, number) for _, row, number, _ in engine.prompts]
    assert sent == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 1), (3, 1)]


def test_rows_that_do_not_fit_into_the_window_have_not_begun() -> None:
    """A large unit's rows stay in their table until there is room for them."""
    scheduler = Scheduler(ScriptedEngine(max_num_seqs=2), answering(1))
    unit = scheduler.submit(rendered([[1]] * 50))
    begun = []
    while scheduler.has_work:
        scheduler.step()
        begun.append(unit.num_begun)
    assert begun == [*range(4, 51, 2), 50]


def test_the_oldest_begun_row_goes_first() -> None:
    """A round larger than the window is sent completely before the next round of a later row."""
    engine = ScriptedEngine(max_num_seqs=1)
    scheduler = Scheduler(engine, scripted())
    rows = [rounds_of([[1], [1, 1, 1, 1]], 0), rounds_of([[1], [1]], 1)]
    scheduler.submit(rendered_rows([script(*rounds)] for rounds in rows))
    finish(scheduler)
    sent = [(row, number) for _, row, number, _ in engine.prompts]
    assert sent == [(0, 0), (1, 0), *[(0, 1)] * 4, (1, 1)]


def test_one_row_with_more_requests_than_the_window_holds_is_answered() -> None:
    """The window also limits the requests of a single row."""
    engine = ScriptedEngine(max_num_seqs=2)
    scheduler = Scheduler(engine, scripted())
    (prompts,) = rounds_of([[1] * 50], 0)
    unit = scheduler.submit(rendered_rows([[script(prompts)]]))
    finish(scheduler)
    assert cells_of(unit, "texts") == [[str(prompt) for prompt in prompts]]
    assert engine.max_requests == 4


@pytest.mark.parametrize("rounds", [(), ([], []), ([[0, 1], [0, 2]],)], ids=str)
def test_rows_without_answers_end_without_the_engine(rounds: tuple[list[list[int]]]) -> None:
    """Rows without requests, or with refused ones only, end in one step and cost nothing."""
    scheduler = Scheduler(ScriptedEngine(), scripted())
    busy = scheduler.submit(rendered_rows([[script([[50]])]]))
    unit = scheduler.submit(rendered_rows([[script(*rounds)]] * 20))
    assert scheduler.step() == [unit]
    assert [row.token_counts for row in answers_of(unit)] == [None] * 20
    assert finish(scheduler) == [busy]


@pytest.mark.parametrize("rounds", [(), ([[1]],), ([[1], [1]], [[1]])], ids=len)
def test_a_task_that_raises_rejects_only_its_own_row(rounds: tuple[list[list[int]]]) -> None:
    """The error becomes the row's reject, in one line; the row's tokens are counted."""
    scheduler = Scheduler(ScriptedEngine(), scripted())
    scripts = [script([[1]]), script(*rounds, raises=True), script([[2]], [[1, 1]])]
    unit = scheduler.submit(rendered_rows([row] for row in scripts))
    finish(scheduler)
    assert cells_of(unit, "texts") == [["[1]"], None, ["[2]", "[1, 1]"]]
    before, reject, after = rejects_of(unit)
    assert (before, after) == (None, None)
    assert reject == Reject(RejectClass.TASK_ERROR, "ValueError: a mistake in the task", 1)
    num_requests = sum(map(len, rounds))
    counts = answers_of(unit)[1].token_counts
    assert (counts and counts["num_input_tokens"]) == (num_requests or None)


def test_the_tokens_of_a_request_that_ends_with_an_error_are_counted() -> None:
    """The row has all tokens that the engine processed, whether or not there is an answer."""
    scheduler = Scheduler(FakeEngine(FakeSettings(error_rate=1)), answering(MAX_TOKENS))
    unit = scheduler.submit(rendered([[1, 2, 3]]))
    finish(scheduler)
    (row,) = answers_of(unit)
    assert scheduler.load.input_tokens == 3 and scheduler.load.generated_tokens > 0
    assert row.token_counts == token_counts(3, scheduler.load.generated_tokens)


def test_each_request_is_checked_against_the_context_with_its_own_parameters() -> None:
    """Of two tasks of a row, one may exceed the context and the other not."""
    short, long = (
        step_of(Generate(name=name, prompt={"text": "{{ text }}"}, sampling={"max_tokens": limit}))
        for name, limit in (("short", 5), ("long", 95))
    )
    scheduler = Scheduler(ScriptedEngine(max_model_len=100), row_tasks([short, long]))
    unit = scheduler.submit(rendered_rows([[PreparedRow([[1] * 10])] * 2]))
    finish(scheduler)
    (row,) = answers_of(unit)
    assert row.result.cells["short_generated_text"] == str([1] * 10)
    assert row.result.reject is not None
    assert row.result.reject.reject_class is RejectClass.PROMPT_TOO_LONG
    assert row.result.reject.message.startswith("long: ")


def test_a_rejected_row_may_have_late_values_that_python_cannot_represent() -> None:
    """Late values are read only for rows with a task that needs them."""
    sections = [
        Generate(name="a", prompt={"text": "{{ text }}"}, sampling={"max_tokens": 1}),
        Generate(
            name="b",
            prompt={"text": "{{ a_generated_text }}{{ day }}"},
            sampling={"max_tokens": 1},
        ),
    ]
    scheduler = Scheduler(FakeEngine(FakeSettings()), row_tasks(list(map(step_of, sections))))
    entries: list[Entries] = [[EARLIER, EARLIER], [PreparedRow([[1]]), None]]
    late = pa.table({"day": pa.array([2**62, 0], pa.date64())})
    unit = scheduler.submit(rendered_rows(entries, late))
    finish(scheduler)
    rejects = [answer.result.reject for answer in answers_of(unit)]
    assert rejects[0] is not None and rejects[0].message == "a: the prompt is empty"
    assert "b_generated_text" in answers_of(unit)[1].result.cells
