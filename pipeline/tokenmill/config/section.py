"""The base class of all sections of a job file: strict, frozen models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: A number from 0 to 1.
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A mapping in the job file. Unknown keys are errors; values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        serialize_by_alias=True,
        # Every process of a run imports the sections, and few validate any of them.
        defer_build=True,
    )
