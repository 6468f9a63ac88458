"""Limits that stop a run: engines that keep crashing, more rejected rows than the job allows."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

from tokenmill.errors import OverBudget, RunFailed, TokenmillError
from tokenmill.formatting import plural
from tokenmill.job.job import Job
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.output.counts import Counts
from tokenmill.output.rejects import example_reject
from tokenmill.scheduling.crashes import remedy
from tokenmill.scheduling.load import PoolState
from tokenmill.storage.base import Store

# Crashes without a completed unit. The search for one row that crashes engines takes at most
# 3 + log2(rows of its unit) crashes, and each replica may have such a row.
_MAX_OTHER_CRASHES = 3
_EXTRA_CRASHES_PER_SEARCH = 3
# Rows that crash engines are rare; more of them mean that the engine itself is broken.
_MAX_POISON_ROWS = 8
# Crashes for one reason after which the rows, or chance, are not to blame.
_MAX_REPEATS = 3
# In the one line that says why a run was stopped.
_MAX_CLASSES = 3
_MAX_EXAMPLE_CHARACTERS = 200


def over_budget(job: Job, totals: Counts) -> bool:
    """Whether more rows were rejected than the job allows."""
    too_many = job.max_rejects is not None and totals.rejected > job.max_rejects
    return too_many or totals.reject_rate > job.max_reject_rate


class CrashLimit(RunListener):
    """Stops a run whose engines cannot work. `ticked` raises `RunFailed`, with a remedy.

    A run is stopped if engines crashed

    - for the same reason on three different rows, each alone in its engine, and no row was
      answered in between. After a crash one row always runs alone first, so an engine that is
      broken for all rows is recognized after four crashes, and one row that crashes engines never
      counts as three.
    - three times while they loaded their model, and none became ready in between.
    - for whatever reasons, more often than a search for poison rows can take, and no unit was
      completed in between.

    With several replicas, each of the first two takes one crash more per replica: each of them may
    be testing a row that crashes its engine. `log` is where the engines' output is.
    """

    def __init__(self, rows_per_unit: int, replicas: int, log: Path) -> None:
        search = _EXTRA_CRASHES_PER_SEARCH + rows_per_unit.bit_length()
        self._max_crashes = _MAX_OTHER_CRASHES + replicas * search
        self._max_repeats = _MAX_REPEATS + replicas - 1
        self._log = log
        self._crashes_before = 0
        self._poison_rows = 0

    def committed(self, commit: Commit, progress: Progress) -> None:
        """A completed unit shows that the engines work: count crashes from here."""
        del commit
        self._crashes_before = progress.engine_crashes

    def ticked(self, progress: Progress, now: float) -> None:
        del now
        if progress.units_done == progress.units_total:
            return
        state = progress.pool
        if self._poison_rows < state.poison_rows <= _MAX_POISON_ROWS:
            # A row that crashes engines was found, so the search makes progress.
            self._poison_rows = state.poison_rows
            self._crashes_before = state.crashes
        problem = self._problem(state)
        if problem is not None:
            reason = state.crash_reason
            sentences = (f"{problem}: {reason}.", remedy(reason), f"The log is {self._log}")
            raise RunFailed(" ".join(filter(None, sentences)))

    def _problem(self, state: PoolState) -> str | None:
        """Why the run cannot go on; None if it can."""
        if state.crashed_rows >= self._max_repeats:
            return (
                f"engines crashed on {state.crashed_rows} different rows, each alone, for the same "
                "reason"
            )
        if state.load_crashes >= self._max_repeats:
            return f"no replica could load its model, in {state.load_crashes} attempts"
        crashes = state.crashes - self._crashes_before
        if crashes >= self._max_crashes:
            return (
                f"engines crashed {crashes} times and no unit was completed in between; the last "
                "reason"
            )
        return None


class RejectBudget(RunListener):
    """Stops a run as soon as it is certain to end with more rejects than the job allows.

    `committed` raises `OverBudget`.
    """

    def __init__(self, job: Job, output: Store) -> None:
        self._job = job
        self._output = output

    def committed(self, commit: Commit, progress: Progress) -> None:
        del commit
        num_rows = progress.rows_total - progress.counts.filtered
        limit = self._job.reject_limit(num_rows)
        if progress.rejected <= limit or progress.rows_done >= progress.rows_total:
            return
        classes = ", ".join(
            f"{count:,} {name}{self._example(progress.first_rejects[name], name)}"
            for name, count in Counter(progress.counts.rejects).most_common(_MAX_CLASSES)
        )
        were = "was" if progress.rejected == 1 else "were"
        raise OverBudget(
            f"{progress.rejected:,} of {plural(num_rows, 'row')} {were} rejected; the limit is "
            f"{limit:,} ({self._setting(limit)}). Rejects: {classes}. Run tokenmill rejects to see "
            "them; fix the job or the input, or raise the limit, and run the command again"
        )

    def _setting(self, limit: int) -> str:
        """The key of the job that sets this limit, with its value."""
        if self._job.max_rejects == limit:
            return f"max_rejects: {limit}"
        return f"max_reject_rate: {self._job.max_reject_rate:g}"

    def _example(self, unit: str, reject_class: str) -> str:
        """One of the unit's rejected rows, in parentheses; empty if it cannot be read."""
        # The store may be failing, and its error must not hide why the run stops.
        with suppress(TokenmillError, FileNotFoundError):
            row = example_reject(self._output, unit, reject_class)
            if row is not None:
                return f" (such as {' '.join(row.split())[:_MAX_EXAMPLE_CHARACTERS]})"
        return ""
