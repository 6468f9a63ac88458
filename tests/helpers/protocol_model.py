"""A model of how an output is made: drivers and repairers whose every order of steps is tried.

A shard of three rows; the first two get no answer in a first run. Drivers may cut it into units in
two ways; repairers answer one of the two rejected rows each. A step is one call of the store. Any
of them may crash and begin anew, a reply may be lost, a write may be refused, and a write may be
under way while its writer has given it up, is dead or has tried again: then it arrives later, or
never. `Bug` names mistakes that the protocol must not make, each of which breaks a promise.

The model knows nothing of Parquet, Ray and engines: `commit`, `output`, `prepare`, `retry` and
`run` are the real thing, and `faults/mutations.py` makes the same mistakes in them.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Any

Key = tuple[int, int]

NUM_ROWS = 3
#: The two ways to cut the shard; a unit is named by its first row and the row behind its last.
PLANS: dict[str, tuple[Key, ...]] = {"A": ((0, 2), (2, 3)), "B": ((0, 1), (1, 3))}
_ANSWERED_AT_FIRST = frozenset({2})
#: What each driver cuts, and which rows each repairer can answer.
_CUTS = {"one": "A", "other": "B"}
_ANSWERS = {"mender": frozenset({0}), "patcher": frozenset({1})}


class Bug(StrEnum):
    """Mistakes, each seeded into the model alone."""

    OVERWRITE = "no conditional PUT, and delete before write"
    COMMIT_BEFORE_WRITE = "commit before write"
    STALE_PLAN = "resume from a stale plan"
    SWALLOW_WRITE_ERROR = "swallow a write error"
    DROP_ERROR = "drop a row's error"
    FOREIGN_412_FAILS = "treat a foreign 412 as failure"
    STREAM = "stream to the final name"
    SKIP_UNKNOWN = "skip an unknown unit"
    BLIND_EXCHANGE = "repair without a condition"
    FORGET_ANSWERS = "let a failed retry take an answer away"
    FORGET_OWN = "do not know a repair as one's own after a lost reply"


class Step(Enum):
    """What an actor does next."""

    BEGIN = auto()
    PUBLISH = auto()
    LIST = auto()
    PUT = auto()
    PUT_REST = auto()
    READ = auto()
    EXCHANGE = auto()
    VERIFY = auto()
    SUCCEED = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Object:
    """A unit's object: its rows by position and whether each is answered; what its footer says."""

    rows: tuple[tuple[int, bool], ...]
    rejects: int
    writer: str
    repairs: tuple[str, ...] = ()

    @property
    def answered(self) -> frozenset[int]:
        return frozenset(row for row, is_answered in self.rows if is_answered)


@dataclass(frozen=True, slots=True)
class Put:
    """A write under a condition: that nothing stands there, or just `replaces`."""

    key: Key
    object: Object
    replaces: Object | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """A driver or repairer; `told` are the units that it holds for written, by which attempt."""

    name: str
    step: Step = Step.BEGIN
    life: int = 0
    plan: str = ""
    todo: tuple[Key, ...] = ()
    wanted: frozenset[int] = frozenset()
    seen: Object | None = None
    told: frozenset[tuple[Key, str]] = frozenset()
    outcome: str = ""

    @property
    def attempt(self) -> str:
        return f"{self.name} {self.life}"

    @property
    def is_driver(self) -> bool:
        return self.name in _CUTS


@dataclass(frozen=True, slots=True)
class World:
    """Everything there is. `faults` and `crashes` are how many may still happen."""

    actors: tuple[Actor, ...]
    faults: int
    crashes: int
    plan: str = ""
    objects: frozenset[tuple[Key, Object]] = frozenset()
    flying: frozenset[Put] = frozenset()
    success: bool = False

    def standing(self, key: Key) -> Object | None:
        return dict(self.objects).get(key)

    def holding(self, key: Key, made: Object | None) -> "World":
        """With this object, or none, under the key."""
        others = {item for item in self.objects if item[0] != key}
        return replace(self, objects=frozenset(others | ({(key, made)} if made else set())))

    def with_actor(self, actor: Actor) -> "World":
        actors = tuple(actor if each.name == actor.name else each for each in self.actors)
        return replace(self, actors=actors)


Steps = Iterator[tuple[str, World]]


@dataclass(frozen=True, slots=True)
class Explored:
    """All states that can be reached, or the steps to the first broken promise."""

    num_states: int
    violation: str = ""
    steps: tuple[str, ...] = ()


def explore(start: World, bug: Bug | None = None) -> Explored:
    """Try every order of steps, shortest first, until a promise is broken."""
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
                return Explored(len(came_from), broken, (*_way(came_from, world), label))
        if is_end and any(actor.step is not Step.END for actor in world.actors):
            return Explored(len(came_from), "somebody waits for ever", _way(came_from, world))
    return Explored(len(came_from))


def _way(came_from: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    labels: list[str] = []
    while (step := came_from[world]) is not None:
        world, label = step
        labels.append(label)
    return tuple(reversed(labels))


# What is promised.


def _broken(before: World, after: World) -> str:
    """The first promise that a step breaks."""
    lost = _nothing_is_lost(before, after)
    if lost:
        return lost
    for promise in (_units_are_whole, _rows_stand_once, _success_is_true, _what_is_told_is_true):
        broken = promise(after)
        if broken:
            return broken
    return ""


def _units_are_whole(world: World) -> str:
    for key, made in world.objects:
        if tuple(row for row, _ in made.rows) != tuple(range(*key)):
            return "a unit is torn"
        if made.rejects != len(made.rows) - len(made.answered):
            return "a unit's rejects are miscounted"
        if len(set(made.repairs)) != len(made.repairs):
            return "a repair is made twice"
    return ""


def _rows_stand_once(world: World) -> str:
    rows = [row for key, _ in world.objects for row in range(*key)]
    return "a row is doubled" if len(set(rows)) != len(rows) else ""


def _success_is_true(world: World) -> str:
    keys = {key for key, _ in world.objects}
    is_whole = world.plan and keys == set(PLANS[world.plan])
    return "success without all rows" if world.success and not is_whole else ""


def _what_is_told_is_true(world: World) -> str:
    for actor in world.actors:
        if actor.outcome == "failed":
            return "somebody fails for no reason"
        for key, attempt in actor.told:
            made = world.standing(key)
            if made is None:
                return "a unit is reported and missing"
            if not actor.is_driver and attempt not in made.repairs:
                return "a repair is told and not there"
    return ""


def _nothing_is_lost(before: World, after: World) -> str:
    for key, was in before.objects:
        now = after.standing(key)
        if now is None:
            return "a committed unit is gone"
        if not was.answered <= now.answered:
            return "an answer is lost"
        if now != was and (now.writer, now.repairs[:-1]) != (was.writer, was.repairs):
            return "a committed unit was changed"
    return ""


# What can happen.


def _steps(world: World, bug: Bug | None) -> Steps:
    """Every next step, in words, and the world after it."""
    for put in world.flying:
        landed = replace(world, flying=world.flying - {put})
        yield f"a write of {put.key} arrives late", _applied(landed, put, bug)[0]
        yield f"a write of {put.key} never arrives", landed
    for actor in world.actors:
        if actor.step is Step.END:
            continue
        for label, after in _ACTS[actor.step](world, actor, bug):
            yield f"{actor.attempt}: {label}", after
        if world.crashes:
            reborn = world.with_actor(Actor(actor.name, life=actor.life + 1))
            yield f"{actor.attempt} crashes", replace(reborn, crashes=world.crashes - 1)


def _applied(world: World, put: Put, bug: Bug | None) -> tuple[World, bool]:
    """A write at the store: the world behind it, and whether its condition held."""
    is_blind = bug is Bug.BLIND_EXCHANGE and put.replaces is not None
    if world.standing(put.key) != put.replaces and not is_blind:
        return world, False
    return world.holding(put.key, put.object), True


def _sent(world: World, put: Put, bug: Bug | None) -> Iterator[tuple[str, World, bool | None]]:
    """What becomes of a write: whether its condition held, or None where nobody knows."""
    after, made = _applied(world, put, bug)
    yield f"writes {put.key}" if made else f"finds {put.key} written", after, made
    if world.faults:
        poorer = replace(world, faults=world.faults - 1)
        yield "is refused by a busy store", poorer, None
        lost, _ = _applied(poorer, put, bug)
        yield f"writes {put.key}, but the reply is lost", lost, None
        under_way = replace(poorer, flying=poorer.flying | {put})
        yield f"gives up a write of {put.key} that is under way", under_way, None


def _ended(actor: Actor, outcome: str) -> Actor:
    return replace(actor, step=Step.END, outcome=outcome)


def _begin(world: World, actor: Actor, _: Bug | None) -> Steps:
    if not actor.is_driver:
        yield from _begin_repair(world, actor)
    elif world.success:
        yield "finds it finished", world.with_actor(_ended(actor, "finished"))
    elif world.plan:
        found = replace(actor, step=Step.LIST, plan=world.plan)
        yield f"finds plan {world.plan}", world.with_actor(found)
    else:
        yield "finds no plan", world.with_actor(replace(actor, step=Step.PUBLISH))


def _publish(world: World, actor: Actor, bug: Bug | None) -> Steps:
    own = _CUTS[actor.name]
    standing = world.plan or own
    believed = own if bug is Bug.STALE_PLAN else standing
    after = replace(world, plan=standing)
    planned = replace(actor, step=Step.LIST, plan=believed)
    yield f"publishes plan {own}, {standing} stands", after.with_actor(planned)


def _list(world: World, actor: Actor, bug: Bug | None) -> Steps:
    found = {key for key, _ in world.objects}
    units = PLANS[actor.plan]
    if found - set(units) and bug is not Bug.SKIP_UNKNOWN:
        yield "refuses a unit of another plan", world.with_actor(_ended(actor, "refused"))
        return
    todo = tuple(key for key in units if key not in found)
    yield f"has {len(todo)} units to run", world.with_actor(_next_unit(actor, todo))


def _next_unit(actor: Actor, todo: tuple[Key, ...]) -> Actor:
    return replace(actor, step=Step.PUT if todo else Step.VERIFY, todo=todo)


def _first_run(actor: Actor, key: Key, bug: Bug | None) -> Object:
    rows = tuple((row, row in _ANSWERED_AT_FIRST) for row in range(*key))
    if bug is Bug.DROP_ERROR:
        rows = tuple((row, is_answered) for row, is_answered in rows if is_answered)
    return Object(rows, sum(not is_answered for _, is_answered in rows), actor.attempt)


def _put(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key, *rest = actor.todo
    whole = _first_run(actor, key, bug)
    if bug in _HALVES:
        yield from _put_first_half(world, actor, bug)
        return
    done = replace(_next_unit(actor, tuple(rest)), told=actor.told | {(key, actor.attempt)})
    for label, after, made in _sent(world, Put(key, whole), bug):
        if made is None:
            is_swallowed = bug is Bug.SWALLOW_WRITE_ERROR
            yield label, after.with_actor(done if is_swallowed else actor)
        elif not made and bug is Bug.FOREIGN_412_FAILS and _is_foreign(after, key, actor):
            yield label, after.with_actor(_ended(actor, "failed"))
        else:
            yield label, after.with_actor(done)


def _is_foreign(world: World, key: Key, actor: Actor) -> bool:
    made = world.standing(key)
    return made is not None and made.writer != actor.attempt


#: Bugs that write a unit in two steps, and how many of its rows the first one writes.
_HALVES = {Bug.OVERWRITE: None, Bug.COMMIT_BEFORE_WRITE: 0, Bug.STREAM: 1}


def _put_first_half(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key = actor.todo[0]
    whole = _first_run(actor, key, bug)
    num_rows = _HALVES[bug] if bug else None
    half = None if num_rows is None else replace(whole, rows=whole.rows[:num_rows])
    if half == whole:
        # A unit of one row is written by the first half already.
        half = replace(whole, rows=())
    after = world.holding(key, half)
    yield f"begins to write {key}", after.with_actor(replace(actor, step=Step.PUT_REST))


def _put_rest(world: World, actor: Actor, bug: Bug | None) -> Steps:
    key, *rest = actor.todo
    done = replace(_next_unit(actor, tuple(rest)), told=actor.told | {(key, actor.attempt)})
    after = world.holding(key, _first_run(actor, key, bug))
    yield f"writes {key} to its end", after.with_actor(done)


def _begin_repair(world: World, actor: Actor) -> Steps:
    rejected = sorted(key for key, made in world.objects if made.rejects)
    if not world.plan or not rejected:
        yield "finds nothing to repair", world.with_actor(_ended(actor, "nothing"))
        return
    for key in rejected:
        made = world.standing(key)
        assert made is not None
        chosen = replace(
            actor,
            step=Step.READ,
            plan=world.plan,
            todo=(key,),
            wanted=frozenset(range(*key)) - made.answered,
        )
        yield f"has rows of {key} to answer", world.with_actor(chosen)


def _read(world: World, actor: Actor, bug: Bug | None) -> Steps:
    (key,) = actor.todo
    made = world.standing(key)
    assert made is not None
    if actor.attempt in made.repairs and bug is not Bug.FORGET_OWN:
        told = actor.told | {(key, actor.attempt)}
        known = replace(actor, step=Step.VERIFY, told=told, seen=None)
        yield "finds its own repair", world.with_actor(known)
    else:
        yield f"reads {key}", world.with_actor(replace(actor, step=Step.EXCHANGE, seen=made))


def _exchange(world: World, actor: Actor, bug: Bug | None) -> Steps:
    (key,) = actor.todo
    assert actor.seen is not None
    put = Put(key, _mended(actor, actor.seen, bug), replaces=actor.seen)
    told = actor.told | {(key, actor.attempt)}
    for label, after, made in _sent(world, put, bug):
        if made:
            done = replace(actor, step=Step.VERIFY, told=told, seen=None)
            yield label, after.with_actor(done)
        elif made is None:
            yield label, after.with_actor(actor)
        else:
            yield label, after.with_actor(replace(actor, step=Step.READ, seen=None))


def _mended(actor: Actor, seen: Object, bug: Bug | None) -> Object:
    """The object that was read with the wanted rows' new fates in it."""
    answered = seen.answered | (_ANSWERS[actor.name] & actor.wanted)
    if bug is Bug.FORGET_ANSWERS:
        answered -= actor.wanted - _ANSWERS[actor.name]
    rows = tuple((row, row in answered) for row, _ in seen.rows)
    return replace(
        seen,
        rows=rows,
        rejects=sum(not is_answered for _, is_answered in rows),
        repairs=(*seen.repairs, actor.attempt),
    )


def _verify(world: World, actor: Actor, bug: Bug | None) -> Steps:
    found = {key for key, _ in world.objects}
    units = set(PLANS[actor.plan])
    is_whole = units <= found if bug is Bug.SKIP_UNKNOWN else units == found
    if is_whole:
        yield "verifies", world.with_actor(replace(actor, step=Step.SUCCEED))
    else:
        # A repairer may find an output that is not finished yet.
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
    Step.EXCHANGE: _exchange,
    Step.VERIFY: _verify,
    Step.SUCCEED: _succeed,
}


# Where it begins.

_OLDER = Object(((0, False),), 1, "older")

_FINISHED = frozenset(
    {
        ((0, 2), Object(((0, False), (1, False)), 2, "one 0")),
        ((2, 3), Object(((2, True),), 0, "one 0")),
    }
)


def scenarios(faults: int, crashes: int) -> dict[str, World]:
    """Where it may begin, with so many faults and crashes ahead."""

    def world(*names: str, **facts: Any) -> World:
        return World(tuple(map(Actor, names)), faults, crashes, **facts)

    return {
        "two drivers": world("one", "other"),
        "a driver and a repairer": world("one", "mender"),
        "two repairers of a finished output": world(
            "mender", "patcher", plan="A", success=True, objects=_FINISHED
        ),
        "two repairers beside a driver": world("other", "mender", "patcher"),
        "a unit of another plan in the way": world(
            "one", plan="A", objects=frozenset({((0, 1), _OLDER)})
        ),
    }


def main() -> None:
    """Explore more faults and crashes than the tests do (minutes), and count."""
    for name, start in scenarios(faults=2, crashes=2).items():
        explored = explore(start)
        print(f"{name}: {explored.num_states:,} states, {explored.violation or 'no violation'}")


if __name__ == "__main__":
    main()
