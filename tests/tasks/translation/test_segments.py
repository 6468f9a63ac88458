"""A text in pieces: any text comes back whole, and pieces fit as far as they can be cut."""

import re

import pytest
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
def test_untranslated_pieces_give_the_text_back(text: str, budget: int, count: type) -> None:
    """Whatever the text, the budget and the counting are, nothing is lost and nothing moves."""
    pieces = split_segments(text, budget, count)
    assert join_segments(pieces, [piece.text for piece in pieces]) == text


@given(ANY_TEXT, st.integers(1, 12))
def test_a_piece_fits_its_budget_and_has_no_outer_whitespace(text: str, budget: int) -> None:
    """Down to single characters everything can be cut; what is between pieces is whitespace."""
    for piece in split_segments(text, budget, len):
        assert len(piece.text) <= budget
        assert piece.text == piece.text.strip()
        assert not piece.before.strip()


@given(
    st.lists(st.sampled_from(["ab", " ", ". ", "\n", "⟦12⟧", "⟦"])).map("".join), st.integers(1, 4)
)
def test_what_is_whole_is_never_cut(text: str, budget: int) -> None:
    """All marks of the text are in its pieces, whole, even where they exceed the budget."""
    pieces = split_segments(text, budget, len, whole=MARK)
    assert [mark for piece in pieces for mark in MARK.findall(piece.text)] == MARK.findall(text)
    assert join_segments(pieces, [piece.text for piece in pieces]) == text


def test_paragraphs_that_fit_stay_whole() -> None:
    """Blank lines, lines of mere indentation and the outer whitespace belong to no piece."""
    text = "\n  One.\n  Still one. \n \t\n\tTwo\n\n\n\nThree\n"
    assert split_segments(text, 100, len) == [
        Segment("\n  ", "One.\n  Still one."),
        Segment(" \n \t\n\t", "Two"),
        Segment("\n\n\n\n", "Three"),
        Segment("\n", ""),
    ]


@pytest.mark.parametrize(
    ("text", "budget", "pieces"),
    [
        ("One two. Three four.", 12, ["One two.", "Three four."]),
        ('He said "go!" And so on', 16, ['He said "go!"', "And so on"]),
        ("一二。三四。", 4, ["一二。", "三四。"]),
        ("- one a\n- two b", 9, ["- one a", "- two b"]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("abcdefgh", 4, ["abcd", "efgh"]),
    ],
    ids=["sentences", "quotes", "no spaces", "items", "words", "characters"],
)
def test_a_long_paragraph_is_cut_where_it_hurts_least(
    text: str, budget: int, pieces: list[str]
) -> None:
    """At the end of a sentence or item, else between words, at last inside of one."""
    assert [piece.text for piece in split_segments(text, budget, len)] == pieces


@pytest.mark.parametrize(
    "text",
    [" " * 200_000, "\n" * 200_000, "a" * 100_000, "a.\n" * 50_000, f"a{' ' * 1_000_000}b"],
)
def test_a_hostile_text_is_split_in_time(text: str) -> None:
    """Long runs of one character cost no more than their length; otherwise this hangs."""
    pieces = split_segments(text, 1000, len)
    assert join_segments(pieces, [piece.text for piece in pieces]) == text


def test_a_translation_with_blank_lines_is_still_one_paragraph() -> None:
    """So that the whole keeps its paragraphs, whatever a model writes."""
    assert one_paragraph(" a\n\n  b\n c\n") == "a\nb\n c"
