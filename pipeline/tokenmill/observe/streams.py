"""Standard streams that a run outlives: closed by the shell, a pipe whose reader ends, a full disk.

Python raises an error for each of them, in the middle of whatever was printed. Here the output is
discarded instead, so that an exit code depends on the work alone.
"""

import errno
import io
import os
import sys
from typing import Any, TextIO

from tokenmill.errors import NoSpace

_STDERR = 2

# The reader of a pipe has ended; the terminal was closed.
_NO_READER = (errno.EPIPE, errno.EIO)


def open_standard_streams() -> None:
    """Replace stdin, stdout and stderr by streams that are open and outlive their readers.

    A full disk behind stdout raises `NoSpace` once, because results are printed there; behind
    stderr it is ignored, because no other place is left to report it.
    """
    for handle in range(_STDERR + 1):
        try:
            os.fstat(handle)
        except OSError:
            # Opens this handle, the lowest free one. Otherwise the next file to be opened, perhaps
            # an object of the output, would get everything that is printed.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = outliving(1, like=sys.stdout, required_as="stdout")
    sys.stderr = outliving(2, like=sys.stderr)


def outliving(handle: int, like: TextIO | None = None, required_as: str | None = None) -> TextIO:
    """A text stream to a file descriptor, which discards what can no longer be written.

    Its encoding is that of `like`. With `required_as`, the stream's name for the user, an error
    other than a missing reader is raised once, as `NoSpace`. Closing the stream leaves stdout and
    stderr open.
    """
    buffer = io.BufferedWriter(_OutlivingFile(handle, required_as))
    if like is None:
        return io.TextIOWrapper(buffer, "utf-8", line_buffering=True)
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)


class _OutlivingFile(io.FileIO):
    """A file that becomes the null device when it cannot be written."""

    def __init__(self, handle: int, required_as: str | None) -> None:
        super().__init__(handle, "w", closefd=handle > _STDERR)
        self._required_as = required_as

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self._required_as is not None and error.errno not in _NO_READER:
                raise NoSpace(
                    f"{self._required_as}: {error.strerror}; free some, or print elsewhere"
                ) from error
            return memoryview(data).nbytes
