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
    """A row that is to be translated: what its prompts are rendered with, and its masked text."""

    row: Row
    text: str
    spans: Sequence[str]


@dataclass(frozen=True, slots=True)
class Document:
    """A draft in pieces. A piece without words is not asked for."""

    draft: Draft
    pieces: Sequence[Segment]

    @property
    def asked(self) -> list[str]:
        return [piece.text for piece in self.pieces if has_words(piece.text)]


@dataclass(frozen=True, slots=True)
class TranslatedSegment:
    """A piece's translation, and what the checks say of it."""

    text: str
    report: CheckReport


def prepared_document(
    document: Document, prompts: Iterator[Sequence[int] | Reject]
) -> PreparedRow | Reject:
    """The row with the prompts of its segments, or the first reject among them."""
    encoded = [next(prompts) for _ in document.asked]
    for prompt in encoded:
        if isinstance(prompt, Reject):
            return prompt
    pieces = [[piece.before, piece.text] for piece in document.pieces]
    notes = {"pieces": pieces, "spans": list(document.draft.spans)}
    return PreparedRow([prompt for prompt in encoded if not isinstance(prompt, Reject)], notes)


def joined_translation(pieces: Sequence[Segment], parts: Sequence[TranslatedSegment]) -> str:
    """The whole translation, still with its marks; what was not asked for is its own."""
    texts = iter(part.text for part in parts)
    return join_segments(
        pieces, [next(texts) if has_words(piece.text) else piece.text for piece in pieces]
    )


def num_failed_checks(part: TranslatedSegment) -> int:
    """How many checks the translation fails."""
    return len(part.report.failed)


def has_words(text: str) -> bool:
    """Whether there is anything to translate, placeholders aside."""
    return any(character.isalpha() for character in without_placeholders(text))
