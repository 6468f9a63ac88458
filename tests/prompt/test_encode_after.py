"""Texts that follow others: the tokens they add, whatever the tokenizer puts before a text."""

from collections.abc import Sequence

import pytest
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import encode_after


class Characters(FakeTokenizer):
    """One token per character, a space before every text, and one token for `ff`."""

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [[ord(character) for character in " " + text.replace("ff", "ﬀ")] for text in texts]


@pytest.mark.parametrize(
    ("before", "text", "tokens"),
    [
        ("a:", "yes", "yes"),
        ("a:", " yes", " yes"),
        ("a:", "off", "oﬀ"),
        ("of", "f", " f"),
        ("", "yes", "yes"),
    ],
    ids=["word", "space and word", "merge within the text", "merge across", "after nothing"],
)
def test_a_text_after_another_is_the_tokens_that_it_adds(
    before: str, text: str, tokens: str
) -> None:
    """No space is put between the two; if they share a token, the text is encoded alone."""
    (token_ids,) = encode_after(Characters(), before, [text])
    assert "".join(map(chr, token_ids)) == tokens
