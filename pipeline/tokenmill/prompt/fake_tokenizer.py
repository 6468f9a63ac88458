"""The tokenizer of the fake model: three bytes of UTF-8 per token."""

from collections.abc import Sequence

import numpy as np

from tokenmill.prompt.control_tokens import ControlTokens
from tokenmill.prompt.tokenizer import Chat, Pair, TextSpan
from tokenmill.reject import Reject

# About as many bytes as a token of a real vocabulary, and the id still fits into an int32.
BYTES_PER_TOKEN = 3
# Pads the last token: a byte that never occurs in UTF-8, unlike zero.
_FILLER = b"\xff"
# Of the bytes in a token, big-endian.
_PLACE_VALUES = 256 ** np.arange(BYTES_PER_TOKEN - 1, -1, -1, np.int64)


class FakeTokenizer:
    """Bytes as tokens: exact, reversible and fast."""

    control_tokens = ControlTokens(())

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return [
            text if isinstance(text, Reject) else encode_text(text)
            for text in self.render_chats(chats)
        ]

    def encode_chats_with_image(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """The image placeholder is plain text in front of the last turn."""
        return self.encode_chats(
            [[*chat[:-1], (role, f"<|image|>{content}")] for *chat, (role, content) in chats]
        )

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return [encode_text(text) for text in texts]

    def token_spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        return [_token_spans(text) for text in texts]

    def encode_answered_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return self.encode_chats(chats)

    def encode_spans(self, texts: Sequence[str]) -> list[TextSpan]:
        """Spans of a tokenizer that has no token for the beginning of a text."""
        return [
            TextSpan(
                encode_text(text), 1, len(encode_text(text)), len(text.encode()[BYTES_PER_TOKEN:])
            )
            for text in texts
        ]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        encoded = [(encode_text(first), encode_text(second)) for first, second in pairs]
        return [Pair([*first, *second], len(first)) for first, second in encoded]

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        return ["".join(f"<|{role}|>\n{content}\n" for role, content in chat) for chat in chats]

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [encode_text(text) for text in texts]

    @property
    def end_of_turn(self) -> int:
        return int.from_bytes(_FILLER * BYTES_PER_TOKEN)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode_tokens(token_ids).decode(errors="replace")

    @property
    def special_tokens(self) -> frozenset[str]:
        return frozenset()


def decode_tokens(token_ids: Sequence[int]) -> bytes:
    """The bytes that the tokens encode, without padding."""
    return b"".join(token.to_bytes(BYTES_PER_TOKEN) for token in token_ids).rstrip(_FILLER)


def encode_text(text: str) -> list[int]:
    """The tokens of a text, three bytes each."""
    data = text.encode()
    data += _FILLER * (-len(data) % BYTES_PER_TOKEN)
    numbers = np.frombuffer(data, np.uint8).reshape(-1, BYTES_PER_TOKEN) @ _PLACE_VALUES
    tokens: list[int] = numbers.tolist()
    return tokens


def _token_spans(text: str) -> list[tuple[int, int]]:
    """The characters of each token; a token with part of a character spans all of it."""
    # For each byte, the index of its character.
    indices = [index for index, character in enumerate(text) for _ in character.encode()]
    return [
        (indices[start], indices[min(start + BYTES_PER_TOKEN, len(indices)) - 1] + 1)
        for start in range(0, len(indices), BYTES_PER_TOKEN)
    ]
