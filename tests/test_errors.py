"""Errors: each crosses processes, ends with its exit code, and is found beneath its wrapping."""

import pickle

import pytest
from tokenmill.engine.base import RequestRefused
from tokenmill.errors import ExitCode, RunFailed, TokenmillError, UserError, root_cause


class Wrapped(Exception):
    """As Ray wraps what a task raised: the error in `cause`, which need not be one."""

    def __init__(self, cause: object) -> None:
        super().__init__("a task failed")
        self.cause = cause


def raised_from(error: Exception, cause: BaseException | None) -> Exception:
    """The error as it is after `raise error from cause`."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def raised_while_handling(error: Exception, first: Exception) -> Exception:
    """The error as it is when it is raised in the handler of another."""
    try:
        try:
            raise first
        except type(first):
            raise error  # noqa: B904 - without a cause, on purpose
    except type(error) as caught:
        return caught


def every_error_class() -> list[type[Exception]]:
    """The tree in `errors`, and what the engine raises besides."""
    classes: list[type[Exception]] = [TokenmillError, RequestRefused]
    for error_class in classes:
        classes += error_class.__subclasses__()
    return classes


@pytest.mark.parametrize("error_class", every_error_class())
def test_an_error_survives_the_way_between_processes(error_class: type[Exception]) -> None:
    """Pickled and back, an error has its class and its message, of one line or many."""
    error = error_class("s3://bucket/é: two\nlines")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is error_class
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("error_class", "exit_code"), [(TokenmillError, 1), (RunFailed, 1), (UserError, 2)]
)
def test_an_error_ends_with_its_exit_code(
    error_class: type[TokenmillError], exit_code: int
) -> None:
    """1 is what the same command may mend, 2 what the user must."""
    assert error_class("why").exit_code == exit_code


def test_exit_codes_are_as_documented() -> None:
    """Scripts depend on them: 0 finished, 1 failed, 2 user error, 3 too many rejects, 4 stopped."""
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
def test_the_root_cause_is_ours_or_the_systems_or_the_innermost(
    error: Exception, cause: Exception
) -> None:
    """First an error of ours, then one of the operating system, else what was raised first."""
    assert root_cause(error) is cause


def test_a_circle_of_causes_ends() -> None:
    """Errors that name one another as their cause are walked through once."""
    one, other = Wrapped(None), Wrapped(None)
    one.cause, other.cause = other, one
    assert root_cause(one) is other
