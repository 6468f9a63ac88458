"""Texts behind others: the tokens that they add, whatever the tokenizer puts before a text."""

from collections.abc import Sequence

import pytest
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import encode_after


class Characters(FakeTokenizer):
    """A token a character, a space before every text, and one token for `ff`."""

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [[ord(each) for each in " " + text.replace("ff", "ﬀ")] for text in texts]


@pytest.mark.parametrize(
    ("before", "text", "tokens"),
    [
        ("a:", "yes", "yes"),
        ("a:", " yes", " yes"),
        ("a:", "off", "oﬀ"),
        ("of", "f", " f"),
        ("", "yes", "yes"),
    ],
    ids=["a word", "behind a space", "own merge", "a token in common", "behind nothing"],
)
def test_a_text_behind_another_is_the_tokens_that_it_adds(
    before: str, text: str, tokens: str
) -> None:
    """No space comes between the two; where they share a token the text is taken alone."""
    (found,) = encode_after(Characters(), before, [text])
    assert "".join(map(chr, found)) == tokens
