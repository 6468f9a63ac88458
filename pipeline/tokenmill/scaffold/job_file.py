"""A commented job file for an input that was looked at: one task, and what may be changed.

Each kind of task has its part here; what they have in common is put around it.
"""

import json
import os
import re
from collections.abc import Iterator
from string import Template

import yaml

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.scaffold.survey import Column, Survey
from tokenmill.tasks.kinds import TASK_KINDS
from tokenmill.tasks.starter import StarterModel

_WIDTH = 100
_SHOWN_COLUMNS = 30
_SHOWN_VALUES = 3
_SHOWN_CHARACTERS = 40
# Such texts are likely to exceed a context of 2,048 tokens together with their answer.
_LONG_CHARACTERS = 6_000
# Names that templates have for other things: Jinja's own, and what tasks give them.
_TAKEN = frozenset(
    {"and", "choices", "cycler", "dict", "else", "false", "for", "if", "in", "is", "joiner"}
    | {"lipsum", "namespace", "none", "not", "or", "parts", "range", "row", "true"}
)


_STARTERS = {kind.name: kind.starter for kind in TASK_KINDS}
#: The kinds of task that there is a job file for.
KINDS = tuple(_STARTERS)


def job_for(found: Survey, kind: str, file: str) -> str:
    """A job file for the input, to be stored under the name `file`. Raises `UserError`."""
    if kind not in _STARTERS:
        raise UserError(f"--task {kind}: {did_you_mean(kind, KINDS, 'kind of task')}")
    starter = _STARTERS[kind]
    column = column_for_task(found, kind)
    named = {"text": _quoted(_printing(column.name)), "column": _quoted(column.name)}
    parts = [
        *_heading(found, file),
        f"name: {starter.name}",
        *_input(found, column),
        *_model(starter.model),
        Template(starter.body).substitute(named).rstrip(),
        *(_length(column) if starter.cuts else ()),
        f"output: {{path: {_quoted(_output(found, starter.name))}}}",
        "# units: {rows: 1000}             # by default sized by estimated tokens",
        "max_reject_rate: 0.05             # a larger share of rejects ends with exit code 3",
    ]
    return "\n".join(parts) + "\n"


def column_for_task(found: Survey, kind: str) -> Column:
    """The input's column that a task of this kind is about. Raises `UserError`."""
    reads = _STARTERS[kind].reads
    column = {"text": found.text, "image": found.image, "audio": found.audio}[reads]
    if column is None:
        there = ", ".join(f"{each.name} ({each.type})" for each in found.columns)
        raise UserError(
            f"{found.root}: no column looks like {reads}, which {kind} is about: {there}"
        )
    return column


def _heading(found: Survey, file: str) -> Iterator[str]:
    yield "# A job of tokenmill. Change what you like, then:"
    for command, why in (
        ("validate", "what is wrong, in seconds"),
        ("preview", "real answers for a few rows"),
        ("plan", "what a run will take"),
        ("run", "all rows; run it again to resume"),
    ):
        yield f"#   {f'tokenmill {command} {file}':<36} {why}"
    yield "#"
    yield f"# The input has {found.rows:,} rows in {found.shards:,} shards, and these columns:"
    for column in found.columns[:_SHOWN_COLUMNS]:
        yield _column_line(column)
    if len(found.columns) > _SHOWN_COLUMNS:
        yield f"#   … and {len(found.columns) - _SHOWN_COLUMNS:,} more"


def _column_line(column: Column) -> str:
    shown = dict.fromkeys(map(_shown, column.values))
    values = ", ".join(list(shown)[:_SHOWN_VALUES]) or "(null)"
    return _cut(f"#   {_bare(column.name)}: {column.type}: {values}", _WIDTH)


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    # `repr` writes out what is not printable, which YAML refuses even in comments.
    return _cut(repr(value), _SHOWN_CHARACTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _input(found: Survey, column: Column) -> Iterator[str]:
    keys = ", ".join(_quoted(key.name) for key in found.keys)
    condition = f"{_sql_name(column.name)} IS NOT NULL"
    yield "input:"
    yield f"  path: {_quoted(found.path)}"
    yield f"{f'  keep: [{keys}]':<33} # columns carried to the output as they are"
    yield f"  # where: {_quoted(condition)}"
    yield "  # limit: 100                    # only the first rows, for a try"
    if found.bad_shards:
        yield f"  on_bad_shard: skip              # {found.bad_shards:,} shards cannot be read"


def _model(model: StarterModel) -> Iterator[str]:
    yield "model:"
    yield "  # Small, to try the job on a laptop; not for the quality of its answers."
    yield f"  source: {model.source}"
    if model.engine:
        yield f"  engine: {model.engine}"
    yield "  # On a GPU, in their place:"
    yield f"  # source: {model.on_gpu}"
    if model.engine_on_gpu:
        yield f"  # engine: {model.engine_on_gpu}"
    yield "  # replicas: 1                   # engines, or {min: 1, max: 16}"
    yield "  # gpus_per_replica: 1"
    yield "  # price_per_gpu_hour: 2.50      # tokenmill plan then says what a run will cost"


def _length(column: Column) -> Iterator[str]:
    """The policy for long texts, in force where the input has some."""
    is_long = any(len(value) > _LONG_CHARACTERS for value in column.values)
    yield "# Texts that do not fit into the model's context are cut; by default they are rejects."
    policy = f"length: {{policy: truncate, column: {_quoted(column.name)}}}"
    yield policy if is_long else f"# {policy}"


def _output(found: Survey, name: str) -> str:
    """Where the answers go: below the current folder, unless that is in the input."""
    inside = found.recursive and f"{os.path.abspath('out')}/".startswith(f"{found.root}/")
    if not inside:
        return f"out/{name}"
    return f"{found.root}-out/{name}"


def _printing(column: str) -> str:
    """The template that prints a column."""
    is_plain = re.fullmatch(r"[A-Za-z_]\w*", column, re.ASCII) and column.lower() not in _TAKEN
    return f"{{{{ {column} }}}}" if is_plain else f"{{{{ row[{json.dumps(column)}] }}}}"


def _sql_name(column: str) -> str:
    return (
        column if re.fullmatch(r"[a-z_]\w*", column) else '"{}"'.format(column.replace('"', '""'))
    )


def _bare(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _quoted(text: str) -> str:
    """A text as YAML; plain where it cannot be taken for anything else."""
    if re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**31)
    return dumped.rstrip("\n")
