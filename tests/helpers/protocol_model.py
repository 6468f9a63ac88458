"""A model of how an output is written, in which every order of steps is explored.

The input is a shard of three rows; the first two are rejected in a first run. Drivers cut it into
units in two different ways, and each repairer can answer one of the two rejected rows. A step is
one call of the store. Any actor may crash and start again, a reply may be lost, a write may be
refused, and a write may still be in flight while its writer has given up, has crashed or has
retried: it then arrives later, or never. `Bug` lists mistakes that the protocol must not make, each
of which breaks a guarantee.

The model has no Parquet, Ray or engines. The real protocol is in `output/commit`, `output/output`,
`run/planning`, `run/retry` and `run/run`, and `faults/mutations.py` makes the same mistakes there.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Any

Key = tuple[int, int]

NUM_ROWS = 3
#: The two ways to cut the shard. A unit's key is its first row and the row after its last one.
PLANS: dict[str, tuple[Key, ...]] = {"A": ((0, 2), (2, 3)), "B": ((0, 1), (1, 3))}
_ANSWERED_IN_FIRST_RUN = frozenset({2})
#: The plan of each driver, and the rows that each repairer can answer.
_PLAN_OF = {"one": "A", "other": "B"}
_ROWS_OF = {"repairer": frozenset({0}), "other repairer": frozenset({1})}


class Bug(StrEnum):
    """Mistakes, which are seeded into the model one at a time."""

    OVERWRITE = "no conditional PUT, and delete before write"
    COMMIT_BEFORE_WRITE = "commit before write"
    STALE_PLAN = "resume from a stale plan"
    SWALLOW_WRITE_ERROR = "swallow a write error"
    DROP_ERROR = "drop a row's error"
    FOREIGN_412_FAILS = "treat another writer's 412 as a failure"
    STREAM = "stream to the final name"
    SKIP_UNKNOWN = "skip an unknown unit"
    BLIND_REPAIR = "repair without a condition"
    FORGET_ANSWERS = "let a failed retry remove an answer"
    FORGET_OWN = "do not recognize the own repair after a lost reply"


class Step(Enum):
    """The next step of an actor."""

    BEGIN = auto()
    PUBLISH = auto()
    LIST = auto()
    PUT = auto()
    PUT_REST = auto()
    READ = auto()
    REPAIR = auto()
    VERIFY = auto()
    SUCCEED = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Object:
    """A unit's object: its rows, whether each is answered, and its footer's record."""

    rows: tuple[tuple[int, bool], ...]
    rejects: int
    writer: str
    repairs: tuple[str, ...] = ()

    @property
    def answered(self) -> frozenset[int]:
        return frozenset(row for row, is_answered in self.rows if is_answered)


@dataclass(frozen=True, slots=True)
class Put:
    """A conditional write: the current object must be `replaces`, None for no object."""

    key: Key
    object: Object
    replaces: Object | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """A driver or repairer. `reported` are the units that it reports as written, with attempts."""

    name: str
    step: Step = Step.BEGIN
    num_crashes: int = 0
    plan: str = ""
    todo: tuple[Key, ...] = ()
    selected: frozenset[int] = frozenset()
    read: Object | None = None
    reported: frozenset[tuple[Key, str]] = frozenset()
    outcome: str = ""

    @property
    def attempt(self) -> str:
        return f"{self.name} {self.num_crashes}"

    @property
    def is_driver(self) -> bool:
        return self.name in _PLAN_OF


@dataclass(frozen=True, slots=True)
class World:
    """The state of the model. `faults` and `crashes` are how many may still happen."""

    actors: tuple[Actor, ...]
    faults: int
    crashes: int
    plan: str = ""
    objects: frozenset[tuple[Key, Object]] = frozenset()
    in_flight: frozenset[Put] = frozenset()
    success: bool = False

    def object_at(self, key: Key) -> Object | None:
        return dict(self.objects).get(key)

    def with_object(self, key: Key, new: Object | None) -> "World":
        """The world with this object, or none, at the key."""
        others = {item for item in self.objects if item[0] != key}
        return replace(self, objects=frozenset(others | ({(key, new)} if new else set())))

    def with_actor(self, actor: Actor) -> "World":
        actors = tuple(actor if old.name == actor.name else old for old in self.actors)
        return replace(self, actors=actors)


Steps = Iterator[tuple[str, World]]


@dataclass(frozen=True, slots=True)
class Explored:
    """The number of reachable states, or the steps to the first broken guarantee."""

    num_states: int
    violation: str = ""
    steps: tuple[str, ...] = ()


def explore(start: World, bug: Bug | None = None) -> Explored:
    """Explore every order of steps, shortest first, until a guarantee is broken."""
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        is_end = True
        for label, after in _steps(world, bug):
            is_end = False
            is_new = after not in came_from
            if is_new:
                came_from[after] = world, label
                queue.append(after)
            broken = _broken(world, after)
            if broken:
                return Explored(len(came_from), broken, (*_path(came_from, world), label))
        if is_end and any(actor.step is not Step.END for actor in world.actors):
            return Explored(len(came_from), "an actor waits forever", _path(came_from, world))
    return Explored(len(came_from))


def _path(came_from: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels: list[str] = []
    while (step := came_from[world]) is not None:
        world, label = step
        labels.append(label)
    return tuple(reversed(labels))


# The guarantees.


def _broken(before: World, after: World) -> str:
    """The first guarantee that a step breaks, or an empty text."""
    lost = _nothing_is_lost(before, after)
    if lost:
        return lost
    for check in (_units_are_whole, _rows_are_unique, _success_is_true, _reports_are_true):
        broken = check(after)
        if broken:
            return broken
    return ""


def _units_are_whole(world: World) -> str:
    for key, unit in world.objects:
        if tuple(row for row, _ in unit.rows) != tuple(range(*key)):
            return "a unit is torn"
        if unit.rejects != len(unit.rows) - len(unit.answered):
            return "a unit's rejects are miscounted"
        if len(set(unit.repairs)) != len(unit.repairs):
            return "a repair is made twice"
    return ""


def _rows_are_unique(world: World) -> str:
    rows = [row for key, _ in world.objects for row in range(*key)]
    return "a row is doubled" if len(set(rows)) != len(rows) else ""


def _success_is_true(world: World) -> str:
    keys = {key for key, _ in world.objects}
    is_whole = world.plan and keys == set(PLANS[world.plan])
    return "success without all rows" if world.success and not is_whole else ""


def _reports_are_true(world: World) -> str:
    for actor in world.actors:
        if actor.outcome == "failed":
            return "an actor fails for no reason"
        for key, attempt in actor.reported:
            unit = world.object_at(key)
            if unit is None:
                return "a unit is reported and missing"
            if not actor.is_driver and attempt not in unit.repairs:
                return "a repair is reported and missing"
    return ""


def _nothing_is_lost(before: World, after: World) -> str:
    for key, old in before.objects:
        new = after.object_at(key)
        if new is None:
            return "a committed unit is gone"
        if not old.answered <= new.answered:
            return "an answer is lost"
        if new != old and (new.writer, new.repairs[:-1]) != (old.writer, old.repairs):
            return "a committed unit was changed"
    return ""


# The steps.


def _steps(world: World, bug: Bug | None) -> Steps:
    """Yield every possible next step, in words, and the world after it."""
    for put in world.in_flight:
        landed = replace(world, in_flight=world.in_flight - {put})
        yield f"a write of {put.key} arrives late", _applied(landed, put, bug)[0]
        yield f"a write of {put.key} never arrives", landed
    for actor in world.actors:
        if actor.step is Step.END:
            continue
        for label, after in _ACTS[actor.step](world, actor, bug):
            yield f"{actor.attempt}: {label}", after
        if world.crashes:
            restarted = world.with_actor(Actor(actor.name, num_crashes=actor.num_crashes + 1))
            yield f"{actor.attempt} crashes", replace(restarted, crashes=world.crashes - 1)


def _applied(world: World, put: Put, bug: Bug | None) -> tuple[World, bool]:
    """Apply a write: the world after it, and whether its condition held."""
    is_blind = bug is Bug.BLIND_REPAIR and put.replaces is not None
    if world.object_at(put.key) != put.replaces and not is_blind:
        return world, False
    return world.with_object(put.key, put.object), True


def _sent(world: World, put: Put, bug: Bug | None) -> Iterator[tuple[str, World, bool | None]]:
    """Yield the outcomes of a write, with whether its condition held; None if unknown."""
    after, is_written = _applied(world, put, bug)
    label = f"writes {put.key}" if is_written else f"finds {put.key} written"
    yield label, after, is_written
    if world.faults:
        faulty = replace(world, faults=world.faults - 1)
        yield "is refused by a busy store", faulty, None
        lost, _ = _applied(faulty, put, bug)
        yield f"writes {put.key}, but the reply is lost", lost, None
        pending = replace(faulty, in_flight=faulty.in_flight | {put})
        yield f"gives up a write of {put.key} that is in flight", pending, None


def _ended(actor: Actor, outcome: str) -> Actor:
    return replace(actor, step=Step.END, outcome=outcome)


def _begin(world: World, actor: Actor, _: Bug | None) -> Steps:
    if not actor.is_driver:
        yield from _begin_repair(world, actor)
    elif world.success:
        yield "finds it finished", world.with_actor(_ended(actor, "finished"))
    elif world.plan:
        planned = replace(actor, step=Step.LIST, plan=world.plan)
        yield f"finds plan {world.plan}", world.with_actor(planned)
    else:
        yield "finds no plan", world.with_actor(replace(actor, step=Step.PUBLISH))


def _publish(world: World, actor: Actor, bug: Bug | None) -> Steps:
    proposed = _PLAN_OF[actor.name]
    published = world.plan or proposed
    used = proposed if bug is Bug.STALE_PLAN else published
    after = replace(world, plan=published)
    planned = replace(actor, step=Step.LIST, plan=used)
    yield f"publishes plan {proposed}, gets {published}", after.with_actor(planned)


def _list(world: World, actor: Actor, bug: Bug | None) -> Steps:
    listed = {key for key, _ in world.objects}
    units = PLANS[actor.plan]
    if listed - set(units) and bug is not Bug.SKIP_UNKNOWN:
        yield "refuses a unit of another plan", world.with_actor(_ended(actor, "refused"))
        return
    todo = tuple(key for key in units if key not in listed)
    yield f"has {len(todo)} units to run", world.with_actor(_next_unit(actor, todo))


def _next_unit(actor: Actor, todo: tuple[Key, ...]) -> Actor:
    return replace(actor, step=Step.PUT if todo else Step.VERIFY, todo=todo)


def _first_run(actor: Actor, key: Key, bug: Bug | None) -> Object:
    rows = tuple((row, row in _ANSWERED_IN_FIRST_RUN) for row in range(*key))
    if bug is Bug.DROP_ERROR:
        rows = tuple((row, is_answered) for row, is_answered in rows if is_answered)
    return Object(rows, sum(not is_answered for _, is_answered in rows), actor.attempt)


def _put(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key, *rest = actor.todo
    complete = _first_run(actor, key, bug)
    if bug in _HALVES:
        yield from _put_first_half(world, actor, bug)
        return
    done = replace(_next_unit(actor, tuple(rest)), reported=actor.reported | {(key, actor.attempt)})
    for label, after, is_written in _sent(world, Put(key, complete), bug):
        if is_written is None:
            is_swallowed = bug is Bug.SWALLOW_WRITE_ERROR
            yield label, after.with_actor(done if is_swallowed else actor)
        elif not is_written and bug is Bug.FOREIGN_412_FAILS and _is_foreign(after, key, actor):
            yield label, after.with_actor(_ended(actor, "failed"))
        else:
            yield label, after.with_actor(done)


def _is_foreign(world: World, key: Key, actor: Actor) -> bool:
    unit = world.object_at(key)
    return unit is not None and unit.writer != actor.attempt


#: Bugs that write a unit in two steps, and the number of rows that the first one writes.
_HALVES = {Bug.OVERWRITE: None, Bug.COMMIT_BEFORE_WRITE: 0, Bug.STREAM: 1}


def _put_first_half(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key = actor.todo[0]
    complete = _first_run(actor, key, bug)
    num_rows = _HALVES[bug] if bug else None
    half = None if num_rows is None else replace(complete, rows=complete.rows[:num_rows])
    if half == complete:
        # The first half of a unit with one row would be the whole unit.
        half = replace(complete, rows=())
    after = world.with_object(key, half)
    yield f"starts to write {key}", after.with_actor(replace(actor, step=Step.PUT_REST))


def _put_rest(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key, *rest = actor.todo
    done = replace(_next_unit(actor, tuple(rest)), reported=actor.reported | {(key, actor.attempt)})
    after = world.with_object(key, _first_run(actor, key, bug))
    yield f"writes the rest of {key}", after.with_actor(done)


def _begin_repair(world: World, actor: Actor) -> Steps:
    rejected = sorted(key for key, unit in world.objects if unit.rejects)
    if not world.plan or not rejected:
        yield "finds nothing to repair", world.with_actor(_ended(actor, "nothing"))
        return
    for key in rejected:
        unit = world.object_at(key)
        assert unit is not None
        chosen = replace(
            actor,
            step=Step.READ,
            plan=world.plan,
            todo=(key,),
            selected=frozenset(range(*key)) - unit.answered,
        )
        yield f"has rows of {key} to answer", world.with_actor(chosen)


def _read(world: World, actor: Actor, bug: Bug | None) -> Steps:
    (key,) = actor.todo
    unit = world.object_at(key)
    assert unit is not None
    if actor.attempt in unit.repairs and bug is not Bug.FORGET_OWN:
        reported = actor.reported | {(key, actor.attempt)}
        repaired = replace(actor, step=Step.VERIFY, reported=reported, read=None)
        yield "finds its own repair", world.with_actor(repaired)
    else:
        yield f"reads {key}", world.with_actor(replace(actor, step=Step.REPAIR, read=unit))


def _repair(world: World, actor: Actor, bug: Bug | None) -> Steps:
    (key,) = actor.todo
    assert actor.read is not None
    put = Put(key, _repaired(actor, actor.read, bug), replaces=actor.read)
    reported = actor.reported | {(key, actor.attempt)}
    for label, after, is_written in _sent(world, put, bug):
        if is_written:
            done = replace(actor, step=Step.VERIFY, reported=reported, read=None)
            yield label, after.with_actor(done)
        elif is_written is None:
            yield label, after.with_actor(actor)
        else:
            yield label, after.with_actor(replace(actor, step=Step.READ, read=None))


def _repaired(actor: Actor, read: Object, bug: Bug | None) -> Object:
    """The object that was read, with the new results of the selected rows."""
    answered = read.answered | (_ROWS_OF[actor.name] & actor.selected)
    if bug is Bug.FORGET_ANSWERS:
        answered -= actor.selected - _ROWS_OF[actor.name]
    rows = tuple((row, row in answered) for row, _ in read.rows)
    return replace(
        read,
        rows=rows,
        rejects=sum(not is_answered for _, is_answered in rows),
        repairs=(*read.repairs, actor.attempt),
    )


def _verify(world: World, actor: Actor, bug: Bug | None) -> Steps:
    listed = {key for key, _ in world.objects}
    units = set(PLANS[actor.plan])
    is_whole = units <= listed if bug is Bug.SKIP_UNKNOWN else units == listed
    if is_whole:
        yield "verifies", world.with_actor(replace(actor, step=Step.SUCCEED))
    else:
        # The output of a repairer may be unfinished.
        outcome = "failed" if actor.is_driver else "incomplete"
        yield "finds units missing", world.with_actor(_ended(actor, outcome))


def _succeed(world: World, actor: Actor, _: Bug | None) -> Steps:
    yield "succeeds", replace(world, success=True).with_actor(_ended(actor, "finished"))


_ACTS = {
    Step.BEGIN: _begin,
    Step.PUBLISH: _publish,
    Step.LIST: _list,
    Step.PUT: _put,
    Step.PUT_REST: _put_rest,
    Step.READ: _read,
    Step.REPAIR: _repair,
    Step.VERIFY: _verify,
    Step.SUCCEED: _succeed,
}


# The start.

_OLDER = Object(((0, False),), 1, "older")

_FINISHED = frozenset(
    {
        ((0, 2), Object(((0, False), (1, False)), 2, "one 0")),
        ((2, 3), Object(((2, True),), 0, "one 0")),
    }
)


def scenarios(faults: int, crashes: int) -> dict[str, World]:
    """The initial worlds, with the numbers of faults and crashes that may happen."""

    def world(*names: str, **facts: Any) -> World:
        return World(tuple(map(Actor, names)), faults, crashes, **facts)

    return {
        "two drivers": world("one", "other"),
        "a driver and a repairer": world("one", "repairer"),
        "two repairers of a finished output": world(
            "repairer", "other repairer", plan="A", success=True, objects=_FINISHED
        ),
        "two repairers and a driver": world("other", "repairer", "other repairer"),
        "a unit of another plan in the way": world(
            "one", plan="A", objects=frozenset({((0, 1), _OLDER)})
        ),
    }


def main() -> None:
    """Explore more faults and crashes than the tests do, which takes minutes, and count states."""
    for name, start in scenarios(faults=2, crashes=2).items():
        explored = explore(start)
        print(f"{name}: {explored.num_states:,} states, {explored.violation or 'no violation'}")


if __name__ == "__main__":
    main()
