"""What happens in a run, for those that observe it: screen, events, metrics, traces, limits."""

from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit


class RunListener:
    """Base class of a run's observers; override what is of interest.

    All methods are called in the thread that started the run. An exception raised by a listener
    stops the run: that is how limits work.
    """

    def started(self, progress: Progress) -> None:
        """The first call, before an executor is started."""

    def committed(self, commit: Commit, progress: Progress) -> None:
        """A unit was committed, by this run or by another driver; `progress` includes it."""

    def crashed(self, replica: str, reason: str) -> None:
        """An engine has crashed since the last tick; of several, the last one."""

    def ticked(self, progress: Progress, now: float) -> None:
        """Called about once a second with the latest reports of the replicas, and at the end.

        `now` is in seconds of the monotonic clock.
        """

    def ended(self, error: BaseException | None) -> None:
        """The last call: no unit is at work any more. `error` is what stopped the run, if any."""
