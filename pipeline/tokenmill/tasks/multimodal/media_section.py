"""The keys of a job file that the tasks over images and audio share."""

from typing import Any

from pydantic import Field

from tokenmill.config.length import Chunk, Truncate
from tokenmill.prompt.media.access import MediaAccess
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.retries import check_whole_answers
from tokenmill.tasks.section import TaskSection


class MediaSection(TaskSection):
    """A task over a row's image or audio file."""

    complete: bool = Field(default=False, description="Reject answers that max_tokens cuts off.")
    media: MediaAccess = Field(
        default=MediaAccess(), description="Which files and URLs a row may name."
    )


def check_media(step: TaskStep[Any]) -> None:
    """Raise `ValueError` for a length policy that cuts text, or for retries that cannot happen."""
    length = step.section.length
    if isinstance(length, Truncate | Chunk):
        # The media is long, not the text.
        raise ValueError(  # noqa: TRY004 - a mistake in the job
            f"{step.key_prefix}length: {step.kind.name} cannot {length.policy} media; "
            "remove length, or set length: {policy: reject} for this task"
        )
    check_whole_answers(step, complete=step.section.complete)
