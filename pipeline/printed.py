"""JSON schemas of the job file and of what commands print with `--json` and a run leaves behind."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from pipeline.compare import Comparison, Limits
from pipeline.errors import UserError
from pipeline.estimate import Estimate
from pipeline.job import Job
from pipeline.preview import PreviewedRow
from pipeline.report import Report
from pipeline.run import Summary
from pipeline.section import unknown
from pipeline.status import Status
from pipeline.submission import SubmittedJob
from pipeline.validate import Validation

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
#: The schemas that there are. `job` is read, the others are written; `summary` is a run's
#: summary.json.
NAMES = ("job", "validate", "plan", "preview", "status", "report", "compare", "summary", "jobs")


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of one of `NAMES`. Raises `UserError` for another."""
    match name:
        case "job":
            return Job.model_json_schema()
        case "validate":
            return _written(Validation)
        case "plan":
            return _written(Estimate)
        case "preview":
            return _written(list[PreviewedRow])
        case "status":
            states = {"type": "string", "enum": ["finished", "running", "stopped"]}
            return _with(_written(Status), {"state": states})
        case "report":
            return _with(_written(Report), {"tokens_per_s": {"type": ["number", "null"]}})
        case "compare":
            return _comparison()
        case "summary":
            return _written(Summary)
        case "jobs":
            return _written(list[SubmittedJob])
    raise UserError(f"schema {name}: {unknown(name, NAMES, 'schema')}")


def _written(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema(mode="serialization")


def _with(schema: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that has some more properties, each of them always."""
    properties = {**schema["properties"], **more}
    return {**schema, "properties": properties, "required": [*schema["required"], *more]}


def _comparison() -> dict[str, Any]:
    """A comparison with what follows from it and the limits that it was held against."""
    schema, limits = _written(Comparison), _written(Limits)
    columns = _with(schema["$defs"]["ColumnComparison"], {"agreement": _SHARE})
    derived = {
        "changed_share": {"type": "number", "minimum": 0},
        "largest_drift": {"type": ["number", "null"]},
        "within_limits": {"type": "boolean"},
    }
    whole = _with(schema, {**limits["properties"], **derived})
    return {**whole, "$defs": {**schema["$defs"], "ColumnComparison": columns}}
