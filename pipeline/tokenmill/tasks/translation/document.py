"""A text to translate: its segments, their prompts and the joined translation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenmill.reject import Reject
from tokenmill.tasks.task import PreparedRow, Row
from tokenmill.tasks.translation.checks import CheckReport
from tokenmill.tasks.translation.placeholders import without_placeholders
from tokenmill.tasks.translation.segments import Segment, join_segments


@dataclass(frozen=True, slots=True)
class Draft:
    """A row to translate: the values for its prompts, its masked text and the masked spans."""

    row: Row
    text: str
    spans: Sequence[str]


@dataclass(frozen=True, slots=True)
class Document:
    """A draft split into segments."""

    draft: Draft
    segments: Sequence[Segment]

    @property
    def source_texts(self) -> list[str]:
        """The segments to send to the model, which are those with words."""
        return source_texts(self.segments)


@dataclass(frozen=True, slots=True)
class TranslatedSegment:
    """The translation of a segment, and the report of its checks."""

    text: str
    report: CheckReport


def prepare_document(
    document: Document, prompts: Iterator[Sequence[int] | Reject]
) -> PreparedRow | Reject:
    """The row with one prompt for each segment that has words, or the first reject among them."""
    encoded = [next(prompts) for _ in document.source_texts]
    for prompt in encoded:
        if isinstance(prompt, Reject):
            return prompt
    segments = [[segment.before, segment.text] for segment in document.segments]
    notes = {"segments": segments, "spans": list(document.draft.spans)}
    return PreparedRow([prompt for prompt in encoded if not isinstance(prompt, Reject)], notes)


def join_translations(
    segments: Sequence[Segment], translations: Sequence[TranslatedSegment]
) -> str:
    """The translation of the whole text, with its marks. Segments without words stay as they are.

    `translations` has one item for each segment with words, in order.
    """
    texts = iter(translation.text for translation in translations)
    return join_segments(
        segments,
        [next(texts) if has_words(segment.text) else segment.text for segment in segments],
    )


def source_texts(segments: Sequence[Segment]) -> list[str]:
    """The texts of the segments that have words."""
    return [segment.text for segment in segments if has_words(segment.text)]


def num_failed_checks(translation: TranslatedSegment) -> int:
    """How many checks the translation fails."""
    return len(translation.report.failed)


def has_words(text: str) -> bool:
    """Whether the text has letters outside its marks, so that there is something to translate."""
    return any(character.isalpha() for character in without_placeholders(text))
