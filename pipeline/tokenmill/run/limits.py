"""When a run is given up: engines that keep crashing, more rejects than the job allows."""

from contextlib import suppress

from tokenmill.errors import OverBudget, RunFailed, TokenmillError
from tokenmill.job.job import Job
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit
from tokenmill.output.rejects import example
from tokenmill.output.totals import Totals
from tokenmill.storage.base import Store

# An engine that dies again and again without a unit getting through will not get better; but one
# row that kills is found only by 3 + log2(rows of its unit) deaths, and each replica may have one.
_MOST_DEATHS_BESIDES_SEARCH = 3
_MOST_DEATHS_OF_A_SEARCH = 3
# Rows that kill engines are rare; so many are a sign that the engine itself is sick.
_MOST_CONDEMNED = 8
# Of rejects, in the one line that says why a run was given up.
_MOST_CLASSES = 3
_MOST_CHARACTERS = 200


def over_budget(job: Job, totals: Totals) -> bool:
    """Whether more rows were rejected than the job allows."""
    too_many = job.max_rejects is not None and totals.rejected > job.max_rejects
    return too_many or totals.reject_rate > job.max_reject_rate


class CrashLimit(RunListener):
    """Gives a run up when engines crash again and again without a unit getting through.

    `ticked` raises `RunFailed`.
    """

    def __init__(self, rows_per_unit: int, replicas: int) -> None:
        search = _MOST_DEATHS_OF_A_SEARCH + rows_per_unit.bit_length()
        self._allowance = _MOST_DEATHS_BESIDES_SEARCH + replicas * search
        self._deaths_before = 0
        self._condemned = 0

    def committed(self, commit: Commit, progress: Progress) -> None:
        """A unit got through, so the engines work."""
        del commit
        self._deaths_before = progress.engine_deaths

    def ticked(self, progress: Progress, now: float) -> None:
        del now
        if progress.units_done == progress.units_total:
            return
        state = progress.pool
        if self._condemned < state.condemned <= _MOST_CONDEMNED:
            # A row that crashes engines was found, which is progress too.
            self._condemned = state.condemned
            self._deaths_before = state.deaths
        deaths = state.deaths - self._deaths_before
        if deaths >= self._allowance:
            raise RunFailed(
                f"engines died {deaths} times without a unit getting through, the last time of "
                f"{state.last_death}"
            )


class RejectBudget(RunListener):
    """Gives a run up as soon as it is sure to end with more rejects than the job allows.

    `committed` raises `OverBudget`.
    """

    def __init__(self, job: Job, output: Store) -> None:
        self._job = job
        self._output = output

    def committed(self, commit: Commit, progress: Progress) -> None:
        del commit
        most_rows = progress.rows_total - progress.filtered
        most = self._job.reject_limit(most_rows)
        if progress.rejected <= most or progress.rows_done >= progress.rows_total:
            return
        classes = "; ".join(
            f"{count:,} {name}{_as_example(self._output, progress.first_rejects[name], name)}"
            for name, count in progress.rejects.most_common(_MOST_CLASSES)
        )
        raise OverBudget(
            f"{progress.rejected:,} rejects are more than the {most:,} that max_reject_rate and "
            f"max_rejects allow of {most_rows:,} rows: {classes}. Run tokenmill rejects to see "
            "them; fix the job or the input, or raise the budget, and run again"
        )


def _as_example(output: Store, unit: str, reject_class: str) -> str:
    """One of the unit's rows of the class, to follow the number of all; empty if there is none."""
    # The store may fail by now; the reason for the stop matters more.
    with suppress(TokenmillError, FileNotFoundError):
        row = example(output, unit, reject_class)
        if row is not None:
            return f", as {' '.join(row.split())[:_MOST_CHARACTERS]}"
    return ""
