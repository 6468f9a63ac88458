"""A gate to the engine: many units pass at a time, or one unit alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets many callers in at a time, or one alone.

    A caller that wants to be alone closes the gate first: callers that come later wait until it has
    left, so that a steady stream of them cannot delay it for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_inside = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether a caller is inside alone, or waits to be."""
        return self._is_closed

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Enter alongside other callers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter exclusively, once all others have left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
            self._changed.wait_for(lambda: not self._num_inside)
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()
