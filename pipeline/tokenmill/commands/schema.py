"""`schema`: JSON schemas of the job file and of the commands' JSON output."""

import json
from collections.abc import Callable, Mapping
from functools import partial
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


def _output_schema(type_: Any, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of a type as it is printed, with `more` required properties."""
    schema = TypeAdapter(type_).json_schema(mode="serialization")
    return _extended(schema, more) if more else schema


def _extended(schema: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    properties = {**schema["properties"], **more}
    return {**schema, "properties": properties, "required": [*schema["required"], *more]}


def _comparison_schema() -> dict[str, Any]:
    """The schema of a comparison with its derived values and its limits."""
    derived = {
        "changed_share": {"type": "number", "minimum": 0},
        "largest_drift": {"type": ["number", "null"]},
        "within_limits": {"type": "boolean"},
    }
    limits = _output_schema(DriftLimits)["properties"]
    schema = _output_schema(Comparison, {**limits, **derived})
    columns = _extended(schema["$defs"]["ColumnComparison"], {"agreement": _SHARE})
    return {**schema, "$defs": {**schema["$defs"], "ColumnComparison": columns}}


_STATE = {"type": "string", "enum": ["finished", "running", "stopped"]}
_TOKENS_PER_S = {"type": ["number", "null"]}
#: `job` is the job file, `summary` a run's summary.json; the others are the --json output of the
#: command with that name.
_SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "job": Job.model_json_schema,
    "validate": partial(_output_schema, Validation),
    "plan": partial(_output_schema, Estimate),
    "preview": partial(_output_schema, list[PreviewedRow]),
    "status": partial(_output_schema, Status, {"state": _STATE}),
    "report": partial(_output_schema, OutputReport, {"tokens_per_s": _TOKENS_PER_S}),
    "compare": _comparison_schema,
    "summary": partial(_output_schema, Summary),
    "jobs": partial(_output_schema, list[SubmittedJob]),
}
#: The names that `schema_of` takes.
SCHEMA_NAMES = tuple(_SCHEMAS)


def schema_command(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help=f"Schema: {', '.join(SCHEMA_NAMES)}.")
    ] = "job",
    debug: DebugOption = False,
) -> None:
    """Print a JSON schema: of the job file, of a command's --json output, or of summary.json.

    Example: tokenmill schema > tokenmill.schema.json

    Exit codes: 0 printed, 2 no such schema.
    """
    with one_line_errors(debug):
        typer.echo(json.dumps(schema_of(name), indent=2))


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema with one of the `SCHEMA_NAMES`. Raises `UserError` for another name."""
    if name not in _SCHEMAS:
        raise UserError(f"schema {name}: {did_you_mean(name, SCHEMA_NAMES, 'schema')}")
    return _SCHEMAS[name]()
