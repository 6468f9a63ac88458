"""What a row's media may be, and the error for media that cannot be used."""

import re
from typing import Annotated

from pydantic import Field

from tokenmill.config.section import Section


class MediaAccess(Section):
    """Which media a row may name, and how much of them is read."""

    hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")], ...] = Field(
        default=(), description="Hosts from which https URLs are fetched; by default none."
    )
    max_bytes: int = Field(default=32 * 2**20, ge=1, description="Largest file, as it is stored.")
    timeout_s: float = Field(default=20.0, gt=0, description="Limit for a whole fetch from a host.")


class BadMedia(Exception):
    """A row's media cannot be fetched or used; the message says why."""


def decode_error(error: Exception) -> str:
    """An error as one line that does not differ from run to run."""
    # Decoders name the object that they read by its address in memory.
    message = re.sub(r"\s*<_io\.BytesIO[^>]*>", "", str(error))
    return f"{type(error).__name__}: {' '.join(message.split()):.200}"
