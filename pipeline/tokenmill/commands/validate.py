"""`validate` and `preview`: what is known, and seen, before a run."""

import json
from dataclasses import asdict
from pathlib import Path

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
from tokenmill.commands.terminal import facts_table, one_line_errors, screen, visible
from tokenmill.formatting import plural
from tokenmill.job.loader import load_job
from tokenmill.models import cache
from tokenmill.observe.screen import chatter_into
from tokenmill.run.validate import Validation, validate


def validate_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
    date: DateOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check a job against its input, its models and this machine; write and start nothing.

    Example: tokenmill validate jobs/summarize.yaml

    Exit codes: 0 it can be run, 2 a mistake in the job or its input.
    """
    with one_line_errors(debug):
        settings = job_settings(overrides, input_path, output_path, limit, date=date)
        with chatter_into(cache.cache_folder() / "logs" / "validate.log"):
            found = validate(load_job(job_file, settings))
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        else:
            _print_validation(job_file, found)


def _print_validation(job_file: Path, found: Validation) -> None:
    shards, units = plural(found.shards, "shard"), plural(found.units, "unit")
    lines = {
        "rows": f"{found.rows:,} in {shards} and {units}",
        "skipped": ", ".join(found.skipped_shards),
        "columns": ", ".join(f"{name} {type_}" for name, type_ in found.columns.items()),
        "models": ", ".join(model.source for model in found.models),
        "to fetch": ", ".join(model.source for model in found.missing_models),
    }
    console = screen()
    console.print(visible(f"{job_file} can be run"), markup=False, soft_wrap=True)
    console.print(facts_table(lines))
    if found.missing_models:
        console.print("what follows from a model's tokenizer is known once it is fetched")
    missing = [f"models fetch {model.source}" for model in found.missing_models[:1]]
    (command,) = missing or [f"preview {job_file}"]
    console.print(visible(f"next: tokenmill {command}"), markup=False, soft_wrap=True)
