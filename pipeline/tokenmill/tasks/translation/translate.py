"""Translate: a column's text in another language, piece by piece, and how far it can be trusted.

What must not change is replaced by marks, the text is cut into paragraphs, each is one request; a
piece whose translation fails a check is asked for once more, and the better one is kept.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from tokenmill.config.prompt import Prompt
from tokenmill.config.section import Section
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import compile_prompt
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Params, Request, Sampling
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext
from tokenmill.tasks.translation.checks import Check, CheckLimits, CheckReport, check, check_whole
from tokenmill.tasks.translation.document import (
    Document,
    Draft,
    TranslatedSegment,
    has_words,
    joined_translation,
    num_failed_checks,
    prepared_document,
)
from tokenmill.tasks.translation.glossary import Glossary, read_glossary
from tokenmill.tasks.translation.languages import base, language_name
from tokenmill.tasks.translation.placeholders import (
    PLACEHOLDER,
    PlaceholderMask,
    Protected,
    placeholder_counts,
    restore_placeholders,
)
from tokenmill.tasks.translation.segments import (
    Segment,
    join_segments,
    one_paragraph,
    split_segments,
)

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
# A translation has up to twice as many tokens as its source, in a tokenizer made for English.
_TOKENS_PER_TOKEN = 2
# Where pieces join their prompt, tokens may fall otherwise than in either alone.
_SLACK_TOKENS = 8
_MIN_PIECE_TOKENS = 16
_SECOND_TEMPERATURE = 0.7
_SHOWN_CHARACTERS = 2000


class TranslationSource(StrEnum):
    """Where a row's translation is from."""

    MODEL = "model"
    #: The target column had one.
    TARGET = "target"
    #: The text itself: it is in that language already, or has no words.
    SOURCE = "source"


class FromColumn(Section):
    """A column that holds each row's language code."""

    column: str = Field(min_length=1)


class Translate(TaskSection):
    """`task: {kind: translate, from: en, to: fr, column: text}`."""

    # It divides long texts itself.
    joins_by_prompt: ClassVar[bool] = False

    kind: Literal["translate"] = "translate"
    from_: str | FromColumn | None = Field(
        default=None,
        alias="from",
        description="A language code, {column: NAME} with each row's, or null for any.",
    )
    to: str = Field(description="A language code such as fr or pt-BR.")
    column: str = Field(min_length=1, description="What is translated.")
    target: str | None = Field(
        default=None, description="Rows with a text in this column keep it and cost nothing."
    )
    glossary: dict[str, str] = Field(
        default={}, description="Translation by term, or a YAML, CSV or TSV file of them."
    )
    protect: tuple[Protected, ...] = tuple(Protected)
    part_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Longest piece; by default half of max_tokens, if the context fits.",
    )
    length_ratio: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = Field(
        default=(0.5, 2.5), description="Least and greatest length by that of the source."
    )
    second_try: bool = Field(
        default=True, description="Ask once more, less strictly, for what fails a check."
    )
    reject_failed: bool = Field(
        default=False, description="A row that fails its checks in the end is a reject."
    )

    @field_validator("glossary", mode="before")
    @classmethod
    def _read_glossary(cls, value: Any) -> Any:
        # The terms become a part of the job: with others in the same file its answers are others.
        return read_glossary(Path(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_languages(self) -> "Translate":
        for key, tag in (("from", self.from_), ("to", self.to)):
            if isinstance(tag, str) and language_name(tag) is None:
                raise ValueError(f"{key}: {tag} is no language code that is known, such as fr")
        if isinstance(self.from_, str) and base(self.from_) == base(self.to):
            raise ValueError("from and to are the same language")
        if self.length_ratio[0] >= self.length_ratio[1]:
            raise ValueError("length_ratio: the least is not below the greatest")
        return self

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The translation, where it is from, and the checks; those are null where none was run."""
        return (
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

    @property
    def default_prompt(self) -> Prompt:
        # All in the user's turn: some chat templates refuse a system's.
        return Prompt(user=f"{_INSTRUCTION}{{{{ row[{json.dumps(self.column)}] }}}}")

    @property
    def columns(self) -> Mapping[str, str]:
        read = compile_prompt(self.own_prompt, self.place).columns
        if self.column not in read:
            raise UserError(
                f"{self.place}prompt: no template uses {self.column}, the column to translate"
            )
        place = self.place or "task."
        columns = {name: where for name, where in read.items() if name not in _SUPPLIED}
        if isinstance(self.from_, FromColumn):
            columns.setdefault(self.from_.column, f"{place}from.column")
        if self.target is not None:
            columns.setdefault(self.target, f"{place}target")
        return columns

    @property
    def params(self) -> tuple[Params, ...]:
        second = self.second_sampling
        return (self.own_sampling,) if second is None else (self.own_sampling, second)

    @property
    def second_sampling(self) -> Sampling | None:
        """Another draw, with some freedom where the first had none; None for no second try."""
        if not self.second_try:
            return None
        values = self.own_sampling.values
        # vLLM's own default is 1.
        temperature = max(values.get("temperature", 1.0), _SECOND_TEMPERATURE)
        seed = (values.get("seed") or 0) + 1
        return Sampling({**values, "temperature": temperature, "seed": seed})

    def build(self, tools: TaskContext) -> "Translator":
        max_tokens = self.own_sampling.max_tokens or 0
        if max_tokens + _MIN_PIECE_TOKENS > tools.max_model_len:
            raise UserError(
                f"{self.place}sampling.max_tokens: {max_tokens} of the context's "
                f"{tools.max_model_len} tokens leave no room for a text; lower it"
            )
        return Translator(self, self.prompter(tools), tools)


class Translator:
    """A request for each piece of a row, and one more for those that fail a check."""

    def __init__(self, section: Translate, prompter: PromptEncoder, tools: TaskContext) -> None:
        self._section = section
        self._prompter = prompter
        self._tools = tools
        self._sampling = section.own_sampling
        self._second = section.second_sampling
        self._protector = PlaceholderMask(section.protect)
        self._glossary = Glossary(section.glossary)
        self._limits = CheckLimits(section.to, *section.length_ratio)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        drafts = [self._draft(row) for row in rows]
        # What a prompt costs without its text, so that the pieces fit.
        frames = iter(
            self._prompter.encode(
                [
                    self._prompt_row(draft, "x", draft.text)
                    for draft in drafts
                    if isinstance(draft, Draft)
                ]
            )
        )
        documents = [
            self._document(draft, next(frames)) if isinstance(draft, Draft) else draft
            for draft in drafts
        ]
        prompts = iter(
            self._prompter.encode(
                [
                    self._prompt_row(document.draft, text, text)
                    for document in documents
                    if isinstance(document, Document)
                    for text in document.asked
                ]
            )
        )
        return [
            prepared_document(document, prompts) if isinstance(document, Document) else document
            for document in documents
        ]

    def _draft(self, row: Row) -> Draft | PreparedRow | Reject:
        section = self._section
        given = None if section.target is None else row[section.target]
        if isinstance(given, str) and given.strip():
            return _given(given, TranslationSource.TARGET)
        text = row[section.column]
        if text is None or (isinstance(text, str) and not text.strip()):
            what = "null" if text is None else "empty"
            return Reject(RejectClass.EMPTY_INPUT, f"the column {section.column} is {what}")
        if not isinstance(text, str):
            what = type(text).__name__
            return Reject(
                RejectClass.BAD_TEXT, f"the column {section.column} holds {what}, not text"
            )
        language = self._language(row)
        masked = self._protector.mask(text)
        is_there = language is not None and base(language) == base(section.to)
        if is_there or not has_words(masked.text):
            return _given(text, TranslationSource.SOURCE)
        supplied = {
            "from_language": None if language is None else language_name(language),
            "to_language": language_name(section.to),
        }
        return Draft({**row, **supplied}, masked.text, masked.spans)

    def _language(self, row: Row) -> str | None:
        """The row's language, if it is known."""
        language = self._section.from_
        if isinstance(language, FromColumn):
            language = row[language.column]
        return language if isinstance(language, str) and language_name(language) else None

    def _prompt_row(self, draft: Draft, text: str, context: str) -> Row:
        """What a prompt over `text` is rendered with; glossary and marks are those of `context`."""
        return {
            **draft.row,
            self._section.column: text,
            "glossary": self._glossary.found(context),
            "has_marks": bool(placeholder_counts(context)),
        }

    def _document(self, draft: Draft, frame: Sequence[int] | Reject) -> Document | Reject:
        if isinstance(frame, Reject):
            return frame
        fits, wanted = self._budget(len(frame))
        if fits < _MIN_PIECE_TOKENS:
            return Reject(
                RejectClass.PROMPT_TOO_LONG,
                f"the prompt's {len(frame)} tokens without the text and the answer's leave "
                f"{max(fits, 0)} of the context's {self._tools.max_model_len} for the text; raise "
                "model.engine.max_model_len or shorten the prompt",
            )
        budget = min(fits, wanted)
        return Document(
            draft, split_segments(draft.text, budget, self._counter(budget), PLACEHOLDER)
        )

    def _budget(self, frame_tokens: int) -> tuple[int, int]:
        """The tokens of the longest piece that fits into the context, and of what is wanted."""
        room = self._tools.max_model_len - frame_tokens - _SLACK_TOKENS
        max_tokens = self._sampling.max_tokens
        if max_tokens is None:
            fits = wanted = room // (1 + _TOKENS_PER_TOKEN)
        else:
            fits, wanted = room - max_tokens, max(1, max_tokens // _TOKENS_PER_TOKEN)
        return fits, self._section.part_tokens or wanted

    def _counter(self, budget: int) -> Callable[[str], int]:
        def count(text: str) -> int:
            # A token has a byte or more: most pieces are short and need no tokenizer.
            size = len(text.encode())
            if size <= budget:
                return size
            guarded = self._tools.tokenizer.controls.guard(text)
            (tokens,) = self._tools.tokenizer.encode_texts([guarded])
            return size if isinstance(tokens, Reject) else len(tokens)

        return count

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        notes, prompts = prepared.notes, prepared.prompts
        if not prompts:
            translation, origin = notes["given"]
            return {"translation": translation, "translation_origin": origin, "attempts": 0}
        pieces = [Segment(*piece) for piece in notes["pieces"]]
        sources = [piece.text for piece in pieces if has_words(piece.text)]
        answers = yield [Request(prompt, self._sampling) for prompt in prompts]
        parts = []
        for source, answer in zip(sources, answers, strict=True):
            if isinstance(answer, Reject):
                return answer
            parts.append(self._part(source, answer))
        report = self._whole(pieces, parts)
        if not report.failed or self._second is None:
            return self._result(pieces, parts, notes["spans"], attempts=1)
        # Where only the whole fails, no part is better than another.
        weak = [at for at, part in enumerate(parts) if part.report.failed] or range(len(parts))
        answers = yield [Request(prompts[at], self._second) for at in weak]
        others = list(parts)
        for at, answer in zip(weak, answers, strict=True):
            if isinstance(answer, Completion):
                others[at] = self._part(sources[at], answer)
        parts = self._better(pieces, parts, others)
        return self._result(pieces, parts, notes["spans"], attempts=2)

    def _part(self, source: str, completion: Completion) -> TranslatedSegment:
        text = one_paragraph(completion.text)
        is_cut = completion.finish_reason == "length"
        return TranslatedSegment(text, check(source, text, is_cut, self._limits))

    def _better(
        self,
        pieces: Sequence[Segment],
        first: Sequence[TranslatedSegment],
        second: Sequence[TranslatedSegment],
    ) -> list[TranslatedSegment]:
        """Of each piece the translation that fails less; where they are even, all of one try."""
        pairs = list(zip(first, second, strict=True))
        choices = [
            [min(pair, key=num_failed_checks) for pair in pairs],
            [min(reversed(pair), key=num_failed_checks) for pair in pairs],
        ]
        return min(choices, key=lambda parts: len(self._whole(pieces, parts).failed))

    def _whole(self, pieces: Sequence[Segment], parts: Sequence[TranslatedSegment]) -> CheckReport:
        source = join_segments(pieces, [piece.text for piece in pieces])
        reports = [part.report for part in parts]
        return check_whole(source, joined_translation(pieces, parts), reports, self._limits)

    def _result(
        self,
        pieces: Sequence[Segment],
        parts: Sequence[TranslatedSegment],
        spans: Sequence[str],
        attempts: int,
    ) -> Cells | Reject:
        report = self._whole(pieces, parts)
        translation = restore_placeholders(joined_translation(pieces, parts), spans)
        failed = sorted(report.failed)
        if failed and self._section.reject_failed:
            shown = " ".join(translation[:_SHOWN_CHARACTERS].split())
            message = f"failed checks: {', '.join(failed)}; the translation: {shown}"
            return Reject(RejectClass.CHECK_FAILED, message, attempts)
        language = report.language
        return {
            "translation": translation,
            "translation_origin": str(TranslationSource.MODEL),
            "detected_language": None if language is None else language.code,
            "language_score": None if language is None else language.score,
            "length_ratio": report.length_ratio,
            "numbers_kept": Check.NUMBERS not in report.failed,
            "placeholders_kept": Check.PLACEHOLDERS not in report.failed,
            "repetition": report.repetition,
            "checks_passed": not failed,
            "failed_checks": failed,
            "attempts": attempts,
        }


def _given(translation: str, origin: TranslationSource) -> PreparedRow:
    """A row that needs no model."""
    return PreparedRow([], {"given": [translation, str(origin)]})
