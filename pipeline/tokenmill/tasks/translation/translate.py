"""The `translate` task: translates a column segment by segment, and checks the result.

Spans that must not change are replaced with marks. The text is split into paragraphs, and each is
one request. A segment whose translation fails a check is translated once more, and the better
translation is kept.
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
from tokenmill.tasks.translation.translator import MIN_SEGMENT_TOKENS, Translator

# Variables that templates may use in addition to the input columns. The variable of the translated
# column holds one segment.
_PROMPT_VARIABLES = frozenset({"from_language", "to_language", "glossary", "has_marks"})
_INSTRUCTION = """\
Translate the text below{% if from_language %} from {{ from_language }}{% endif %} into \
{{ to_language }}. Answer with the translation alone: no notes, no quotes, the same line breaks.\
{% if has_marks %} Copy each mark such as ⟦1⟧ unchanged to where it belongs.{% endif %}\
{% for term, translation in glossary %}{% if loop.first %}

Use these translations:{% endif %}
{{ term }} = {{ translation }}{% endfor %}

"""
_SECOND_TEMPERATURE = 0.7
# The translation, its origin and the results of the checks. These are null if no check was run.
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
    # Everything is in the user's turn, because some chat templates reject a system message.
    return Prompt(user=f"{_INSTRUCTION}{{{{ row[{json.dumps(section.column)}] }}}}")


def _columns(step: TaskStep[Translate]) -> Mapping[str, str]:
    section, variables = step.section, template_columns(step)
    if section.column not in variables:
        raise UserError(
            f"{step.prompt_prefix}prompt: no template uses {section.column}, the column to "
            "translate"
        )
    columns = {name: key for name, key in variables.items() if name not in _PROMPT_VARIABLES}
    if isinstance(section.from_, FromColumn):
        columns.setdefault(section.from_.column, step.key_of("from.column"))
    if section.target is not None:
        columns.setdefault(section.target, step.key_of("target"))
    return columns


def _second_sampling(step: TaskStep[Translate]) -> Sampling | None:
    """Sampling for the second try: another seed, and a temperature that allows another answer.

    None if there is no second try.
    """
    if not step.section.second_try:
        return None
    values = step.sampling.values
    # vLLM's default is 1.
    temperature = max(values.get("temperature", 1.0), _SECOND_TEMPERATURE)
    seed = (values.get("seed") or 0) + 1
    return Sampling({**values, "temperature": temperature, "seed": seed})


def _params(step: TaskStep[Translate]) -> tuple[Params, ...]:
    second = _second_sampling(step)
    return (step.sampling,) if second is None else (step.sampling, second)


def _build(step: TaskStep[Translate], context: TaskContext) -> Translator:
    max_tokens = step.sampling.max_tokens or 0
    if max_tokens + MIN_SEGMENT_TOKENS > context.max_model_len:
        raise UserError(
            f"{step.key_prefix}sampling.max_tokens: {max_tokens} leaves no room for a text in the "
            f"context of {context.max_model_len} tokens; lower it"
        )
    return Translator(step, context, _second_sampling(step))


TRANSLATE = TaskKind(
    name="translate",
    section=Translate,
    fields=lambda _: _FIELDS,
    build=_build,
    # The task splits long texts itself.
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
  # target: text_fr               # a column with translations: its rows are kept, at no cost
  # glossary: {invoice: facture}  # or the path of a YAML, CSV or TSV file
""",
        cuts=False,
    ),
)
