"""The gate: many callers at a time or one alone, and none waits for ever."""

import threading
from collections.abc import Callable

import pytest
from tokenmill.scheduling.gate import Gate

# Far longer than anything here takes: a test that hangs must fail, not stop the others.
TIMEOUT_S = 20


class Caller:
    """A thread that enters the gate, stays inside until `leave` is called, and ends."""

    def __init__(self, gate: Gate, *, alone: bool = False) -> None:
        self.is_inside = threading.Event()
        self.may_leave = threading.Event()
        self._enter = gate.alone if alone else gate.shared
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._enter():
            self.is_inside.set()
            assert self.may_leave.wait(TIMEOUT_S)

    def leave(self) -> None:
        self.may_leave.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll, because the gate has no event for it."""
    for _ in range(int(TIMEOUT_S / 0.001)):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("the condition never became true")


def test_many_callers_are_inside_at_a_time() -> None:
    """Callers that share the gate do not wait for each other."""
    gate = Gate()
    callers = [Caller(gate) for _ in range(5)]
    assert all(caller.is_inside.wait(TIMEOUT_S) for caller in callers)
    assert not gate.is_closed
    for caller in callers:
        caller.leave()


def test_a_caller_alone_waits_for_those_inside_and_goes_before_those_that_come_later() -> None:
    """The gate closes at once, and opens when the caller has left."""
    gate = Gate()
    first = Caller(gate)
    assert first.is_inside.wait(TIMEOUT_S)
    alone = Caller(gate, alone=True)
    wait_until(lambda: gate.is_closed)
    later = [Caller(gate), Caller(gate, alone=True)]
    assert not alone.is_inside.is_set()
    first.leave()
    assert alone.is_inside.wait(TIMEOUT_S)
    assert not any(caller.is_inside.is_set() for caller in later)
    alone.leave()
    for caller in later:
        caller.may_leave.set()
    assert all(caller.is_inside.wait(TIMEOUT_S) for caller in later)
    wait_until(lambda: not gate.is_closed)


def test_the_gate_opens_after_an_error_inside() -> None:
    """A caller that fails inside leaves all the same."""
    gate = Gate()
    for enter in (gate.alone, gate.shared):
        with pytest.raises(ValueError, match="inside"), enter():
            raise ValueError("inside")
    with gate.alone():
        assert gate.is_closed
    assert not gate.is_closed
