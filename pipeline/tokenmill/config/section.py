"""What all sections of a job file are made of: strict, frozen models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: A number from 0 to 1.
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping in the job file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        serialize_by_alias=True,
        # Each process of a run imports these; many validate none, and nested ones are built once.
        defer_build=True,
    )
