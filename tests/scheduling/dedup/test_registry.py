"""The registry: one replica computes, all that claim get the answer, and none waits for ever."""

from collections.abc import Sequence

from tokenmill.scheduling.dedup.registry import (
    MEMBER_TIMEOUT_S,
    InFlightRegistry,
    PackedAnswer,
    RegistryUpdate,
)


class Clock:
    """A clock that shows `now`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def registry_of(*replicas: str, clock: Clock | None = None) -> InFlightRegistry:
    """A registry with these members; each one's membership has its name."""
    registry = InFlightRegistry(clock=clock or Clock())
    for replica in replicas:
        registry.join(replica, replica)
    return registry


def exchange(
    registry: InFlightRegistry,
    replica: str,
    claims: Sequence[bytes] = (),
    answers: Sequence[PackedAnswer] = (),
) -> RegistryUpdate | None:
    return registry.exchange(replica, replica, claims, answers)


def test_the_first_claim_is_granted_and_the_others_get_the_answer() -> None:
    """Waiting replicas get the answer as soon as it is there; later claims get it at once."""
    registry = registry_of("a", "b", "c")
    assert exchange(registry, "a", [b"1", b"2"]) == RegistryUpdate(granted=[b"1", b"2"])
    assert exchange(registry, "b", [b"2", b"3"]) == RegistryUpdate(granted=[b"3"], elsewhere=[b"2"])
    assert exchange(registry, "a", answers=[(b"2", b"two")]) == RegistryUpdate()
    assert exchange(registry, "b") == RegistryUpdate(answers=[(b"2", b"two")])
    assert exchange(registry, "c", [b"2"]) == RegistryUpdate(answers=[(b"2", b"two")])
    assert exchange(registry, "b") == RegistryUpdate()


def test_a_claim_given_up_is_granted_to_the_replica_that_has_waited_longest() -> None:
    """The replicas that wait behind it get its answer; none is skipped or granted twice."""
    registry = registry_of("a", "b", "c")
    for replica in "abc":
        exchange(registry, replica, [b"1"])
    exchange(registry, "a", answers=[(b"1", None)])
    assert exchange(registry, "b") == RegistryUpdate(granted=[b"1"])
    assert exchange(registry, "c") == RegistryUpdate()
    assert exchange(registry, "a", [b"1"]) == RegistryUpdate(elsewhere=[b"1"])
    exchange(registry, "b", answers=[(b"1", b"one")])
    one = RegistryUpdate(answers=[(b"1", b"one")])
    assert exchange(registry, "c") == exchange(registry, "a") == one


def test_only_the_holder_can_give_a_claim_up() -> None:
    """A replica that gives up a hash it does not hold changes nothing; later claims are granted."""
    registry = registry_of("a", "b")
    exchange(registry, "a", [b"1"])
    assert exchange(registry, "b", answers=[(b"1", None)], claims=[b"1"]) == RegistryUpdate(
        elsewhere=[b"1"]
    )
    exchange(registry, "a", answers=[(b"1", None)])
    assert exchange(registry, "b") == RegistryUpdate(granted=[b"1"])
    exchange(registry, "b", answers=[(b"1", None)])
    assert exchange(registry, "a", [b"1"]) == RegistryUpdate(granted=[b"1"])


def test_the_claims_of_a_removed_replica_go_to_those_that_wait() -> None:
    """Even if the first of them is removed too. What the removed replica waited for is dropped."""
    registry = registry_of("a", "b", "c")
    for replica in "abc":
        exchange(registry, replica, [b"1"])
    exchange(registry, "c", [b"2"])
    exchange(registry, "b", [b"2"])
    registry.remove("b")
    registry.remove("a")
    assert exchange(registry, "c") == RegistryUpdate(granted=[b"1"])
    exchange(registry, "c", answers=[(b"1", b"one"), (b"2", b"two")])
    assert registry.updates == {}
    assert exchange(registry, "a") is exchange(registry, "b") is None


def test_a_silent_replica_is_removed_and_has_to_join_again() -> None:
    """A replica that hangs delays others no longer than the time limit; it gets None afterwards."""
    clock = Clock()
    registry = registry_of("a", "b", clock=clock)
    exchange(registry, "a", [b"1"])
    exchange(registry, "b", [b"1"])
    clock.now = MEMBER_TIMEOUT_S
    assert exchange(registry, "b") == RegistryUpdate()
    clock.now += 1
    assert exchange(registry, "b") == RegistryUpdate(granted=[b"1"])
    assert exchange(registry, "a") is None
    registry.join("a", "a again")
    assert registry.exchange("a", "a again", [b"1"], ()) == RegistryUpdate(elsewhere=[b"1"])


def test_calls_under_an_earlier_membership_have_no_effect() -> None:
    """A call that was delayed until after the replica joined again claims nothing."""
    registry = registry_of("a", "b")
    exchange(registry, "a", [b"1"])
    registry.join("a", "a again")
    assert exchange(registry, "a", [b"2"]) is None
    assert exchange(registry, "b", [b"1", b"2"]) == RegistryUpdate(granted=[b"1", b"2"])


def test_an_answer_is_taken_from_any_replica() -> None:
    """A replica that was taken for gone may answer before the one that has its claim now."""
    registry = registry_of("a", "b", "c")
    for replica in "abc":
        exchange(registry, replica, [b"1"])
    registry.join("a", "a again")
    assert exchange(registry, "b") == RegistryUpdate(granted=[b"1"])
    registry.exchange("a", "a again", (), [(b"1", b"one")])
    assert exchange(registry, "c") == RegistryUpdate(answers=[(b"1", b"one")])
    exchange(registry, "b", answers=[(b"1", b"one")])
    assert registry.updates == {}


def test_memory_is_bounded() -> None:
    """The least recently used answer is evicted, and computed again if it is claimed."""
    registry = InFlightRegistry(max_bytes=10_000)
    registry.join("a", "a")
    hashes = [bytes([number]) for number in range(8)]
    exchange(registry, "a", hashes)
    exchange(registry, "a", answers=[(request_hash, bytes(2000)) for request_hash in hashes])
    update = exchange(registry, "a", hashes)
    assert update is not None
    assert update.granted == hashes[:4]
    assert [request_hash for request_hash, _ in update.answers] == hashes[4:]
