"""Splitting texts loses nothing, fits the budget and cuts at the best boundaries."""

import itertools
import re
from typing import Any

import pytest
from helpers.split_texts import TEXTS, spans_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import local_path
from tokenmill.prompt.tokenizer import ModelTokenizer, Tokenizer
from tokenmill.tasks.length.splitter import fill_chunks, split_evenly
from tokenmill.tasks.length.token_spans import TokenSpans

BYS = st.sampled_from(["paragraphs", "sentences", "tokens"])


def chunks(text: str, by: Any, num_tokens: int, overlap: int = 0) -> list[str]:
    ranges = fill_chunks(spans_of(text), by, num_tokens, overlap)
    return [text[start:end] for start, end in ranges]


def parts(text: str, budget: int) -> list[str]:
    """Even parts, with one token per character."""
    return [text[start:end] for start, end in split_evenly(text, budget, len)]


def check_chunks(text: TokenSpans, by: Any, num_tokens: int, overlap: int) -> None:
    """Chunks cover the text within the budget, and overlap by no more than allowed."""
    ranges = fill_chunks(text, by, num_tokens, overlap)
    assert ranges[0][0] == 0 and ranges[-1][1] == len(text.text)
    for start, end in ranges:
        is_character = end - start == 1
        assert is_character or text.count(start, end) <= num_tokens
        assert start < end or not text.text
    for (_, before), (start, end) in itertools.pairwise(ranges):
        assert start <= before < end
        assert text.count(start, before) <= overlap


@settings(max_examples=300, deadline=None)
@given(TEXTS, BYS, st.integers(1, 40), st.integers(0, 20))
@example("", "paragraphs", 8, 0)
@example("🧑‍🚀" * 9, "tokens", 1, 0)
def test_chunks_cover_the_text_within_the_budget(
    text: str, by: str, budget: int, overlap: int
) -> None:
    """Every character is in a chunk, no chunk exceeds the budget, and no overlap its limit."""
    check_chunks(spans_of(text), by, budget, min(overlap, budget // 2))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_chunks_without_overlap_are_the_text(text: str, budget: int) -> None:
    """Concatenated, they equal the text."""
    for by in ("paragraphs", "sentences", "tokens"):
        assert "".join(chunks(text, by, budget)) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc é.", min_size=1, max_size=60), min_size=1, max_size=12))
def test_paragraphs_that_fit_are_not_divided(paragraphs: list[str]) -> None:
    """A chunk ends inside a paragraph only if its last boundary is in the chunk's first quarter.

    The fake tokenizer takes three bytes a token: 40 tokens hold each of these paragraphs twice.
    """
    text = "\n\n".join(paragraphs)
    spans = spans_of(text)
    ends = {match.end() for match in re.finditer(r"\n\n\s*", text)} | {len(text)}
    for start, end in fill_chunks(spans, "paragraphs", 40, 0):
        inside = [boundary for boundary in ends if start < boundary < end]
        assert end in ends or all(spans.count(start, boundary) <= 11 for boundary in inside)


def test_a_chunk_ends_at_the_best_boundary() -> None:
    """Between paragraphs, else sentences, else words, else tokens."""
    text = "One is here. Two is here.\n\nThree is here. Four is here."
    assert chunks(text, "paragraphs", 12) == [text[:27], text[27:]]
    assert chunks(text, "sentences", 16) == [text[:42], text[42:]]
    assert chunks(text, "paragraphs", 7) == [
        "One is here. ",
        "Two is here.\n\n",
        "Three is here. ",
        "Four is here.",
    ]
    assert chunks("seven words that are one long sentence", "sentences", 5) == [
        "seven words ",
        "that are one ",
        "long sentence",
    ]
    assert chunks("abcdefghijkl", "sentences", 2) == ["abcdef", "ghijkl"]
    assert chunks("你好世界。再见世界。", "sentences", 8) == ["你好世界。", "再见世界。"]
    assert chunks("a b c d e f", "tokens", 2) == ["a b c ", "d e f"]


def test_an_overlap_begins_at_a_sentence_if_possible() -> None:
    """Whole sentences within the limit are repeated, else whole words, else tokens."""
    text = "Aa bb cc. Dd ee ff. Gg hh ii. Jj kk ll."
    assert chunks(text, "sentences", 10, 4) == [
        "Aa bb cc. Dd ee ff. Gg hh ii. ",
        "Gg hh ii. Jj kk ll.",
    ]
    assert chunks("aaa bbb ccc ddd eee fff", "sentences", 4, 2)[:2] == ["aaa bbb ccc ", "ccc ddd "]
    assert chunks("abcdefghijkl", "tokens", 2, 1) == ["abcdef", "defghi", "ghijkl"]


def test_a_heading_is_in_the_chunk_of_its_paragraph() -> None:
    """A boundary in a chunk's first quarter is not used if a sentence ends later."""
    text = "Title\n\n" + "A sentence of some words. " * 8
    first, *_ = chunks(text, "paragraphs", 40)
    assert first.startswith("Title\n\nA sentence") and first.endswith("words. ")


def test_chunks_may_end_at_line_breaks_and_even_parts_may_not() -> None:
    """A line break may be within a sentence, so a text that is joined again is not cut there."""
    text = "one two three\nfour five. Six seven"
    assert chunks(text, "sentences", 6)[0] == "one two three\n"
    assert parts(text, 26) == ["one two three\nfour five.", "Six seven"]


@given(TEXTS, st.integers(1, 12))
def test_even_parts_fit_the_budget_and_leave_out_whitespace_only(text: str, budget: int) -> None:
    """They are in order, within the budget, and what is between them is whitespace."""
    end = 0
    for start, stop in split_evenly(text, budget, len):
        assert not text[end:start].strip()
        assert text[start:stop] == text[start:stop].strip()
        assert 0 < stop - start <= budget
        end = stop
    assert not text[end:].strip()


@pytest.mark.parametrize(
    ("text", "budget", "expected"),
    [
        ("One two. Three four.", 12, ["One two.", "Three four."]),
        ('He said "go!" And so on', 16, ['He said "go!"', "And so on"]),
        ("一二。三四。", 4, ["一二。", "三四。"]),
        ("यह एक है। वह दो है।", 12, ["यह एक है।", "वह दो है।"]),
        ("- one a\n- two b", 9, ["- one a", "- two b"]),
        ("one two three four", 9, ["one two", "three", "four"]),
        ("abcdefgh", 4, ["abcd", "efgh"]),
        ("One.\n\nTwo.\r\n\r\nThree.", 100, ["One.", "Two.", "Three."]),
    ],
    ids=["sentences", "quotes", "no spaces", "danda", "items", "words", "characters", "paragraphs"],
)
def test_a_long_paragraph_is_halved_at_the_best_boundary(
    text: str, budget: int, expected: list[str]
) -> None:
    """At the end of a sentence or list item, else between words, else inside a word."""
    assert parts(text, budget) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("." * 200_000, "\n" * 200_000, " " * 200_000, ".)" * 100_000, "\u061f" * 200_000),
        *("a" * 100_000, "a.\n" * 50_000, "a \n" * 50_000, f"a{' ' * 1_000_000}b"),
    ],
    ids=lambda text: ascii(text[:3]),
)
def test_a_monotonous_text_takes_linear_time(text: str) -> None:
    """With a quadratic pattern this would take minutes."""
    assert "".join(chunks(text, "paragraphs", 5_000)) == text
    assert "".join("".join(parts(text, 1000)).split()) == "".join(text.split())


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    """The tokenizer of the bundled model."""
    folder = local_path(ModelSource(source="bundled:smollm2-135m"))
    if folder is None:
        pytest.skip("fetch it: tokenmill models fetch bundled:smollm2-135m")
    return ModelTokenizer(folder)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, budget=st.integers(1, 40), overlap=st.integers(0, 20))
def test_a_real_tokenizer_splits_the_same_way(
    smollm: Tokenizer, text: str, budget: int, overlap: int
) -> None:
    """The properties hold if a token is a part of a character, or a word with its space."""
    spans = spans_of(text, smollm)
    for by in ("paragraphs", "sentences", "tokens"):
        check_chunks(spans, by, budget, min(overlap, budget // 2))
