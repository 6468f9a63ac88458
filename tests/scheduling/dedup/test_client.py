"""Equal requests across replicas: they are computed once, and no crash leaves one waiting."""

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
from tokenmill.scheduling.dedup.registry import InFlightRegistry, PackedAnswer, RegistryUpdate
from tokenmill.scheduling.dedup.transport import LocalConnection
from tokenmill.scheduling.in_flight import UnitInFlight
from tokenmill.scheduling.replica import AnsweredUnit, Replica
from tokenmill.scheduling.scheduler import Scheduler

GREEDY = {"temperature": 0, "max_tokens": 3}
TASKS = row_tasks([scripted_step(GREEDY)])
#: A unit as rows of rounds of prompts, each of one token.
Unit = list[list[list[int]]]
UNITS = st.lists(
    st.lists(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=3), max_size=6),
    min_size=1,
    max_size=6,
)
# Far longer than anything here takes: a test that hangs must fail, not stop the others.
TIMEOUT_S = 20
MAX_TURNS = 5_000


class RecordingEngine(FakeEngine):
    """The fake engine, which records the prompts that are added; it may crash at a step."""

    def __init__(self, crashes_at: int | None = None, **changes: Any) -> None:
        super().__init__(FakeSettings(output_tokens=3, **changes))
        self.prompts: list[tuple[int, ...]] = []
        self._crashes_at = crashes_at
        self._steps = 0

    def add(self, key: int, request: Request) -> None:
        super().add(key, request)
        self.prompts.append(tuple(request.prompt_token_ids))

    def step(self) -> Sequence[Completion]:
        self._steps += 1
        if self._steps == self._crashes_at:
            raise RuntimeError("CUDA error")
        return super().step()


def table(unit: Unit) -> pa.Table:
    return rendered_rows(
        [script(*([[token] for token in round_] for round_ in row))] for row in unit
    )


def finish(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        scheduler.step()


class SimulatedReplica:
    """A replica without threads: its calls and updates wait in queues until the test moves them.

    As with the transport, but in any order, and any call may fail before or after its effect.
    """

    def __init__(self, name: str, registry: InFlightRegistry, engine: RecordingEngine) -> None:
        self.name = name
        self.engine = engine
        self.outbox: deque[tuple[Sequence[bytes], Sequence[PackedAnswer]]] = deque()
        self.inbox: deque[RegistryUpdate | None] = deque()
        self.scheduler = Scheduler(engine, TASKS, deduplicate=True, send_claims=self.queue_claims)
        self.submitted: dict[int, UnitInFlight] = {}
        self._registry = registry
        self._membership = 0
        self._is_member = False
        self.join()

    def queue_claims(self, claims: Sequence[bytes], answers: Sequence[PackedAnswer]) -> None:
        self.outbox.append((claims, answers))

    def join(self) -> None:
        if not self._is_member:
            self._membership += 1
            self._is_member = True
            self._registry.join(self.name, str(self._membership))
            self.inbox.append(RegistryUpdate())

    def send(self, draw: random.Random | None = None) -> None:
        if self.outbox:
            self._exchange(*self.outbox.popleft(), draw)

    def poll(self, draw: random.Random | None = None) -> None:
        self._exchange((), (), draw)

    def _exchange(
        self, claims: Sequence[bytes], answers: Sequence[PackedAnswer], draw: random.Random | None
    ) -> None:
        if not self._is_member:
            return
        fault = draw.random() if draw else 1.0
        update = None
        if fault > 0.05:
            update = self._registry.exchange(self.name, str(self._membership), claims, answers)
        if update is None or fault < 0.1:
            self._is_member = False
            self.inbox.append(None)
        elif update:
            self.inbox.append(update)

    def receive(self) -> None:
        if self.inbox:
            self.scheduler.receive(self.inbox.popleft())

    def step(self) -> None:
        if self.scheduler.has_work:
            self.scheduler.step()

    @property
    def unfinished(self) -> list[int]:
        return [number for number, unit in self.submitted.items() if unit.num_open]


class World:
    """Simulated replicas that share a registry, and the units that they answer."""

    def __init__(self, units: Sequence[Unit], num_replicas: int, **engine: Any) -> None:
        self._tables = [table(unit) for unit in units]
        self._engine = engine
        self.now = 0.0
        self.registry = InFlightRegistry(clock=lambda: self.now)
        self.prompts: Counter[tuple[int, ...]] = Counter()
        self.answers: dict[int, UnitInFlight] = {}
        self._names = iter(range(10**6))
        self.replicas = [self._new_replica() for _ in range(num_replicas)]

    def _new_replica(self) -> SimulatedReplica:
        engine = RecordingEngine(**self._engine)
        return SimulatedReplica(str(next(self._names)), self.registry, engine)

    def submit(self, number: int, replica: SimulatedReplica) -> None:
        replica.submitted[number] = replica.scheduler.submit(self._tables[number])

    def crash(self, index: int, draw: random.Random) -> None:
        """Replace a replica and submit its units to any others.

        In half of the cases the registry has to notice by itself.
        """
        crashed, self.replicas[index] = self.replicas[index], self._new_replica()
        self._take_results(crashed)
        if draw.random() < 0.5:
            self.registry.remove(crashed.name)
        for number in crashed.unfinished:
            self.submit(number, draw.choice(self.replicas))

    def _take_results(self, replica: SimulatedReplica) -> None:
        self.prompts.update(replica.engine.prompts)
        self.answers |= {n: unit for n, unit in replica.submitted.items() if not unit.num_open}

    def play(self, draw: random.Random, turns: int, *, with_faults: bool) -> None:
        """Let random replicas do random things."""
        faults = draw if with_faults else None
        for _ in range(turns):
            index = draw.randrange(len(self.replicas))
            replica = self.replicas[index]
            actions: list[Callable[[], None]] = [
                replica.step,
                replica.step,
                replica.receive,
                replica.join,
                partial(replica.send, faults),
                partial(replica.poll, faults),
            ]
            draw.choice(actions)()
            if with_faults and draw.random() < 0.02:
                self.crash(index, draw)
            if with_faults and draw.random() < 0.02:
                self.now += 10

    def end(self) -> None:
        """Let all replicas act in turn until every unit is answered."""
        for _ in range(MAX_TURNS):
            for replica in self.replicas:
                self.now += 0.1
                replica.join()
                replica.send()
                replica.poll()
                replica.receive()
                replica.step()
            if not any(replica.unfinished for replica in self.replicas):
                break
        else:
            raise AssertionError("some replicas wait for ever")
        for replica in self.replicas:
            self._take_results(replica)


def without_reuse(units: Sequence[Unit], **engine: Any) -> tuple[list[UnitInFlight], Counter[Any]]:
    """The units answered without any reuse, and how often each prompt is sent then."""
    recording = RecordingEngine(**engine)
    scheduler = Scheduler(recording, TASKS)
    submitted = [scheduler.submit(table(unit)) for unit in units]
    finish(scheduler)
    return submitted, Counter(recording.prompts)


@settings(max_examples=100, deadline=None)
@given(
    units=UNITS,
    num_replicas=st.integers(1, 4),
    max_num_seqs=st.integers(1, 3),
    error_rate=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 2**32),
)
def test_all_replicas_together_send_equal_requests_once(
    units: list[Unit], num_replicas: int, max_num_seqs: int, error_rate: float, seed: int
) -> None:
    """In any order of events, each prompt is sent once; requests that fail are each sent.

    Every row has the answer that it has without reuse, and all reused answers are counted.
    """
    engine = {"max_num_seqs": max_num_seqs, "error_rate": error_rate}
    expected, prompts = without_reuse(units, **engine)
    draw = random.Random(seed)
    world = World(units, num_replicas, **engine)
    for replica in world.replicas:
        replica.receive()
    for number in range(len(units)):
        world.submit(number, draw.choice(world.replicas))
        world.play(draw, 10, with_faults=False)
    world.end()
    assert [world.answers[n].answers for n in range(len(units))] == [u.answers for u in expected]
    answered = prompts.keys() & {prompt for prompt in prompts if world.prompts[prompt] == 1}
    failed = prompts.keys() - answered
    assert all(world.prompts[prompt] == prompts[prompt] for prompt in failed)
    assert error_rate or not failed
    num_reused = sum(unit.num_reused for unit in world.answers.values())
    assert num_reused == prompts.total() - world.prompts.total()


@settings(max_examples=100, deadline=None)
@given(
    units=UNITS,
    num_replicas=st.integers(1, 4),
    max_num_seqs=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_row_has_its_answer_whatever_fails(
    units: list[Unit], num_replicas: int, max_num_seqs: int, seed: int
) -> None:
    """Replicas crash or are silent, and calls fail before or after they had an effect."""
    engine = {"max_num_seqs": max_num_seqs, "error_rate": 0.2}
    expected, _ = without_reuse(units, **engine)
    draw = random.Random(seed)
    world = World(units, num_replicas, **engine)
    for number in range(len(units)):
        world.submit(number, draw.choice(world.replicas))
        world.play(draw, 20, with_faults=True)
    world.end()
    assert [world.answers[n].answers for n in range(len(units))] == [u.answers for u in expected]


# A scheduler with a scripted registry.


class Outbox:
    """Records what a scheduler sends to the registry."""

    def __init__(self) -> None:
        self.claims: list[list[bytes]] = []
        self.answers: list[PackedAnswer] = []

    def __call__(self, claims: Sequence[bytes], answers: Sequence[PackedAnswer]) -> None:
        if claims:
            self.claims.append(list(claims))
        self.answers += answers


def connected(
    engine: RecordingEngine, units: Sequence[Sequence[int]], sampling: dict[str, Any] = GREEDY
) -> tuple[Scheduler, Outbox, list[UnitInFlight]]:
    """A scheduler with a registry, after its first step; its rows are prompts of one token."""
    outbox = Outbox()
    tasks = row_tasks(job({"sampling": sampling}).steps)
    scheduler = Scheduler(engine, tasks, deduplicate=True, send_claims=outbox)
    scheduler.receive(RegistryUpdate())
    submitted = [scheduler.submit(rendered([[token] for token in unit])) for unit in units]
    scheduler.step()
    return scheduler, outbox, submitted


def test_only_granted_requests_are_sent_and_each_hash_is_claimed_once() -> None:
    """One call claims all rows; the engine idles until the update comes, and no longer."""
    engine = RecordingEngine(max_num_seqs=8)
    scheduler, outbox, (unit,) = connected(engine, [[1, 2, 1, 3]])
    ((first, second, third),) = outbox.claims
    assert not engine.prompts
    assert not scheduler.has_work
    scheduler.receive(RegistryUpdate(granted=[third, first], elsewhere=[second]))
    finish(scheduler)
    assert engine.prompts == [(1,), (3,)]
    assert [request_hash for request_hash, _ in outbox.answers] == [first, third]
    assert unit.num_open == 1
    # The second request is answered by another replica.
    other_scheduler, other_outbox, _ = connected(RecordingEngine(), [[2]])
    other_scheduler.receive(RegistryUpdate(granted=[second]))
    finish(other_scheduler)
    ((request_hash, answer),) = other_outbox.answers
    assert request_hash == second and answer is not None
    scheduler.receive(RegistryUpdate(answers=[(second, answer)]))
    assert scheduler.step() == [unit]
    (expected,) = answered_without_reuse([[1, 2, 1, 3]])
    assert unit.answers == expected.answers
    assert unit.num_reused == 2


def answered_without_reuse(units: Sequence[Sequence[int]]) -> list[UnitInFlight]:
    """The same units, answered without any reuse."""
    scheduler = Scheduler(RecordingEngine(), row_tasks(job({"sampling": GREEDY}).steps))
    submitted = [scheduler.submit(rendered([[token] for token in unit])) for unit in units]
    finish(scheduler)
    return submitted


def test_requests_computed_elsewhere_take_no_room_from_requests_that_can_be_sent() -> None:
    """A row behind far more rows than the window, all computed elsewhere, is sent."""
    engine = RecordingEngine(max_num_seqs=2)
    scheduler, outbox, (unit,) = connected(engine, [[*range(40), 99]])
    hashes: list[bytes] = []
    while len(hashes) <= 40:
        claims = outbox.claims.pop()
        hashes += claims
        scheduler.receive(RegistryUpdate(elsewhere=claims))
        finish(scheduler)
    scheduler.receive(RegistryUpdate(granted=hashes[-1:]))
    finish(scheduler)
    assert engine.prompts == [(99,)]
    assert unit.num_open == 40


def test_requests_with_sampled_answers_are_not_claimed() -> None:
    """Each of them is sent at once."""
    engine = RecordingEngine()
    scheduler, outbox, (unit,) = connected(engine, [[1, 1, 2]], {"max_tokens": 3})
    finish(scheduler)
    assert (outbox.claims, outbox.answers) == ([], [])
    assert (len(engine.prompts), unit.num_open) == (3, 0)


def test_a_claim_without_an_answer_is_given_up_after_the_last_equal_request_here() -> None:
    """Then the replicas that wait for it have their turn."""
    engine = RecordingEngine(error_rate=1)
    scheduler, outbox, _ = connected(engine, [[1, 1]])
    ((request_hash,),) = outbox.claims
    scheduler.receive(RegistryUpdate(granted=[request_hash]))
    finish(scheduler)
    assert len(engine.prompts) == 2
    assert outbox.answers == [(request_hash, None)]


def test_all_claimed_requests_are_sent_if_the_registry_cannot_be_reached() -> None:
    """Even those that another replica computes. Once it can be reached, it is asked again."""
    engine = RecordingEngine()
    scheduler, outbox, _ = connected(engine, [[1, 2]])
    ((first, second),) = outbox.claims
    scheduler.receive(RegistryUpdate(elsewhere=[second]))
    scheduler.receive(None)
    finish(scheduler)
    assert engine.prompts == [(1,), (2,)]
    scheduler.submit(rendered([[3]]))
    finish(scheduler)
    assert (3,) in engine.prompts
    scheduler.receive(RegistryUpdate())
    scheduler.submit(rendered([[4]]))
    finish(scheduler)
    assert len(outbox.claims) == 2
    # A claim granted from before is answered, so that no replica waits for it.
    scheduler.receive(RegistryUpdate(granted=[first, b"forgotten"]))
    answered = [request_hash for request_hash, answer in outbox.answers if answer is not None]
    assert answered == [first]
    assert (b"forgotten", None) in outbox.answers


# Replicas with their threads.


#: A registry, and the condition that guards it.
Shared = tuple[InFlightRegistry, threading.Condition]


@pytest.fixture
def shared() -> Shared:
    """A registry for the replicas of a test."""
    return InFlightRegistry(), threading.Condition()


def replica_of(shared: Shared, name: str, engine: FakeEngine) -> Replica:
    """A replica for rows of one greedy prompt; the registry removes it when its engine crashes."""
    registry, changed = shared

    def on_crash(_: BaseException) -> None:
        with changed:
            registry.remove(name)
            changed.notify_all()

    return Replica(
        lambda: engine,
        row_tasks(job({"sampling": GREEDY}).steps),
        lambda _: None,
        on_crash,
        registry=LocalConnection(registry, changed, name),
    )


def answer_all(calls: Sequence[Callable[[], AnsweredUnit]]) -> list[AnsweredUnit]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(TIMEOUT_S) for future in [threads.submit(call) for call in calls]]


TOKENS = [[(7 * row + unit) % 60 for row in range(50)] for unit in range(12)]


def test_concurrent_replicas_send_equal_requests_once(shared: Shared) -> None:
    """Twelve units on three replicas, each with its threads."""
    engines = [RecordingEngine(max_num_seqs=4) for _ in range(3)]
    replicas = [replica_of(shared, str(n), engine) for n, engine in enumerate(engines)]
    tables = [rendered([[token] for token in unit]) for unit in TOKENS]
    answered = answer_all([partial(replicas[n % 3].answer, unit) for n, unit in enumerate(tables)])
    sent = sorted(prompt for engine in engines for prompt in engine.prompts)
    assert sent == sorted({(token,) for unit in TOKENS for token in unit})
    assert sum(unit.num_reused for unit in answered) == 12 * 50 - len(sent)
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    plain = Replica(RecordingEngine, tasks, lambda _: None, lambda _: None)
    assert all(
        unit.rows.equals(plain.answer(rows).rows)
        for unit, rows in zip(answered, tables, strict=True)
    )


def test_replicas_go_on_when_one_of_them_crashes(shared: Shared) -> None:
    """The claims of the crashed replica are computed by those that waited for it."""
    engines = [RecordingEngine(max_num_seqs=4), RecordingEngine(max_num_seqs=4, crashes_at=5)]
    sound, crashing = (replica_of(shared, str(n), engine) for n, engine in enumerate(engines))
    tables = [rendered([[token] for token in unit]) for unit in TOKENS]

    def answer(number: int) -> AnsweredUnit:
        try:
            return (crashing if number % 2 else sound).answer(tables[number])
        except RuntimeError:
            return sound.answer(tables[number])

    answered = answer_all([partial(answer, number) for number in range(12)])
    assert all(unit.rows.column("error").null_count == 50 for unit in answered)
    assert len(engines[0].prompts) + len(engines[1].prompts) <= 60 + 2 * 4 * 2


class LostConnection:
    """A connection on which every exchange fails, and perhaps joining too."""

    def __init__(self, *, can_join: bool) -> None:
        self._can_join = can_join

    def join(self, _membership: str) -> bool:
        return self._can_join

    def exchange(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize("can_join", [True, False])
def test_a_replica_answers_alone_if_its_registry_is_gone(can_join: bool) -> None:
    """It does not wait for the registry."""
    connection = LostConnection(can_join=can_join)
    tasks = row_tasks(job({"sampling": GREEDY}).steps)
    alone = Replica(RecordingEngine, tasks, lambda _: None, lambda _: None, registry=connection)
    answered = answer_all([lambda: alone.answer(rendered([[token] for token in TOKENS[0]]))])
    assert answered[0].rows.column("error").null_count == 50
