"""Errors: they can be pickled, have exit codes, and are found inside other errors."""

import pickle

import pytest
from tokenmill.engine.base import RequestRefused
from tokenmill.errors import ExitCode, RunFailed, TokenmillError, UserError, root_cause


class Wrapped(Exception):
    """An error like Ray's, which has the error of a task in `cause`."""

    def __init__(self, cause: object) -> None:
        super().__init__("a task failed")
        self.cause = cause


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    """The error after `raise error from cause`."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def raised_while_handling(error: Exception, first: Exception) -> Exception:
    """The error after it was raised while `first` was handled."""
    try:
        try:
            raise first
        except type(first):
            raise error  # noqa: B904 - without a cause, on purpose
    except type(error) as caught:
        return caught


def every_error_class() -> list[type[Exception]]:
    """All classes in `errors`, and the engine's error."""
    classes: list[type[Exception]] = [TokenmillError, RequestRefused]
    for error_class in classes:
        classes += error_class.__subclasses__()
    return classes


@pytest.mark.parametrize("error_class", every_error_class())
def test_an_error_can_be_pickled(error_class: type[Exception]) -> None:
    """A pickled error keeps its class and its message."""
    error = error_class("s3://bucket/é: two\nlines")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is error_class
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    ("error_class", "exit_code"), [(TokenmillError, 1), (RunFailed, 1), (UserError, 2)]
)
def test_an_error_has_an_exit_code(error_class: type[TokenmillError], exit_code: int) -> None:
    """1 if the same command may succeed later, 2 if the user must change something."""
    assert error_class("why").exit_code == exit_code


def test_exit_codes_are_as_documented() -> None:
    """Scripts depend on 0 finished, 1 failed, 2 user error, 3 too many rejects, 4 stopped."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4]
    assert (ExitCode.FINISHED, ExitCode.OVER_REJECT_BUDGET) == (0, 3)


OURS = UserError("input.path: no such file")
SYSTEM = FileNotFoundError("nowhere")
OTHER = KeyError("x")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OURS, OURS),
        (OTHER, OTHER),
        (Wrapped(OURS), OURS),
        (Wrapped(Wrapped(OURS)), OURS),
        (Wrapped(OTHER), OTHER),
        (raised_from(Wrapped(None), OURS), OURS),
        (raised_from(RuntimeError("outer"), SYSTEM), SYSTEM),
        (raised_while_handling(RuntimeError("outer"), SYSTEM), SYSTEM),
        (Wrapped(raised_from(RuntimeError("outer"), SYSTEM)), SYSTEM),
        (raised_from(OURS, SYSTEM), OURS),
        (raised_from(RuntimeError("outer"), raised_from(OURS, OTHER)), OURS),
        (raised_from(Wrapped("the network"), OURS), OURS),
    ],
    ids=str,
)
def test_the_root_cause_is_our_error_or_the_systems_or_the_first(
    error: Exception, cause: Exception
) -> None:
    """A TokenmillError has priority, then an OSError, then the error that was raised first."""
    assert root_cause(error) is cause


def test_a_circle_of_causes_is_no_endless_loop() -> None:
    """Errors that are each other's cause are visited once."""
    one, other = Wrapped(None), Wrapped(None)
    one.cause, other.cause = other, one
    assert root_cause(one) is other
