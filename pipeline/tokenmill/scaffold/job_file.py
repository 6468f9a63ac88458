"""A commented job file for an input that was looked at: one task, and what may be changed.

Each kind of task has its part here; what they have in common is put around it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Template

import yaml

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.scaffold.survey import Column, Survey

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


@dataclass(frozen=True, slots=True)
class _Model:
    """A small model to try a job with, and one for a GPU; each with its engine's arguments."""

    source: str
    on_gpu: str
    engine: str = ""
    engine_on_gpu: str = ""


_CHAT = _Model(
    "bundled:smollm2-135m", "Qwen/Qwen3-8B", "{max_model_len: 2048}", "{max_model_len: 8192}"
)


@dataclass(frozen=True, slots=True)
class _Starter:
    """What a kind of task needs in a job: `body` holds `$text`, `$column` and the like.

    `reads` is the kind of column that it asks about; `cuts` whether `length` may shorten it.
    """

    name: str
    body: str
    model: _Model = _CHAT
    reads: str = "text"
    cuts: bool = True


_STARTERS: Mapping[str, _Starter] = {
    "generate": _Starter(
        "summaries",
        """\
prompt:                           # Jinja2 over the row's columns
  system: You write one-sentence summaries.
  user: $text
sampling: {temperature: 0, max_tokens: 64}   # vLLM's SamplingParams
# task: {kind: generate, complete: true}     # an answer that max_tokens cuts off is a reject
""",
    ),
    "classify": _Starter(
        "labels",
        """\
prompt:                           # Jinja2 over the row's columns
  system: You tell the mood of a text.
  user: $text
task:
  kind: classify
  choices:                        # label: what it is for
    positive: the writer is pleased
    neutral: a plain report or question
    negative: the writer is angry, sad or worried
  # calibrate: true               # takes off what the model prefers whatever the text says
  # abstain_below: 0.4            # no label where none stands out
""",
    ),
    "tag": _Starter(
        "tags",
        """\
prompt:                           # Jinja2 over the row's columns
  system: You sort texts by topic.
  user: $text
task:
  kind: tag
  choices:                        # tag: what it is for; a row has any number of them
    business: companies, money and trade
    science: research, nature and health
    sports: matches, races and their results
  threshold: 0.5                  # the least probability of a tag
  # max_tags: 2
""",
    ),
    "extract": _Starter(
        "fields",
        """\
prompt:                           # Jinja2 over the row's columns
  system: You list the people and places that a text names, and its subject, as JSON.
  user: $text
sampling: {temperature: 0, max_tokens: 256}
task:
  kind: extract
  json_schema:                    # each property is a column of the output
    type: object
    properties:
      subject: {type: string, maxLength: 80}
      people: {type: array, items: {type: string, maxLength: 40}, maxItems: 4}
      places: {type: array, items: {type: string, maxLength: 40}, maxItems: 4}
    required: [subject, people, places]
  # retries: {times: 1, sampling: {max_tokens: 512}}   # for answers that were cut off
""",
    ),
    "translate": _Starter(
        "translations",
        """\
sampling: {temperature: 0, max_tokens: 320}
task:
  kind: translate
  from: en                        # a language code, {column: NAME} with each row's, or null
  to: fr
  column: $column
  # glossary: {invoice: facture}  # or a YAML, CSV or TSV file of terms
""",
        cuts=False,
    ),
    "score": _Starter(
        "scores",
        """\
prompt: {text: $text}             # how likely the model finds the text, as it is
task:
  kind: score
  window: 1024                    # tokens of a long text that are read at once
  stride: 512
""",
        cuts=False,
    ),
    "embed": _Starter(
        "embeddings",
        """\
prompt: {text: $text}             # with a prefix where the model wants one: "query: …"
task:
  kind: embed
  # dimensions: 256               # shorter vectors, of models that were trained for it
""",
        _Model("bundled:minilm-l6", "Qwen/Qwen3-Embedding-0.6B"),
    ),
    "rerank": _Starter(
        "relevance",
        """\
task:
  kind: rerank
  query: What is this about?      # a template too; the same for all rows, or from a column
  document: $text
""",
        _Model("cross-encoder/ms-marco-MiniLM-L6-v2", "BAAI/bge-reranker-v2-m3"),
    ),
    "reward": _Starter(
        "rewards",
        """\
prompt: {user: $text}             # what is judged; or, with a completion, what it answers
task:
  kind: reward
  # completion: $text             # a template: the answer to judge
""",
        _Model(
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
            "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
            "{max_model_len: 4096}",
            "{max_model_len: 8192}",
        ),
    ),
    "describe": _Starter(
        "descriptions",
        """\
prompt: {user: Describe this image in one sentence.}
sampling: {temperature: 0, max_tokens: 64}
task:
  kind: describe
  image: $column                  # bytes, or paths relative to the input's folder
""",
        _Model("HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        reads="image",
        cuts=False,
    ),
    "transcribe": _Starter(
        "transcripts",
        """\
# Whisper's decoder holds 448 tokens, of which 4 begin each window.
sampling: {temperature: 0, max_tokens: 444}
task:
  kind: transcribe
  audio: $column                  # bytes, or paths relative to the input's folder
  language: en
""",
        _Model("openai/whisper-tiny", "openai/whisper-large-v3"),
        reads="audio",
        cuts=False,
    ),
}
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


def _model(model: _Model) -> Iterator[str]:
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
