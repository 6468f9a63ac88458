"""What the stages of a unit note for later ones, in the metadata of the unit's table."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from tokenmill.engine.base import EngineInfo

_METADATA_KEY = b"tokenmill"
_SKIPPED_KEY = b"tokenmill_skipped"
#: What passes through the stages in place of a unit that another run has committed.
SKIPPED_UNIT = pa.schema([], metadata={_SKIPPED_KEY: b""}).empty_table()
#: By stage (`Stage`), when it began and ended, in Unix seconds by the clock of its machine.
StageTimes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class RenderNotes:
    """Noted when a unit's rows are rendered."""

    stage_times: StageTimes

    @classmethod
    def of(cls, rows: pa.Table) -> "RenderNotes":
        """The notes of a rendered unit."""
        return cls(_times(_read(rows)))

    def attach(self, rows: pa.Table) -> pa.Table:
        """The rows with these notes."""
        return _attach(rows, asdict(self))


@dataclass(frozen=True, slots=True)
class AnswerNotes:
    """Noted when a unit's rows are answered: how, for the unit's record.

    `seconds` is the time from the unit's submission to its last answer; `num_reused` counts the
    requests that took the answer of an equal one.
    """

    stage_times: StageTimes
    engine: EngineInfo
    seconds: float
    num_reused: int
    replica: str

    @classmethod
    def of(cls, rows: pa.Table) -> "AnswerNotes":
        """The notes of an answered unit."""
        values = _read(rows)
        engine = EngineInfo(**values["engine"])
        return cls(**{**values, "stage_times": _times(values), "engine": engine})

    def attach(self, rows: pa.Table) -> pa.Table:
        """The rows with these notes."""
        return _attach(rows, asdict(self))


def is_skipped(rows: pa.Table) -> bool:
    """Whether this is `SKIPPED_UNIT`."""
    return _SKIPPED_KEY in (rows.schema.metadata or {})


def _attach(rows: pa.Table, values: Mapping[str, Any]) -> pa.Table:
    return rows.replace_schema_metadata({_METADATA_KEY: json.dumps(values)})


def _read(rows: pa.Table) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((rows.schema.metadata or {})[_METADATA_KEY])
    return values


def _times(values: Mapping[str, Any]) -> StageTimes:
    return {stage: (start, end) for stage, (start, end) in values["stage_times"].items()}
