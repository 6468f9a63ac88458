"""`schema`: JSON schemas of the job file and of what commands print with --json."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from tokenmill.cluster.submission import SubmittedJob
from tokenmill.commands.options import DebugOption
from tokenmill.commands.terminal import one_line_errors
from tokenmill.errors import UserError
from tokenmill.estimate.estimate import Estimate
from tokenmill.formatting import did_you_mean
from tokenmill.job.job import Job
from tokenmill.output.status import Status
from tokenmill.report.compare import Comparison, DriftLimits
from tokenmill.report.report import OutputReport
from tokenmill.run.preview import PreviewedRow
from tokenmill.run.summary import Summary
from tokenmill.run.validate import Validation

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
#: The schemas that there are. `job` is read, the others are written; `summary` is a run's
#: summary.json.
SCHEMA_NAMES = (
    "job",
    "validate",
    "plan",
    "preview",
    "status",
    "report",
    "compare",
    "summary",
    "jobs",
)


def schema_command(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help=f"Of what: {', '.join(SCHEMA_NAMES)}.")
    ] = "job",
    debug: DebugOption = False,
) -> None:
    """Print the job file's JSON schema, or that of a command's --json or a run's summary.json.

    Example: tokenmill schema > tokenmill.schema.json
    """
    with one_line_errors(debug):
        typer.echo(json.dumps(schema_of(name), indent=2))


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of one of `SCHEMA_NAMES`. Raises `UserError` for another."""
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
            return _with(_written(OutputReport), {"tokens_per_s": {"type": ["number", "null"]}})
        case "compare":
            return _comparison()
        case "summary":
            return _written(Summary)
        case "jobs":
            return _written(list[SubmittedJob])
    raise UserError(f"schema {name}: {did_you_mean(name, SCHEMA_NAMES, 'schema')}")


def _written(kind: Any) -> dict[str, Any]:
    return TypeAdapter(kind).json_schema(mode="serialization")


def _with(schema: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that has some more properties, each of them always."""
    properties = {**schema["properties"], **more}
    return {**schema, "properties": properties, "required": [*schema["required"], *more]}


def _comparison() -> dict[str, Any]:
    """A comparison with what follows from it and the limits that it was held against."""
    schema, limits = _written(Comparison), _written(DriftLimits)
    columns = _with(schema["$defs"]["ColumnComparison"], {"agreement": _SHARE})
    derived = {
        "changed_share": {"type": "number", "minimum": 0},
        "largest_drift": {"type": ["number", "null"]},
        "within_limits": {"type": "boolean"},
    }
    whole = _with(schema, {**limits["properties"], **derived})
    return {**whole, "$defs": {**schema["$defs"], "ColumnComparison": columns}}
