"""Translates a row: builds its prompts, sends its requests and combines the answers."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext
from tokenmill.tasks.translation.checks import (
    Check,
    CheckLimits,
    CheckReport,
    check_document,
    check_translation,
)
from tokenmill.tasks.translation.document import (
    Document,
    Draft,
    TranslatedSegment,
    has_words,
    join_translations,
    num_failed_checks,
    prepare_document,
    source_texts,
)
from tokenmill.tasks.translation.glossary import Glossary
from tokenmill.tasks.translation.languages import base_language, language_name
from tokenmill.tasks.translation.placeholders import (
    PLACEHOLDER,
    PlaceholderMask,
    placeholder_counts,
    restore_placeholders,
)
from tokenmill.tasks.translation.segments import (
    Segment,
    join_segments,
    one_paragraph,
    split_segments,
)
from tokenmill.tasks.translation.translate_section import FromColumn, Translate

# With a tokenizer made for English, a translation has up to twice as many tokens as its source.
_TARGET_TOKENS_PER_SOURCE_TOKEN = 2
# A text inside a prompt can have a few more tokens than the text and the prompt have separately.
_SLACK_TOKENS = 8
#: A context without room for a segment of this length is too small.
MIN_SEGMENT_TOKENS = 16
_MAX_SHOWN_CHARACTERS = 2000


class TranslationSource(StrEnum):
    """The origin of a row's translation."""

    MODEL = "model"
    #: The target column already had one.
    TARGET = "target"
    #: The text itself, because it is in the target language already or has no words.
    SOURCE = "source"


class Translator:
    """Sends a request for each segment of a row, and one more for each that fails a check."""

    def __init__(
        self, step: TaskStep[Translate], context: TaskContext, second_sampling: Sampling | None
    ) -> None:
        section = step.section
        self._section = section
        self._encoder = step.encoder(context)
        self._context = context
        self._sampling = step.sampling
        self._second_sampling = second_sampling
        self._mask = PlaceholderMask(section.protect)
        self._glossary = Glossary(section.glossary)
        self._limits = CheckLimits(section.to, *section.length_ratio)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        drafts = [self._draft(row) for row in rows]
        # Prompts with an almost empty text show how much room is left for segments.
        empty_prompts = iter(
            self._encoder.encode(
                [
                    self._prompt_row(draft, "x", draft.text)
                    for draft in drafts
                    if isinstance(draft, Draft)
                ]
            )
        )
        documents = [
            self._document(draft, next(empty_prompts)) if isinstance(draft, Draft) else draft
            for draft in drafts
        ]
        prompts = iter(
            self._encoder.encode(
                [
                    self._prompt_row(document.draft, text, text)
                    for document in documents
                    if isinstance(document, Document)
                    for text in document.source_texts
                ]
            )
        )
        return [
            prepare_document(document, prompts) if isinstance(document, Document) else document
            for document in documents
        ]

    def _draft(self, row: Row) -> Draft | PreparedRow | Reject:
        section = self._section
        existing = None if section.target is None else row[section.target]
        if isinstance(existing, str) and existing.strip():
            return _without_requests(existing, TranslationSource.TARGET)
        text = row[section.column]
        if text is None or (isinstance(text, str) and not text.strip()):
            value = "null" if text is None else "empty"
            return Reject(RejectClass.EMPTY_INPUT, f"the column {section.column} is {value}")
        if not isinstance(text, str):
            return Reject(
                RejectClass.BAD_TEXT,
                f"the column {section.column} holds {type(text).__name__}, not text",
            )
        language = self._language(row)
        masked = self._mask.mask(text)
        is_in_target_language = language is not None and base_language(language) == base_language(
            section.to
        )
        if is_in_target_language or not has_words(masked.text):
            return _without_requests(text, TranslationSource.SOURCE)
        variables = {
            "from_language": None if language is None else language_name(language),
            "to_language": language_name(section.to),
        }
        return Draft({**row, **variables}, masked.text, masked.spans)

    def _language(self, row: Row) -> str | None:
        """The language code of the row's text. None if it is missing or unknown."""
        language = self._section.from_
        if isinstance(language, FromColumn):
            language = row[language.column]
        return language if isinstance(language, str) and language_name(language) else None

    def _prompt_row(self, draft: Draft, text: str, context: str) -> Row:
        """The values for a prompt that translates `text`.

        Whether the prompt has glossary terms and mentions marks depends on `context`.
        """
        return {
            **draft.row,
            self._section.column: text,
            "glossary": self._glossary.terms_in(context),
            "has_marks": bool(placeholder_counts(context)),
        }

    def _document(self, draft: Draft, empty_prompt: Sequence[int] | Reject) -> Document | Reject:
        if isinstance(empty_prompt, Reject):
            return empty_prompt
        fitting, preferred = self._segment_tokens(len(empty_prompt))
        if fitting < MIN_SEGMENT_TOKENS:
            return Reject(
                RejectClass.PROMPT_TOO_LONG,
                f"the prompt has {len(empty_prompt)} tokens without the text, which leaves "
                f"{max(fitting, 0)} of the context's {self._context.max_model_len} for the text "
                "next to the answer; raise model.engine.max_model_len or shorten the prompt",
            )
        budget = min(fitting, preferred)
        return Document(
            draft, split_segments(draft.text, budget, self._counter(budget), PLACEHOLDER)
        )

    def _segment_tokens(self, prompt_tokens: int) -> tuple[int, int]:
        """The longest segment that fits into the context, and the preferred length, in tokens."""
        room = self._context.max_model_len - prompt_tokens - _SLACK_TOKENS
        max_tokens = self._sampling.max_tokens
        if max_tokens is None:
            fitting = preferred = room // (1 + _TARGET_TOKENS_PER_SOURCE_TOKEN)
        else:
            fitting = room - max_tokens
            preferred = max(1, max_tokens // _TARGET_TOKENS_PER_SOURCE_TOKEN)
        return fitting, self._section.part_tokens or preferred

    def _counter(self, budget: int) -> Callable[[str], int]:
        """A function that counts tokens exactly for texts that may exceed the budget."""

        def count(text: str) -> int:
            # A token has at least one byte, so most segments need no tokenizer.
            num_bytes = len(text.encode())
            if num_bytes <= budget:
                return num_bytes
            escaped = self._context.tokenizer.control_tokens.escape(text)
            (tokens,) = self._context.tokenizer.encode_texts([escaped])
            return num_bytes if isinstance(tokens, Reject) else len(tokens)

        return count

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        notes, prompts = prepared.notes, prepared.prompts
        if not prompts:
            translation, origin = notes["translation"]
            return {"translation": translation, "translation_origin": origin, "attempts": 0}
        segments = [Segment(*segment) for segment in notes["segments"]]
        sources = source_texts(segments)
        answers = yield [Request(prompt, self._sampling) for prompt in prompts]
        first = []
        for source, answer in zip(sources, answers, strict=True):
            if isinstance(answer, Reject):
                return answer
            first.append(self._translated(source, answer))
        report = self._report(segments, first)
        if not report.failed or self._second_sampling is None:
            return self._result(segments, first, notes["spans"], attempts=1)
        # If only the whole text fails, every segment is tried again.
        failed = [
            index for index, translation in enumerate(first) if translation.report.failed
        ] or range(len(first))
        answers = yield [Request(prompts[index], self._second_sampling) for index in failed]
        second = list(first)
        for index, answer in zip(failed, answers, strict=True):
            if isinstance(answer, Completion):
                second[index] = self._translated(sources[index], answer)
        best = self._best(segments, first, second)
        return self._result(segments, best, notes["spans"], attempts=2)

    def _translated(self, source: str, completion: Completion) -> TranslatedSegment:
        text = one_paragraph(completion.text)
        check = check_translation(source, text, completion.is_cut, self._limits)
        return TranslatedSegment(text, check)

    def _best(
        self,
        segments: Sequence[Segment],
        first: Sequence[TranslatedSegment],
        second: Sequence[TranslatedSegment],
    ) -> list[TranslatedSegment]:
        """Take the translation of each segment that fails fewer checks.

        Ties all go to the same attempt, to the one whose whole text fails fewer checks.
        """
        pairs = list(zip(first, second, strict=True))
        choices = [
            [min(pair, key=num_failed_checks) for pair in pairs],
            [min(reversed(pair), key=num_failed_checks) for pair in pairs],
        ]
        return min(choices, key=lambda choice: len(self._report(segments, choice).failed))

    def _report(
        self, segments: Sequence[Segment], translations: Sequence[TranslatedSegment]
    ) -> CheckReport:
        source = join_segments(segments, [segment.text for segment in segments])
        reports = [translation.report for translation in translations]
        return check_document(
            source, join_translations(segments, translations), reports, self._limits
        )

    def _result(
        self,
        segments: Sequence[Segment],
        translations: Sequence[TranslatedSegment],
        spans: Sequence[str],
        attempts: int,
    ) -> Cells | Reject:
        report = self._report(segments, translations)
        translation = restore_placeholders(join_translations(segments, translations), spans)
        failed = sorted(report.failed)
        if failed and self._section.reject_failed:
            shown = " ".join(translation[:_MAX_SHOWN_CHARACTERS].split())
            message = f"failed checks: {', '.join(failed)}; translation: {shown}"
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


def _without_requests(translation: str, origin: TranslationSource) -> PreparedRow:
    """A row whose translation needs no model."""
    return PreparedRow([], {"translation": [translation, str(origin)]})
