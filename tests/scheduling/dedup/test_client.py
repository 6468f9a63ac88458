"""Replicas that ask the same: it is computed once, and whatever dies nobody waits for ever."""

import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from helpers.factories import job, rendered, rendered_rows, row_tasks, script, scripted_step
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.request import Completion, Request
from tokenmill.scheduling.dedup.registry import Answered, InFlightRegistry, RegistryUpdate
from tokenmill.scheduling.dedup.transport import LocalConnection
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.scheduling.scheduler import Scheduler

GREEDY = {"temperature": 0, "max_tokens": 3}
TASKS = row_tasks([scripted_step(GREEDY)])
#: Rows of rounds of prompts of one token.
Unit = list[list[list[int]]]
UNITS = st.lists(
    st.lists(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=3), max_size=6),
    min_size=1,
    max_size=6,
)
# Far more than anything here takes: what hangs must fail, not stop the tests.
TIMEOUT_S = 20
MOST_TURNS = 5_000


class Asked(FakeEngine):
    """The fake engine, and the prompts that it was given; it may die at a step."""

    def __init__(self, dies_at: int | None = None, **changes: Any) -> None:
        super().__init__(FakeSettings(output_tokens=3, **changes))
        self.prompts: list[tuple[int, ...]] = []
        self._dies_at = dies_at
        self._steps = 0

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self.prompts.append(tuple(request.prompt_token_ids))

    def step(self) -> Sequence[Completion]:
        self._steps += 1
        if self._steps == self._dies_at:
            raise RuntimeError("CUDA error")
        return super().step()


def table(unit: Unit) -> pa.Table:
    return rendered_rows([script(*([[token] for token in asked] for asked in row))] for row in unit)


def finish(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        scheduler.step()


class Desk:
    """A replica without threads: what it tells and hears lies in trays until somebody carries it.

    As the courier does, but in whatever order, and any call may fail before or after its effect.
    """

    def __init__(self, name: str, ledger: InFlightRegistry, engine: Asked) -> None:
        self.name = name
        self.engine = engine
        self.outbox: deque[tuple[Sequence[bytes], Sequence[Answered]]] = deque()
        self.inbox: deque[RegistryUpdate | None] = deque()
        self.scheduler = Scheduler(engine, TASKS, deduplicate=True, tell=self.tell)
        self.submitted: dict[int, UnitInFlight] = {}
        self._ledger = ledger
        self._membership = 0
        self._is_member = False
        self.join()

    def tell(self, asked: Sequence[bytes], answered: Sequence[Answered]) -> None:
        self.outbox.append((asked, answered))

    def join(self) -> None:
        if not self._is_member:
            self._membership += 1
            self._is_member = True
            self._ledger.join(self.name, str(self._membership))
            self.inbox.append(RegistryUpdate())

    def send(self, draw: random.Random | None = None) -> None:
        if self.outbox:
            self._exchange(*self.outbox.popleft(), draw)

    def listen(self, draw: random.Random | None = None) -> None:
        self._exchange((), (), draw)

    def _exchange(
        self, asked: Sequence[bytes], answered: Sequence[Answered], draw: random.Random | None
    ) -> None:
        if not self._is_member:
            return
        fault = draw.random() if draw else 1.0
        news = None
        if fault > 0.05:
            news = self._ledger.exchange(self.name, str(self._membership), asked, answered)
        if news is None or fault < 0.1:
            self._is_member = False
            self.inbox.append(None)
        elif news:
            self.inbox.append(news)

    def hear(self) -> None:
        if self.inbox:
            self.scheduler.hear(self.inbox.popleft())

    def step(self) -> None:
        if self.scheduler.has_work:
            self.scheduler.step()

    @property
    def unfinished(self) -> list[int]:
        return [number for number, unit in self.submitted.items() if unit.num_open]


class World:
    """Desks that share a ledger, and the units that they have been given."""

    def __init__(self, units: Sequence[Unit], num_desks: int, **engine: Any) -> None:
        self._tables = [table(unit) for unit in units]
        self._engine = engine
        self.now = 0.0
        self.ledger = InFlightRegistry(clock=lambda: self.now)
        self.prompts: Counter[tuple[int, ...]] = Counter()
        self.answers: dict[int, UnitInFlight] = {}
        self._names = iter(range(10**6))
        self.desks = [self._desk() for _ in range(num_desks)]

    def _desk(self) -> Desk:
        return Desk(str(next(self._names)), self.ledger, Asked(**self._engine))

    def submit(self, number: int, desk: Desk) -> None:
        desk.submitted[number] = desk.scheduler.submit(self._tables[number])

    def kill(self, at: int, draw: random.Random) -> None:
        """Another takes its place, and its units go anywhere; the ledger may have to notice."""
        dead, self.desks[at] = self.desks[at], self._desk()
        self._take_results(dead)
        if draw.random() < 0.5:
            self.ledger.lost(dead.name)
        for number in dead.unfinished:
            self.submit(number, draw.choice(self.desks))

    def _take_results(self, desk: Desk) -> None:
        self.prompts.update(desk.engine.prompts)
        self.answers |= {n: unit for n, unit in desk.submitted.items() if not unit.num_open}

    def play(self, draw: random.Random, turns: int, *, with_faults: bool) -> None:
        """Any desk does anything."""
        chance = draw if with_faults else None
        for _ in range(turns):
            at = draw.randrange(len(self.desks))
            desk = self.desks[at]
            deeds: list[Callable[[], None]] = [desk.step, desk.step, desk.hear, desk.join]
            deeds += [partial(desk.send, chance), partial(desk.listen, chance)]
            draw.choice(deeds)()
            if with_faults and draw.random() < 0.02:
                self.kill(at, draw)
            if with_faults and draw.random() < 0.02:
                self.now += 10

    def end(self) -> None:
        """All do their part, in turns, until every unit is answered."""
        for _ in range(MOST_TURNS):
            for desk in self.desks:
                self.now += 0.1
                for deed in (desk.join, desk.send, desk.listen, desk.hear, desk.step):
                    deed()
            if not any(desk.unfinished for desk in self.desks):
                break
        else:
            raise AssertionError("some wait for ever")
        for desk in self.desks:
            self._take_results(desk)


def alone(units: Sequence[Unit], **engine: Any) -> tuple[list[UnitInFlight], Counter[Any]]:
    """The units without any reuse, and how often each prompt is sent then."""
    asked = Asked(**engine)
    scheduler = Scheduler(asked, TASKS)
    submitted = [scheduler.submit(table(unit)) for unit in units]
    finish(scheduler)
    return submitted, Counter(asked.prompts)


@settings(max_examples=100, deadline=None)
@given(
    units=UNITS,
    num_desks=st.integers(1, 4),
    max_num_seqs=st.integers(1, 3),
    error_rate=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 2**32),
)
def test_all_replicas_together_send_what_differs_once(
    units: list[Unit], num_desks: int, max_num_seqs: int, error_rate: float, seed: int
) -> None:
    """In whatever order all happens: a request a prompt, but each one of those that fail.

    Every row has the answer that it has alone, and all that was not sent is counted.
    """
    engine = {"max_num_seqs": max_num_seqs, "error_rate": error_rate}
    expected, asked = alone(units, **engine)
    draw = random.Random(seed)
    world = World(units, num_desks, **engine)
    for desk in world.desks:
        desk.hear()
    for number in range(len(units)):
        world.submit(number, draw.choice(world.desks))
        world.play(draw, 10, with_faults=False)
    world.end()
    assert [world.answers[n].answers for n in range(len(units))] == [u.answers for u in expected]
    answered = asked.keys() & {prompt for prompt in asked if world.prompts[prompt] == 1}
    failed = asked.keys() - answered
    assert all(world.prompts[prompt] == asked[prompt] for prompt in failed)
    assert error_rate or not failed
    num_reused = sum(unit.num_reused for unit in world.answers.values())
    assert num_reused == asked.total() - world.prompts.total()


@settings(max_examples=100, deadline=None)
@given(
    units=UNITS,
    num_desks=st.integers(1, 4),
    max_num_seqs=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_whatever_fails_every_row_has_its_answer(
    units: list[Unit], num_desks: int, max_num_seqs: int, seed: int
) -> None:
    """Replicas die, are silent, and calls to the ledger fail before or after they had an effect."""
    engine = {"max_num_seqs": max_num_seqs, "error_rate": 0.2}
    expected, _ = alone(units, **engine)
    draw = random.Random(seed)
    world = World(units, num_desks, **engine)
    for number in range(len(units)):
        world.submit(number, draw.choice(world.desks))
        world.play(draw, 20, with_faults=True)
    world.end()
    assert [world.answers[n].answers for n in range(len(units))] == [u.answers for u in expected]


# A scheduler whose ledger is a script.


class Told:
    """Keeps what a scheduler tells."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.answered: list[Answered] = []

    def __call__(self, asked: Sequence[bytes], answered: Sequence[Answered]) -> None:
        if asked:
            self.asked.append(list(asked))
        self.answered += answered


def asking(
    engine: Asked, units: Sequence[Sequence[int]], sampling: dict[str, Any] = GREEDY
) -> tuple[Scheduler, Told, list[UnitInFlight]]:
    """A scheduler that has joined, with units whose rows are prompts of one token."""
    told = Told()
    tasks = row_tasks(job({"sampling": sampling}).steps)
    scheduler = Scheduler(engine, tasks, deduplicate=True, tell=told)
    scheduler.hear(RegistryUpdate())
    submitted = [scheduler.submit(rendered([[token] for token in unit])) for unit in units]
    scheduler.step()
    return scheduler, told, submitted


def test_nothing_is_sent_before_it_is_granted_and_what_repeats_here_is_asked_once() -> None:
    """One question holds all rows; the engine idles until it is answered, and no longer."""
    engine = Asked(max_num_seqs=8)
    scheduler, told, (unit,) = asking(engine, [[1, 2, 1, 3]])
    ((first, second, third),) = told.asked
    assert not engine.prompts
    assert not scheduler.has_work
    scheduler.hear(RegistryUpdate(granted=[third, first], elsewhere=[second]))
    finish(scheduler)
    assert engine.prompts == [(1,), (3,)]
    assert [mark for mark, _ in told.answered] == [first, third]
    assert unit.num_open == 1
    # What another's engine has made of it.
    other = Asked()
    other_scheduler, other_told, _ = asking(other, [[2]])
    other_scheduler.hear(RegistryUpdate(granted=[second]))
    finish(other_scheduler)
    ((mark, answer),) = other_told.answered
    assert mark == second and answer is not None
    scheduler.hear(RegistryUpdate(known=[(second, answer)]))
    assert scheduler.step() == [unit]
    (expected,) = alone_of([[1, 2, 1, 3]])
    assert unit.answers == expected.answers
    assert unit.num_reused == 2


def alone_of(units: Sequence[Sequence[int]]) -> list[UnitInFlight]:
    """The same units without any reuse."""
    scheduler = Scheduler(Asked(), row_tasks(job({"sampling": GREEDY}).steps))
    submitted = [scheduler.submit(rendered([[token] for token in unit])) for unit in units]
    finish(scheduler)
    return submitted


def test_what_others_compute_takes_no_place_of_what_can_be_sent() -> None:
    """With far more rows elsewhere than are taken up at a time, the row behind them is sent."""
    engine = Asked(max_num_seqs=2)
    scheduler, told, (unit,) = asking(engine, [[*range(40), 99]])
    marks: list[bytes] = []
    while len(marks) <= 40:
        asked = told.asked.pop()
        marks += asked
        scheduler.hear(RegistryUpdate(elsewhere=asked))
        finish(scheduler)
    scheduler.hear(RegistryUpdate(granted=marks[-1:]))
    finish(scheduler)
    assert engine.prompts == [(99,)]
    assert unit.num_open == 40


def test_what_is_left_to_chance_asks_nobody() -> None:
    """Each row is sent at once."""
    engine = Asked()
    scheduler, told, (unit,) = asking(engine, [[1, 1, 2]], {"max_tokens": 3})
    finish(scheduler)
    assert (told.asked, told.answered) == ([], [])
    assert (len(engine.prompts), unit.num_open) == (3, 0)


def test_a_request_without_an_answer_gives_its_claim_up_after_the_last_that_asks_it_here() -> None:
    """Those that wait elsewhere come next, one after another."""
    engine = Asked(error_rate=1)
    scheduler, told, _ = asking(engine, [[1, 1]])
    ((mark,),) = told.asked
    scheduler.hear(RegistryUpdate(granted=[mark]))
    finish(scheduler)
    assert len(engine.prompts) == 2
    assert told.answered == [(mark, None)]


def test_when_the_ledger_is_away_all_that_was_asked_is_sent() -> None:
    """Also what another was to compute; as it comes back it is asked again."""
    engine = Asked()
    scheduler, told, _ = asking(engine, [[1, 2]])
    ((first, second),) = told.asked
    scheduler.hear(RegistryUpdate(elsewhere=[second]))
    scheduler.hear(None)
    finish(scheduler)
    assert engine.prompts == [(1,), (2,)]
    scheduler.submit(rendered([[3]]))
    finish(scheduler)
    assert (3,) in engine.prompts
    scheduler.hear(RegistryUpdate())
    scheduler.submit(rendered([[4]]))
    finish(scheduler)
    assert len(told.asked) == 2
    # A grant from before is answered, so that nobody waits for it.
    scheduler.hear(RegistryUpdate(granted=[first, b"forgotten"]))
    assert [mark for mark, answer in told.answered if answer is not None] == [first]
    assert (b"forgotten", None) in told.answered


# Replicas with their threads.


#: A ledger, and what guards it and tells of its changes.
Shared = tuple[InFlightRegistry, threading.Condition]


@pytest.fixture
def shared() -> Shared:
    """A ledger for the replicas of a test."""
    return InFlightRegistry(), threading.Condition()


def replica(shared: Shared, name: str, engine: FakeEngine) -> Replica:
    """A replica that answers rows of one greedy prompt; its death is told to the ledger."""
    ledger, changed = shared

    def on_death(_: BaseException) -> None:
        with changed:
            ledger.lost(name)
            changed.notify_all()

    return Replica(
        lambda: engine,
        row_tasks(job({"sampling": GREEDY}).steps),
        lambda _: None,
        on_death,
        ledger=LocalConnection(ledger, changed, name),
    )


def answer_all(deeds: Sequence[Callable[[], AnsweredUnit]]) -> list[AnsweredUnit]:
    with ThreadPoolExecutor(len(deeds)) as threads:
        return [future.result(TIMEOUT_S) for future in [threads.submit(answer) for answer in deeds]]


TOKENS = [[(7 * row + unit) % 60 for row in range(50)] for unit in range(12)]


def test_replicas_at_once_send_what_differs_once(shared: Shared) -> None:
    """Twelve units on three replicas, in threads."""
    engines = [Asked(max_num_seqs=4) for _ in range(3)]
    replicas = [replica(shared, str(at), engine) for at, engine in enumerate(engines)]
    tables = [rendered([[token] for token in unit]) for unit in TOKENS]
    answered = answer_all(
        [partial(replicas[at % 3].answer, unit) for at, unit in enumerate(tables)]
    )
    sent = sorted(prompt for engine in engines for prompt in engine.prompts)
    assert sent == sorted({(token,) for unit in TOKENS for token in unit})
    assert sum(unit.num_reused for unit in answered) == 12 * 50 - len(sent)
    plain = Replica(
        Asked, row_tasks(job({"sampling": GREEDY}).steps), lambda _: None, lambda _: None
    )
    assert all(
        unit.rows.equals(plain.answer(own).rows) for unit, own in zip(answered, tables, strict=True)
    )


def test_replicas_go_on_where_one_of_them_dies(shared: Shared) -> None:
    """What the dead one had claimed is computed by those that waited for it."""
    engines = [Asked(max_num_seqs=4), Asked(max_num_seqs=4, dies_at=5)]
    sound, sick = (replica(shared, str(at), engine) for at, engine in enumerate(engines))
    tables = [rendered([[token] for token in unit]) for unit in TOKENS]

    def answer(at: int) -> AnsweredUnit:
        try:
            return (sick if at % 2 else sound).answer(tables[at])
        except RuntimeError:
            return sound.answer(tables[at])

    answered = answer_all([partial(answer, at) for at in range(12)])
    assert all(unit.rows.column("error").null_count == 50 for unit in answered)
    assert len(engines[0].prompts) + len(engines[1].prompts) <= 60 + 2 * 4 * 2


class Gone:
    """A ledger that can be joined, perhaps, and then says no word."""

    def __init__(self, *, can_join: bool) -> None:
        self._can_join = can_join

    def join(self, _membership: str) -> bool:
        return self._can_join

    def exchange(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("can_join", [True, False])
def test_a_replica_whose_ledger_is_gone_answers_alone(can_join: bool) -> None:
    """Nobody waits for it."""
    line = Gone(can_join=can_join)
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    alone = Replica(Asked, tasks, lambda _: None, lambda _: None, ledger=line)
    answered = answer_all([lambda: alone.answer(rendered([[token] for token in TOKENS[0]]))])
    assert answered[0].rows.column("error").null_count == 50
