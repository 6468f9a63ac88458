"""Warnings about a run that has ended well: tasks that have no answer for any row."""

from collections import Counter
from collections.abc import Iterator

from tokenmill.formatting import plural
from tokenmill.job.job import Job
from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit


class EmptyAnswers(RunListener):
    """Counts the rows that a run has answered, and the empty answers among them, by task."""

    def __init__(self) -> None:
        self._num_answered = 0
        self._num_empty: Counter[str] = Counter()

    def committed(self, commit: Commit, progress: Progress) -> None:
        del progress
        if commit.is_ours:
            self._num_answered += commit.counts.rows - commit.counts.rejected
            self._num_empty.update(commit.num_empty)

    def warnings(self, job: Job) -> Iterator[str]:
        """One line for each task whose answers are all empty."""
        for step in job.steps:
            if not 0 < self._num_answered <= self._num_empty[step.name]:
                continue
            rows = plural(self._num_answered, "row")
            verb = "has" if self._num_answered == 1 else "have"
            advice = step.kind.empty_advice or "try the prompt with tokenmill preview"
            columns = ", ".join(step.answer_names)
            yield f"{step.name}: {self._num_answered:,} of {rows} {verb} no {columns}; {advice}"
