"""Segments: joining them restores any text, and splitting never cuts a mark."""

import re

from hypothesis import example, given
from hypothesis import strategies as st
from tokenmill.tasks.translation.segments import (
    Segment,
    join_segments,
    one_paragraph,
    split_segments,
)

MARK = re.compile(r"⟦\d+⟧")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.sampled_from(" \n\t\r\x85\u2028\u2029\u3000ab.!?。」-*1)⟦⟧é\U0001f468\u200d")
)


def count_words(text: str) -> int:
    return len(text.split())


@given(ANY_TEXT, st.integers(0, 12), st.sampled_from([len, count_words]))
@example("", 1, len)
@example(" \n\n ", 1, len)
@example("\n\n a.  b\r\n\r\nc \n", 1, len)
def test_joined_segments_are_the_text(text: str, budget: int, count: type) -> None:
    """This holds for any text, any budget and any way to count tokens."""
    segments = split_segments(text, budget, count, MARK)
    assert join_segments(segments, [segment.text for segment in segments]) == text


@given(
    st.lists(st.sampled_from(["ab", " ", ". ", "\n", "⟦12⟧", "⟦"])).map("".join), st.integers(1, 4)
)
def test_marks_are_never_cut(text: str, budget: int) -> None:
    """Every mark is whole in one segment, even if it exceeds the budget."""
    segments = split_segments(text, budget, len, MARK)
    marks = [mark for segment in segments for mark in MARK.findall(segment.text)]
    assert marks == MARK.findall(text)


def test_each_paragraph_that_fits_is_a_segment() -> None:
    """Blank lines, lines of whitespace and the outer whitespace are not part of a segment."""
    text = "\n  One.\n  Still one. \n \t\n\tTwo\n\n\n\nThree\n"
    assert split_segments(text, 100, len, MARK) == [
        Segment("\n  ", "One.\n  Still one."),
        Segment(" \n \t\n\t", "Two"),
        Segment("\n\n\n\n", "Three"),
        Segment("\n", ""),
    ]


def test_a_translation_with_blank_lines_becomes_one_paragraph() -> None:
    """So the document keeps its number of paragraphs whatever the model writes."""
    assert one_paragraph(" a\n\n  b\n c\n") == "a\nb\n c"
