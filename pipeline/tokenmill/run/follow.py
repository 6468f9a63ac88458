"""Follow an execution: count its commits and call the run's listeners."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.plan.plan import Unit
from tokenmill.stages.executor import Execution, RunSpec

_TICK_S = 1.0
# How long to wait for an execution to stop. Ray Data's loop notices within a second, or later on a
# busy machine.
_STOP_S = 10.0


def initial_progress(planned: Sequence[Unit], num_units: int, num_rows: int) -> Progress:
    """The progress at the start of a run that has this many units and rows to do."""
    rows = sum(unit.num_rows for unit in planned)
    return Progress(
        units_total=len(planned),
        rows_total=rows,
        units_before=len(planned) - num_units,
        rows_before=rows - num_rows,
        started_at=time.monotonic(),
    )


def follow(
    execution: Execution, spec: RunSpec, progress: Progress, listeners: Sequence[RunListener]
) -> None:
    """Run all units of the spec. Raises what the execution or a listener raises."""
    next_tick_at = 0.0
    with _commits_and_ticks(execution, spec) as commits:
        for commit in commits:
            if commit is not None:
                progress.add(commit)
                for listener in () if commit.was_skipped else listeners:
                    listener.committed(commit, progress)
            if time.monotonic() >= next_tick_at:
                next_tick_at = time.monotonic() + _TICK_S
                _tick(execution, progress, listeners)
    _tick(execution, progress, listeners)


def _tick(execution: Execution, progress: Progress, listeners: Sequence[RunListener]) -> None:
    """Pass the replicas' last reports to the progress and the listeners."""
    state, now = execution.state(), time.monotonic()
    if state.crashes > progress.engine_crashes:
        for listener in listeners:
            listener.crashed(state.crashed_replica, state.crash_reason)
    progress.observe(state, now)
    for listener in listeners:
        listener.ticked(progress, now)


@contextmanager
def _commits_and_ticks(execution: Execution, spec: RunSpec) -> Iterator[Iterator[Commit | None]]:
    """Yields an iterator over the commits, with None after each second without one.

    A thread of its own waits for the commits, so that this thread can handle signals and draw. The
    thread has to end with the context, because Ray ends the process if a thread uses it while it
    shuts down.
    """
    arrived: queue.SimpleQueue[Commit | BaseException | None] = queue.SimpleQueue()

    def wait_for_commits() -> None:
        try:
            for commit in execution.commits(spec):
                arrived.put(commit)
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=wait_for_commits, name="commits", daemon=True)
    thread.start()
    try:
        yield _until_none(arrived)
    finally:
        execution.stop()
        thread.join(_STOP_S)


def _until_none(
    arrived: "queue.SimpleQueue[Commit | BaseException | None]",
) -> Iterator[Commit | None]:
    while True:
        try:
            item = arrived.get(timeout=_TICK_S)
        except queue.Empty:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield item
