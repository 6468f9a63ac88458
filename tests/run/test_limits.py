"""How many engine crashes a run tolerates: enough to find a row that causes them, no more."""

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.stores import record, unit
from tokenmill.errors import RunFailed
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.run.limits import CrashLimit
from tokenmill.scheduling.crashes import KILLED_WHILE_LOADING
from tokenmill.scheduling.load import PoolState

ROWS = 1000
LOG = Path("run.log")
#: The crashes of a search for one row (which must crash an engine alone twice), and three more.
LIMIT = 3 + 3 + math.ceil(math.log2(ROWS))


def crashed(crashes: int, poison_rows: int = 0) -> Progress:
    """The progress of an unfinished run whose engines have crashed this often."""
    progress = Progress(
        units_total=2, rows_total=2 * ROWS, units_before=0, rows_before=0, started_at=0
    )
    progress.observe(PoolState({}, crashes, "CUDA error", poison_rows), 1.0)
    return progress


def commit() -> Commit:
    return Commit(record(unit(0, 10)), is_ours=True)


def test_the_crashes_of_a_search_are_tolerated() -> None:
    """A run goes on while the row that causes the crashes may still be found."""
    CrashLimit(ROWS, replicas=1, log=LOG).ticked(crashed(LIMIT - 1), 1.0)


def test_crashes_without_a_completed_unit_end_the_run() -> None:
    """The message says how often and why the last engine crashed."""
    limit = CrashLimit(ROWS, replicas=1, log=LOG)
    with pytest.raises(RunFailed, match=r"crashed 100 times .* CUDA error"):
        limit.ticked(crashed(100), 1.0)


def test_a_commit_restarts_the_count() -> None:
    """Engines that complete units may crash as often again."""
    limit = CrashLimit(ROWS, replicas=1, log=LOG)
    limit.committed(commit(), crashed(LIMIT))
    limit.ticked(crashed(2 * LIMIT - 1), 1.0)


def test_a_found_row_restarts_the_count_eight_times() -> None:
    """A finished search is progress; engines that crash on many rows are broken themselves."""
    limit = CrashLimit(ROWS, replicas=1, log=LOG)
    for num_found in range(1, 9):
        limit.ticked(crashed(num_found * (LIMIT - 1), poison_rows=num_found), 1.0)
    with pytest.raises(RunFailed):
        limit.ticked(crashed(9 * LIMIT, poison_rows=9), 1.0)


def broken(**state: Any) -> Progress:
    """The progress of an unfinished run with this last report of its replicas."""
    progress = crashed(0)
    progress.observe(PoolState(**{"crash_reason": "RuntimeError: broken", **state}), 1.0)
    return progress


@pytest.mark.parametrize("count", ["crashed_rows", "load_crashes"])
@pytest.mark.parametrize(("replicas", "limit"), [(1, 3), (4, 6)])
def test_the_same_crash_again_and_again_ends_the_run(count: str, replicas: int, limit: int) -> None:
    """On different rows, or while loading; each further replica may have a row that crashes it."""
    crash_limit = CrashLimit(ROWS, replicas, LOG)
    crash_limit.ticked(broken(**{count: limit - 1}), 1.0)
    with pytest.raises(RunFailed, match=r"RuntimeError: broken.*run\.log"):
        crash_limit.ticked(broken(**{count: limit}), 1.0)


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "max_num_seqs"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "max_num_seqs"),
        ("RuntimeError: CPU Generator does not use offset", "enable_chunked_prefill"),
        (KILLED_WHILE_LOADING, "kv_cache_memory_bytes"),
        ("TimeoutError: a step takes longer than 9 s (model.request_timeout_s)", "raise model."),
    ],
)
def test_the_error_names_what_to_change(reason: str, key: str) -> None:
    """For the reasons that are known; the log is always named."""
    with pytest.raises(RunFailed) as raised:
        CrashLimit(ROWS, 1, LOG).ticked(broken(crashed_rows=3, crash_reason=reason), 1.0)
    assert reason in str(raised.value)
    assert key in str(raised.value)
    assert str(LOG) in str(raised.value)
