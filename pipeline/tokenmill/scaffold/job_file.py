"""The commented job file that `tokenmill init` writes for a surveyed input.

Each kind of task brings its part, a `Starter`; the parts that all jobs share are written here.
"""

import json
import os
import re
import textwrap
from collections.abc import Iterator
from string import Template

import yaml

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean, plural
from tokenmill.scaffold.survey import Column, Survey
from tokenmill.tasks.kinds import TASK_KINDS
from tokenmill.tasks.starter import StarterModel

_WIDTH = 100
_SHOWN_COLUMNS = 30
_SHOWN_VALUES = 3
_SHOWN_CHARACTERS = 40
# Longer texts are likely to exceed a context of 2,048 tokens together with their answer.
_LONG_CHARACTERS = 6_000
# Marks a space in a value. YAML writes this character as an escape, so no value has it.
_NO_BREAK = "\0"
# Names with another meaning in templates: those of Jinja and of the tasks.
_RESERVED = frozenset(
    {"and", "choices", "cycler", "dict", "else", "false", "for", "if", "in", "is", "joiner"}
    | {"lipsum", "namespace", "none", "not", "or", "parts", "range", "row", "true"}
)


_STARTERS = {kind.name: kind.starter for kind in TASK_KINDS}
#: The kinds of task that `job_for` writes job files for.
KINDS = tuple(_STARTERS)


def job_for(survey: Survey, kind: str, file: str) -> str:
    """The text of a job file for the input. Its comments call it `file`. Raises `UserError`."""
    if kind not in _STARTERS:
        raise UserError(f"--task {kind}: {did_you_mean(kind, KINDS, 'kind of task')}")
    starter = _STARTERS[kind]
    column = column_for_task(survey, kind)
    names = {
        "text": _quoted(_printing(column.name)),
        "column": _quoted(column.name),
        "labels": "".join(f"{line}\n" for line in _labels(survey, column)),
    }
    parts = [
        *_heading(survey, file),
        f"name: {starter.name}",
        *_input(survey, column),
        *_model(starter.model),
        Template(starter.body).substitute(names).rstrip(),
        *(_length(column) if starter.cuts else ()),
        f"output: {{path: {_quoted(_output(survey, starter.name))}}}",
        "# units: {rows: 1000}             # default: units of about the same number of tokens",
        "max_reject_rate: 0.05             # exit code 3 if more than 5 % of rows are rejected",
    ]
    return "\n".join(parts) + "\n"


def column_for_task(survey: Survey, kind: str) -> Column:
    """The column of the input that a task of this kind processes. Raises `UserError`."""
    reads = _STARTERS[kind].reads
    column = {"text": survey.text, "image": survey.image, "audio": survey.audio}[reads]
    if column is None:
        columns = ", ".join(f"{column.name} ({column.type})" for column in survey.columns)
        raise UserError(
            f"{survey.root}: {kind} needs a column of {reads}, and none looks like one: {columns}"
        )
    return column


def _heading(survey: Survey, file: str) -> Iterator[str]:
    yield "# A tokenmill job. Edit it, then:"
    width = len(f"tokenmill validate {file}")
    for command, purpose in (
        ("validate", "find mistakes, in seconds"),
        ("preview", "answer a few rows"),
        ("plan", "estimate time and cost"),
        ("run", "process all rows; run again to resume"),
    ):
        # The purpose is a comment of the shell's too, so that the line can be copied.
        yield f"#   {f'tokenmill {command} {file}':<{width}}  # {purpose}"
    yield "#"
    rows, shards = plural(survey.rows, "row"), plural(survey.shards, "shard")
    yield f"# The input has {rows} in {shards}, and these columns:"
    for column in survey.columns[:_SHOWN_COLUMNS]:
        yield _column_line(column)
    if len(survey.columns) > _SHOWN_COLUMNS:
        yield f"#   … and {len(survey.columns) - _SHOWN_COLUMNS:,} more"


def _column_line(column: Column) -> str:
    distinct = dict.fromkeys(map(_example, column.values))
    values = ", ".join(list(distinct)[:_SHOWN_VALUES]) or "(null)"
    return _cut(f"#   {_printable(column.name)}: {column.type}: {values}", _WIDTH)


def _example(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    # `repr` escapes what is not printable: YAML allows none of it, even in comments.
    return _cut(repr(value), _SHOWN_CHARACTERS)


def _cut(text: str, max_characters: int) -> str:
    return text if len(text) <= max_characters else f"{text[: max_characters - 1]}…"


def _input(survey: Survey, column: Column) -> Iterator[str]:
    keys = ", ".join(_quoted(key.name) for key in survey.keys)
    condition = f"{_sql_name(column.name)} IS NOT NULL"
    yield "input:"
    yield f"  path: {_quoted(survey.path)}"
    yield f"{f'  keep: [{keys}]':<33} # columns to copy to the output"
    yield f"  # where: {_quoted(condition)}"
    yield "  # limit: 100                    # use only the first rows"
    if survey.bad_shards:
        yield f"  on_bad_shard: skip              # {survey.bad_shards:,} shards cannot be read"


def _model(model: StarterModel) -> Iterator[str]:
    yield "model:"
    yield "  # A small model to try the job on a laptop. Its answers are poor."
    yield f"  source: {model.source}"
    if model.engine:
        yield f"  engine: {model.engine}"
    yield "  # On a GPU, use instead:"
    yield f"  # source: {model.on_gpu}"
    if model.engine_on_gpu:
        yield f"  # engine: {model.engine_on_gpu}"
    yield "  # replicas: 1                   # number of engines, or {min: 1, max: 16}"
    yield "  # gpus_per_replica: 1"
    yield "  # price_per_gpu_hour: 2.50      # for the cost in tokenmill plan"


def _labels(survey: Survey, column: Column) -> Iterator[str]:
    """Choices for a task with labels: the values of a column that holds labels, as a comment."""
    others = (other for other in survey.labels if other not in (column, *survey.keys))
    labeled = max(others, key=lambda other: len(other.labels), default=None)
    if labeled is not None:
        # Lines are broken between values, and not at the spaces inside of one.
        values = (_quoted(value).replace(" ", _NO_BREAK) for value in labeled.labels)
        lines = textwrap.wrap(
            f"choices: [{', '.join(values)}]",
            _WIDTH,
            initial_indent="  # ",
            subsequent_indent="  #   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield f"  # Or the values of the column {_printable(labeled.name)} in the first rows:"
        yield from (line.replace(_NO_BREAK, " ") for line in lines)


def _length(column: Column) -> Iterator[str]:
    """The policy for long texts; a comment if the input has none."""
    is_long = any(len(value) > _LONG_CHARACTERS for value in column.values)
    yield "# Truncate texts that do not fit into the model's context; by default they are rejected."
    policy = f"length: {{policy: truncate, column: {_quoted(column.name)}}}"
    yield policy if is_long else f"# {policy}"


def _output(survey: Survey, name: str) -> str:
    """The output's path: below the current folder, unless that is part of the input."""
    is_inside = survey.recursive and f"{os.path.abspath('out')}/".startswith(f"{survey.root}/")
    return f"{survey.root}-out/{name}" if is_inside else f"out/{name}"


def _printing(column: str) -> str:
    """The template that prints a column."""
    is_plain = re.fullmatch(r"[A-Za-z_]\w*", column, re.ASCII) and column.lower() not in _RESERVED
    return f"{{{{ {column} }}}}" if is_plain else f"{{{{ row[{json.dumps(column)}] }}}}"


def _sql_name(column: str) -> str:
    return (
        column if re.fullmatch(r"[a-z_]\w*", column) else '"{}"'.format(column.replace('"', '""'))
    )


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _quoted(text: str) -> str:
    """A text as YAML, without quotes if it cannot be mistaken for anything else."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**31)
    return dumped.rstrip("\n")
