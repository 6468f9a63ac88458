"""vLLM's log: one warning that is repeated for each weight, and hides errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

#: The module of vLLM that logs it.
LOGGER = "vllm.model_executor.models.utils"
#: The start of its message. A model in float32 that runs in bfloat16 has it for every weight.
WEIGHT_WARNING = "Attempted to load weight %s with dtype %s into "


@contextmanager
def weight_warning_once() -> Iterator[None]:
    """While the context is open, vLLM logs its warning about a weight's type only once."""
    once = _Once()
    logger = logging.getLogger(LOGGER)
    logger.addFilter(once)
    try:
        yield
    finally:
        logger.removeFilter(once)


class _Once(logging.Filter):
    """Drops the warning, except the first; keeps all other records."""

    def __init__(self) -> None:
        super().__init__()
        self._has_passed = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith(WEIGHT_WARNING):
            return True
        is_first, self._has_passed = not self._has_passed, True
        return is_first
