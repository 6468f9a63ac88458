"""Write again, after growing pauses, where the store may come back. Knows nothing of stores.

A store's client has tried a few times within seconds before it gives up; this is for what lasts
longer: a server that restarts, a network that is down, a bucket that is throttled.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from tokenmill.errors import NoSpace, RunFailed

#: Seconds between the tries, a little over a minute in all.
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_T = TypeVar("_T")


def persist(write: Callable[[], _T]) -> _T:
    """What `write` returns, tried again while it raises `RunFailed`, except for `NoSpace`.

    `write` must be safe to repeat. After the last try its error is raised.
    """
    for pause_s in PAUSES_S:
        try:
            return write()
        except NoSpace:
            raise
        except RunFailed:
            # Writers that failed together must not come back together.
            time.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - no secret
    return write()
