"""The interface of everything that observes a run: screen, events, metrics, traces, limits."""

from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit


class RunListener:
    """Base class of a run's observers, with methods that do nothing; override what you need.

    All methods are called in the thread that started the run. An exception raised by a listener
    stops the run: that is how limits work.
    """

    def started(self, progress: Progress) -> None:
        """The first call, before an executor is started."""

    def committed(self, commit: Commit, progress: Progress) -> None:
        """A unit was committed; `progress` includes it.

        If `commit` is not ours, another run committed it while this one answered it, too.
        """

    def crashed(self, replica: str, reason: str) -> None:
        """An engine has crashed since the last tick; if several have, this is the last one."""

    def ticked(self, progress: Progress, now: float) -> None:
        """Called about once a second with the latest reports of the replicas, and at the end.

        `now` is in seconds of the monotonic clock.
        """

    def ended(self, error: BaseException | None) -> None:
        """The last call, when no unit is running. `error` is what stopped the run, if any."""
