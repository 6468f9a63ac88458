"""How a row is translated: its prompts, its requests, and what comes of their answers."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason, Request, Sampling
from tokenmill.tasks.kind import TaskStep
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
from tokenmill.tasks.translation.glossary import Glossary
from tokenmill.tasks.translation.languages import base, language_name
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

# A translation has up to twice as many tokens as its source, in a tokenizer made for English.
_TOKENS_PER_TOKEN = 2
# Where pieces join their prompt, tokens may fall otherwise than in either alone.
_SLACK_TOKENS = 8
#: A context with room for less is too small.
MIN_PIECE_TOKENS = 16
_SHOWN_CHARACTERS = 2000


class TranslationSource(StrEnum):
    """Where a row's translation is from."""

    MODEL = "model"
    #: The target column had one.
    TARGET = "target"
    #: The text itself: it is in that language already, or has no words.
    SOURCE = "source"


class Translator:
    """A request for each piece of a row, and one more for those that fail a check."""

    def __init__(
        self, step: TaskStep[Translate], context: TaskContext, second: Sampling | None
    ) -> None:
        section = step.section
        self._section = section
        self._encoder = step.encoder(context)
        self._context = context
        self._sampling = step.sampling
        self._second = second
        self._protector = PlaceholderMask(section.protect)
        self._glossary = Glossary(section.glossary)
        self._limits = CheckLimits(section.to, *section.length_ratio)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        drafts = [self._draft(row) for row in rows]
        # What a prompt costs without its text, so that the pieces fit.
        frames = iter(
            self._encoder.encode(
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
            self._encoder.encode(
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
        if fits < MIN_PIECE_TOKENS:
            return Reject(
                RejectClass.PROMPT_TOO_LONG,
                f"the prompt's {len(frame)} tokens without the text and the answer's leave "
                f"{max(fits, 0)} of the context's {self._context.max_model_len} for the text; "
                "raise model.engine.max_model_len or shorten the prompt",
            )
        budget = min(fits, wanted)
        return Document(
            draft, split_segments(draft.text, budget, self._counter(budget), PLACEHOLDER)
        )

    def _budget(self, frame_tokens: int) -> tuple[int, int]:
        """The tokens of the longest piece that fits into the context, and of what is wanted."""
        room = self._context.max_model_len - frame_tokens - _SLACK_TOKENS
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
            guarded = self._context.tokenizer.control_tokens.escape(text)
            (tokens,) = self._context.tokenizer.encode_texts([guarded])
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
        is_cut = completion.finish_reason == FinishReason.LENGTH
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
