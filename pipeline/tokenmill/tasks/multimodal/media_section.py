"""What the tasks over a row's image or audio have in common in the job file."""

from typing import Any

from pydantic import Field

from tokenmill.config.length import Chunk, Truncate
from tokenmill.prompt.media.access import MediaAccess
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.retries import check_whole_answers
from tokenmill.tasks.section import TaskSection


class MediaSection(TaskSection):
    """A task that takes its media whole; what a row may name is the job's to say."""

    complete: bool = Field(
        default=False, description="An answer that max_tokens cuts off does not do."
    )
    media: MediaAccess = Field(default=MediaAccess(), description="What a row may name.")


def check_media(step: TaskStep[Any]) -> None:
    """Raise `ValueError` for a length policy that cuts text, or retries that never happen."""
    length = step.section.length
    if isinstance(length, Truncate | Chunk):
        # The media is what is long, not the text.
        raise ValueError(  # noqa: TRY004 - a mistake in the job
            f"{step.key_prefix}length: {step.kind.name} takes its media whole; leave "
            f"{length.policy} out, or give this task length: {{policy: reject}}"
        )
    check_whole_answers(step, complete=step.section.complete)
