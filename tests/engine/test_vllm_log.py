"""vLLM's log: its warning about the type of a weight appears once per start."""

import logging

import pytest
from tokenmill.engine.vllm_log import LOGGER, WEIGHT_WARNING, weight_warning_once

WARNING = f"{WEIGHT_WARNING}parameter with dtype %s"


def test_the_warning_appears_once_per_start(caplog: pytest.LogCaptureFixture) -> None:
    """Other records are kept, and the next start has its own warning."""
    logger = logging.getLogger(LOGGER)
    for start in range(2):
        with weight_warning_once():
            for weight in range(3):
                logger.warning(WARNING, f"{start}.{weight}", "float32", "bfloat16")
                logger.warning("something else")
    logger.warning(WARNING, "after", "float32", "bfloat16")
    weights = [record.args[0] for record in caplog.records if record.args]
    assert weights == ["0.0", "1.0", "after"]
    assert len(caplog.records) == 3 + 2 * 3
