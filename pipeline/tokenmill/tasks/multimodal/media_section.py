"""What the tasks over a row's image or audio have in common in the job file."""

from typing import ClassVar

from pydantic import Field

from tokenmill.config.length import Chunk, Truncate
from tokenmill.prompt.media.fetch import MediaAccess
from tokenmill.tasks.retries import check_whole_answers
from tokenmill.tasks.section import TaskSection


class MediaSection(TaskSection):
    """A task that takes its media whole; what a row may name is the job's to say."""

    joins_by_prompt: ClassVar[bool] = False

    complete: bool = Field(
        default=False, description="An answer that max_tokens cuts off does not do."
    )
    media: MediaAccess = Field(default=MediaAccess(), description="What a row may name.")

    def check(self) -> None:
        super().check()
        if isinstance(self.length, Truncate | Chunk):
            # Such a policy would cut a text, which is not what is long.
            raise ValueError(  # noqa: TRY004 - a mistake in the job
                f"{self.place}length: {self.kind} takes its media whole; leave "
                f"{self.length.policy} out, or give this task length: {{policy: reject}}"
            )
        check_whole_answers(self, complete=self.complete)
