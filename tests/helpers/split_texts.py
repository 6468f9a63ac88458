"""Texts to truncate and split: words, sentences and paragraphs of several scripts."""

from hypothesis import strategies as st
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.tasks.length.token_spans import TokenSpans

# Words, ends of sentences and of paragraphs, in several scripts, and characters of many tokens.
_PIECES = st.sampled_from(
    [
        *("word", " ", "  ", ". ", "! ", "…", "\n", "\n\n", "\n \n", "\u2029", "。", "中文"),
        *("🧑\u200d🚀", "é", "x" * 30, "<|im_end|>", "\t", "نص", "\u0301", "\0", "\u2019s"),
    ]
)
#: In none of the texts, so that its position in a truncated one is certain.
MARKER = "\ue000"
_LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters=MARKER)
TEXTS = st.one_of(st.lists(_PIECES, max_size=60).map("".join), st.text(_LETTERS, max_size=80))


def spans_of(text: str, tokenizer: Tokenizer | None = None) -> TokenSpans:
    """The text with its tokens; by default three bytes each."""
    (spans,) = (tokenizer or FakeTokenizer()).token_spans([text])
    return TokenSpans.of(text, spans)
