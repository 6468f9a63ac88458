"""`validate`: check a job before a run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenmill.commands.options import (
    DateOption,
    DebugOption,
    InputOption,
    JobArgument,
    JsonOption,
    LimitOption,
    OutputOption,
    SetOption,
    job_settings,
)
from tokenmill.commands.terminal import facts_table, one_line_errors, print_line, table_console
from tokenmill.formatting import plural
from tokenmill.job.loader import load_job
from tokenmill.models.cache import log_file
from tokenmill.observe.screen import redirected_output
from tokenmill.run.validate import Validation, validate

QuickOption = Annotated[
    bool, typer.Option("--quick", help="Skip what needs a model's tokenizer or vLLM.")
]


def validate_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    is_quick: QuickOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a job against its input, its models and this machine. Writes and starts nothing.

    Example: tokenmill validate jobs/summarize.yaml

    Exit codes: 0 the job is valid, 2 a mistake in the job or its input.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        with redirected_output(log_file("validate.log")):
            validation = validate(load_job(job_file, settings), is_quick=is_quick)
        if as_json:
            typer.echo(json.dumps(asdict(validation), indent=2))
        else:
            _print_validation(job_file, validation)


def _print_validation(job_file: Path, validation: Validation) -> None:
    shards, units = plural(validation.shards, "shard"), plural(validation.units, "unit")
    columns = ", ".join(f"{name} {type_}" for name, type_ in validation.columns.items())
    missing = [model.source for model in validation.missing_models]
    facts = {
        "rows": f"{validation.rows:,} in {shards} and {units}",
        "skipped shards": ", ".join(validation.skipped_shards),
        "output columns": columns,
        "models": ", ".join(model.source for model in validation.models),
        "not fetched": ", ".join(missing),
    }
    print_line(f"{job_file} is valid")
    table_console().print(facts_table(facts))
    for note in validation.notes:
        print_line(note)
    if missing:
        print_line("Some checks need a model's tokenizer: fetch the models and validate again.")
    command = f"models fetch {missing[0]}" if missing else f"preview {job_file}"
    print_line(f"next: tokenmill {command}")
