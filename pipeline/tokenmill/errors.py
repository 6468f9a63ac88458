"""What can go wrong with a run, and the exit code it ends with.

    TokenmillError          anything we report in one line
    ├── UserError           the user's mistake: job file, input, output, rights
    └── RunFailed           the run stopped; the same command resumes it
        ├── NoSpace         it stopped at a full disk, which waiting does not mend
        └── OverBudget      it stopped for more rejects than the job allows

A row's fault is not here: it is data (`schema.Reject`) and stays in its row.
Every class takes one positional message, so that it survives pickling between processes.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What `tokenmill` ends with."""

    FINISHED = 0
    FAILED = 1
    USER_ERROR = 2
    OVER_REJECT_BUDGET = 3
    STOPPED = 4


class TokenmillError(Exception):
    """Reported to the user in one line, without a traceback."""

    exit_code = ExitCode.FAILED


class UserError(TokenmillError):
    """The user can mend it: the message says what is wrong, where, and what to do."""

    exit_code = ExitCode.USER_ERROR


class RunFailed(TokenmillError):
    """The run cannot go on; what is committed stays, and the same command resumes."""


class NoSpace(RunFailed):
    """The disk or the user's share of it is full; trying again would not help."""


class OverBudget(RunFailed):
    """More rows were rejected than the job allows, whatever becomes of the rest."""

    exit_code = ExitCode.OVER_REJECT_BUDGET


def root_cause(error: BaseException) -> BaseException:
    """The error of ours, or of the operating system, beneath what Ray wraps around it."""
    seen: list[BaseException] = []
    layer: BaseException | None = error
    while layer is not None and layer not in seen:
        seen.append(layer)
        # Ray's name for it; others keep text or numbers under the same name.
        cause = getattr(layer, "cause", None)
        named = cause if isinstance(cause, BaseException) else None
        layer = named or layer.__cause__ or _context(layer)
    for candidate in seen:
        if isinstance(candidate, TokenmillError):
            return candidate
    for candidate in seen:
        if isinstance(candidate, OSError):
            return candidate
    return seen[-1]


def _context(error: BaseException) -> BaseException | None:
    """What was being handled when the error was raised, unless it was raised `from None`."""
    return None if error.__suppress_context__ else error.__context__
