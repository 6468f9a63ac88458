"""Follow an execution: count its commits, and tell the run's listeners what happens."""

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
# Ray Data's loop turns a hundred times a second, and more slowly on a busy machine.
_END_S = 10.0


def initial_progress(planned: Sequence[Unit], units: Sequence[Unit]) -> Progress:
    """The progress of a run that has `units` of the planned ones left to do."""
    rows = sum(unit.num_rows for unit in planned)
    return Progress(
        units_total=len(planned),
        rows_total=rows,
        units_before=len(planned) - len(units),
        rows_before=rows - sum(unit.num_rows for unit in units),
        started_at=time.monotonic(),
    )


def follow(
    execution: Execution, spec: RunSpec, progress: Progress, listeners: Sequence[RunListener]
) -> None:
    """Run the units to their end. Raises what the execution or a listener raises."""
    next_tick_at = 0.0
    with _commits_or_none(execution, spec) as commits:
        for commit in commits:
            if commit is not None:
                progress.add(commit)
                for listener in listeners:
                    listener.committed(commit, progress)
            if time.monotonic() >= next_tick_at:
                next_tick_at = time.monotonic() + _TICK_S
                _tick(execution, progress, listeners)
    _tick(execution, progress, listeners)


def _tick(execution: Execution, progress: Progress, listeners: Sequence[RunListener]) -> None:
    """Take over the replicas' last reports, and pass them on."""
    state, now = execution.state(), time.monotonic()
    if state.crashes > progress.engine_deaths:
        for listener in listeners:
            listener.crashed(state.crashed_replica, state.crash_reason)
    progress.observe(state, now)
    for listener in listeners:
        listener.ticked(progress, now)


@contextmanager
def _commits_or_none(execution: Execution, spec: RunSpec) -> Iterator[Iterator[Commit | None]]:
    """The commits as they come, and None after each second without one.

    They are iterated in a thread of its own, so that the main thread is free for signals and for
    drawing. That thread has ended when the context has: Ray ends a process in which a thread uses
    it while it shuts down.
    """
    arrived: queue.SimpleQueue[Commit | BaseException | None] = queue.SimpleQueue()

    def iterate() -> None:
        try:
            for commit in execution.commits(spec):
                arrived.put(commit)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=iterate, name="commits", daemon=True)
    thread.start()
    try:
        yield _until_none(arrived)
    finally:
        execution.stop()
        thread.join(_END_S)


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
