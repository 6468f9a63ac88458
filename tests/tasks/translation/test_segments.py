"""A text as segments: any text comes back whole, and its placeholders are never cut."""

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
def test_untranslated_segments_give_the_text_back(text: str, budget: int, count: type) -> None:
    """Whatever the text, the budget and the counting are, nothing is lost and nothing moves."""
    segments = split_segments(text, budget, count, MARK)
    assert join_segments(segments, [segment.text for segment in segments]) == text


@given(
    st.lists(st.sampled_from(["ab", " ", ". ", "\n", "⟦12⟧", "⟦"])).map("".join), st.integers(1, 4)
)
def test_placeholders_are_never_cut(text: str, budget: int) -> None:
    """All marks of the text are in its segments, whole, even if they exceed the budget."""
    segments = split_segments(text, budget, len, MARK)
    marks = [mark for segment in segments for mark in MARK.findall(segment.text)]
    assert marks == MARK.findall(text)


def test_paragraphs_that_fit_are_segments() -> None:
    """Blank lines, lines of mere indentation and the outer whitespace belong to no segment."""
    text = "\n  One.\n  Still one. \n \t\n\tTwo\n\n\n\nThree\n"
    assert split_segments(text, 100, len, MARK) == [
        Segment("\n  ", "One.\n  Still one."),
        Segment(" \n \t\n\t", "Two"),
        Segment("\n\n\n\n", "Three"),
        Segment("\n", ""),
    ]


def test_a_translation_with_blank_lines_becomes_one_paragraph() -> None:
    """So the whole text keeps its paragraphs, whatever a model writes."""
    assert one_paragraph(" a\n\n  b\n c\n") == "a\nb\n c"
