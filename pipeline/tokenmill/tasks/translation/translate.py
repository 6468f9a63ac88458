"""Translate: a column's text in another language, piece by piece, and how far it can be trusted.

What must not change is replaced by marks, the text is cut into paragraphs, each is one request; a
piece whose translation fails a check is asked for once more, and the better one is kept.
"""

import json
from collections.abc import Mapping

import pyarrow as pa

from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.request import Params, Sampling
from tokenmill.tasks.kind import TaskKind, TaskStep, template_columns
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import TaskContext
from tokenmill.tasks.translation.translate_section import FromColumn, Translate
from tokenmill.tasks.translation.translator import MIN_PIECE_TOKENS, Translator

#: What a prompt may use beside the input's columns; the text's column holds one piece of it.
_SUPPLIED = frozenset({"from_language", "to_language", "glossary", "has_marks"})
_INSTRUCTION = """\
Translate the text below{% if from_language %} from {{ from_language }}{% endif %} into \
{{ to_language }}. Answer with the translation alone: no notes, no quotes, the same line breaks.\
{% if has_marks %} Copy each mark such as ⟦1⟧ unchanged to where it belongs.{% endif %}\
{% for term, translation in glossary %}{% if loop.first %}

Use these translations:{% endif %}
{{ term }} = {{ translation }}{% endfor %}

"""
_SECOND_TEMPERATURE = 0.7
# The translation, where it is from, and the checks, which are null if none was run.
_FIELDS = (
    pa.field("translation", pa.string()),
    pa.field("translation_origin", pa.string()),
    pa.field("detected_language", pa.string()),
    pa.field("language_score", pa.float64()),
    pa.field("length_ratio", pa.float64()),
    pa.field("numbers_kept", pa.bool_()),
    pa.field("placeholders_kept", pa.bool_()),
    pa.field("repetition", pa.float64()),
    pa.field("checks_passed", pa.bool_()),
    pa.field("failed_checks", pa.list_(pa.string())),
    pa.field("attempts", pa.int32()),
)


def _default_prompt(section: Translate) -> Prompt:
    # All in the user's turn: some chat templates refuse a system's.
    return Prompt(user=f"{_INSTRUCTION}{{{{ row[{json.dumps(section.column)}] }}}}")


def _columns(step: TaskStep[Translate]) -> Mapping[str, str]:
    section, used = step.section, template_columns(step)
    if section.column not in used:
        raise UserError(
            f"{step.prompt_prefix}prompt: no template uses {section.column}, the column to "
            "translate"
        )
    columns = {name: key for name, key in used.items() if name not in _SUPPLIED}
    if isinstance(section.from_, FromColumn):
        columns.setdefault(section.from_.column, step.key_of("from.column"))
    if section.target is not None:
        columns.setdefault(section.target, step.key_of("target"))
    return columns


def _second_sampling(step: TaskStep[Translate]) -> Sampling | None:
    """Another draw, with some randomness if the first had none; None for no second try."""
    if not step.section.second_try:
        return None
    values = step.sampling.values
    # vLLM's own default is 1.
    temperature = max(values.get("temperature", 1.0), _SECOND_TEMPERATURE)
    seed = (values.get("seed") or 0) + 1
    return Sampling({**values, "temperature": temperature, "seed": seed})


def _params(step: TaskStep[Translate]) -> tuple[Params, ...]:
    second = _second_sampling(step)
    return (step.sampling,) if second is None else (step.sampling, second)


def _build(step: TaskStep[Translate], context: TaskContext) -> Translator:
    max_tokens = step.sampling.max_tokens or 0
    if max_tokens + MIN_PIECE_TOKENS > context.max_model_len:
        raise UserError(
            f"{step.key_prefix}sampling.max_tokens: {max_tokens} of the context's "
            f"{context.max_model_len} tokens leave no room for a text; lower it"
        )
    return Translator(step, context, _second_sampling(step))


TRANSLATE = TaskKind(
    name="translate",
    section=Translate,
    fields=lambda _: _FIELDS,
    build=_build,
    # It divides long texts itself.
    joins_by_prompt=False,
    default_prompt=_default_prompt,
    columns=_columns,
    params=_params,
    starter=Starter(
        "translations",
        """\
sampling: {temperature: 0, max_tokens: 320}
task:
  kind: translate
  from: en                        # a language code, {column: NAME} or null (unknown)
  to: fr
  column: $column
  # glossary: {invoice: facture}  # or the path of a YAML, CSV or TSV file
""",
        cuts=False,
    ),
)
