"""The errors of a run, and its exit codes.

    TokenmillError          any error that is reported in one line
    ├── UserError           the user can fix it: job file, input, output, rights
    └── RunFailed           the run stopped; the same command resumes it
        ├── NoSpace         the disk is full, which waiting does not change
        └── OverBudget      more rows were rejected than the job allows

The error of a row is data, not an exception: see `reject.Reject`.
Every class takes one positional message, so that it can be pickled between processes.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of `tokenmill`."""

    FINISHED = 0
    FAILED = 1
    USER_ERROR = 2
    OVER_REJECT_BUDGET = 3
    STOPPED = 4


class TokenmillError(Exception):
    """An error that is reported to the user in one line, without a traceback."""

    exit_code = ExitCode.FAILED


class UserError(TokenmillError):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""

    exit_code = ExitCode.USER_ERROR


class RunFailed(TokenmillError):
    """The run cannot continue. Committed units stay, and the same command resumes it."""


class NoSpace(RunFailed):
    """The disk or the user's quota is full, so a retry would not help."""


class OverBudget(RunFailed):
    """More rows have already been rejected than the job allows."""

    exit_code = ExitCode.OVER_REJECT_BUDGET


def root_cause(error: BaseException) -> BaseException:
    """The `TokenmillError`, or else the `OSError`, inside the errors that Ray wraps around it."""
    layers: list[BaseException] = []
    layer: BaseException | None = error
    while layer is not None and layer not in layers:
        layers.append(layer)
        # Ray's errors have this attribute; other libraries keep text or numbers in it.
        cause = getattr(layer, "cause", None)
        ray_cause = cause if isinstance(cause, BaseException) else None
        layer = ray_cause or layer.__cause__ or _context(layer)
    for candidate in layers:
        if isinstance(candidate, TokenmillError):
            return candidate
    for candidate in layers:
        if isinstance(candidate, OSError):
            return candidate
    return layers[-1]


def _context(error: BaseException) -> BaseException | None:
    """The error that was being handled when this one was raised, unless raised `from None`."""
    return None if error.__suppress_context__ else error.__context__
