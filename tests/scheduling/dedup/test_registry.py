"""The ledger: one computes, all that ask have the answer, and no death leaves one waiting."""

from collections.abc import Sequence

from tokenmill.scheduling.dedup.registry import (
    SILENCE_S,
    Answered,
    InFlightRegistry,
    RegistryUpdate,
)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def joined(*replicas: str, clock: Clock | None = None) -> InFlightRegistry:
    """A ledger whose members are these, each under its own name."""
    ledger = InFlightRegistry(clock=clock or Clock())
    for replica in replicas:
        ledger.join(replica, replica)
    return ledger


def exchange(
    ledger: InFlightRegistry,
    replica: str,
    asked: Sequence[bytes] = (),
    answered: Sequence[Answered] = (),
) -> RegistryUpdate | None:
    return ledger.exchange(replica, replica, asked, answered)


def test_the_first_that_asks_computes_and_the_others_get_its_answer() -> None:
    """Whoever waits gets the answer as it comes; whoever asks later gets it at once."""
    ledger = joined("a", "b", "c")
    assert exchange(ledger, "a", [b"1", b"2"]) == RegistryUpdate(granted=[b"1", b"2"])
    assert exchange(ledger, "b", [b"2", b"3"]) == RegistryUpdate(granted=[b"3"], elsewhere=[b"2"])
    assert exchange(ledger, "a", answered=[(b"2", b"two")]) == RegistryUpdate()
    assert exchange(ledger, "b") == RegistryUpdate(known=[(b"2", b"two")])
    assert exchange(ledger, "c", [b"2"]) == RegistryUpdate(known=[(b"2", b"two")])
    assert exchange(ledger, "b") == RegistryUpdate()


def test_without_an_answer_the_next_one_that_waits_computes() -> None:
    """A waiter of a waiter gets the second one's answer; none is passed over or asked twice."""
    ledger = joined("a", "b", "c")
    for replica in "abc":
        exchange(ledger, replica, [b"1"])
    exchange(ledger, "a", answered=[(b"1", None)])
    assert exchange(ledger, "b") == RegistryUpdate(granted=[b"1"])
    assert exchange(ledger, "c") == RegistryUpdate()
    assert exchange(ledger, "a", [b"1"]) == RegistryUpdate(elsewhere=[b"1"])
    exchange(ledger, "b", answered=[(b"1", b"one")])
    assert exchange(ledger, "c") == exchange(ledger, "a") == RegistryUpdate(known=[(b"1", b"one")])


def test_a_mark_without_an_answer_for_which_nobody_waits_is_anybodys() -> None:
    """Its former holder's word counts once, and a stranger's not at all."""
    ledger = joined("a", "b")
    exchange(ledger, "a", [b"1"])
    assert exchange(ledger, "b", answered=[(b"1", None)], asked=[b"1"]) == RegistryUpdate(
        elsewhere=[b"1"]
    )
    exchange(ledger, "a", answered=[(b"1", None)])
    assert exchange(ledger, "b") == RegistryUpdate(granted=[b"1"])
    exchange(ledger, "b", answered=[(b"1", None)])
    assert exchange(ledger, "a", [b"1"]) == RegistryUpdate(granted=[b"1"])


def test_who_is_lost_leaves_its_claims_to_those_that_wait() -> None:
    """Also where the first of those is lost with it; what it waited for is no more for it."""
    ledger = joined("a", "b", "c")
    for replica in "abc":
        exchange(ledger, replica, [b"1"])
    exchange(ledger, "c", [b"2"])
    exchange(ledger, "b", [b"2"])
    ledger.lost("b")
    ledger.lost("a")
    assert exchange(ledger, "c") == RegistryUpdate(granted=[b"1"])
    exchange(ledger, "c", answered=[(b"1", b"one"), (b"2", b"two")])
    assert ledger.news == {}
    assert exchange(ledger, "a") is exchange(ledger, "b") is None


def test_who_is_silent_is_lost_and_has_to_join_again() -> None:
    """A replica that stands still holds nobody up for longer; when it wakes it is told."""
    clock = Clock()
    ledger = joined("a", "b", clock=clock)
    exchange(ledger, "a", [b"1"])
    exchange(ledger, "b", [b"1"])
    clock.now = SILENCE_S
    assert exchange(ledger, "b") == RegistryUpdate()
    clock.now += 1
    assert exchange(ledger, "b") == RegistryUpdate(granted=[b"1"])
    assert exchange(ledger, "a") is None
    ledger.join("a", "a again")
    assert ledger.exchange("a", "a again", [b"1"], ()) == RegistryUpdate(elsewhere=[b"1"])


def test_what_was_under_way_before_a_replica_joined_again_counts_for_nothing() -> None:
    """A call that comes late, under the former membership, claims nothing."""
    ledger = joined("a", "b")
    exchange(ledger, "a", [b"1"])
    ledger.join("a", "a again")
    assert exchange(ledger, "a", [b"2"]) is None
    assert exchange(ledger, "b", [b"1", b"2"]) == RegistryUpdate(granted=[b"1", b"2"])


def test_an_answer_counts_whoever_gives_it() -> None:
    """One who was taken for dead may answer before the one who has its claim now."""
    ledger = joined("a", "b", "c")
    for replica in "abc":
        exchange(ledger, replica, [b"1"])
    ledger.join("a", "a again")
    assert exchange(ledger, "b") == RegistryUpdate(granted=[b"1"])
    ledger.exchange("a", "a again", (), [(b"1", b"one")])
    assert exchange(ledger, "c") == RegistryUpdate(known=[(b"1", b"one")])
    exchange(ledger, "b", answered=[(b"1", b"one")])
    assert ledger.news == {}


def test_the_memory_is_bounded() -> None:
    """The answer that was asked for the longest ago is forgotten, and computed again."""
    ledger = InFlightRegistry(most_bytes=10_000)
    ledger.join("a", "a")
    marks = [bytes([at]) for at in range(8)]
    exchange(ledger, "a", marks)
    exchange(ledger, "a", answered=[(mark, bytes(2000)) for mark in marks])
    news = exchange(ledger, "a", marks)
    assert news is not None
    assert news.granted == marks[:4]
    assert [mark for mark, _ in news.known] == marks[4:]
