"""Retry a write after growing pauses, in case the store recovers. Knows nothing of stores.

A store's client retries for a few seconds before it gives up. This covers longer outages: a server
that restarts, a network that is down, a bucket that is throttled.
"""

from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random_exponential,
)

from tokenmill.errors import NoSpace, RunFailed

#: How often a write is tried before its error ends the run.
MAX_TRIES = 7
_T = TypeVar("_T")
# Pauses of up to 1, 2, 4 … 32 s, about a minute in all. Half of each is random, so that writers
# that failed together do not return together.
_PAUSE = wait_exponential(multiplier=0.5) + wait_random_exponential(multiplier=0.5)
# Free space does not appear by waiting.
_IS_RETRIED = retry_if_exception_type(RunFailed) & retry_if_not_exception_type(NoSpace)


def persist(write: Callable[[], _T]) -> _T:
    """Call `write` until it succeeds, and return its result.

    A `RunFailed` other than `NoSpace` is retried, any other error is raised at once. After the last
    try its error is raised. `write` must be safe to repeat.
    """
    retrying = Retrying(
        stop=stop_after_attempt(MAX_TRIES), wait=_PAUSE, retry=_IS_RETRIED, reraise=True
    )
    return retrying(write)
