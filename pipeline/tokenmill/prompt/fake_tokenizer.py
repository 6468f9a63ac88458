"""The tokenizer of the fake model: three bytes of UTF-8 a token."""

from collections.abc import Sequence

import numpy as np

from tokenmill.prompt.control_tokens import ControlTokens
from tokenmill.prompt.tokenizer import Chat, Pair, TextSpan
from tokenmill.reject import Reject

# A token is three bytes of UTF-8: near to real vocabularies, and its id fits into an int32.
BYTES_PER_TOKEN = 3
# Fills the last token: a byte that UTF-8 never has, unlike zero.
_FILLER = b"\xff"
# Big-endian.
_PLACES = 256 ** np.arange(BYTES_PER_TOKEN - 1, -1, -1, np.int64)


class FakeTokenizer:
    """Bytes as tokens: exact, reversible, and quick."""

    controls = ControlTokens(())

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return [
            text if isinstance(text, Reject) else encode_text(text)
            for text in self.render_chats(chats)
        ]

    def encode_chats_with_image(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """The image's place is a token, as of a model that has few."""
        return self.encode_chats(
            [[*chat[:-1], (role, f"<|image|>{content}")] for *chat, (role, content) in chats]
        )

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return [encode_text(text) for text in texts]

    def spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        return [_spans(text) for text in texts]

    def encode_answered_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return self.encode_chats(chats)

    def encode_spans(self, texts: Sequence[str]) -> list[TextSpan]:
        """As a tokenizer without a token for the beginning of a text."""
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
    """The bytes that the tokens stand for, without padding."""
    return b"".join(token.to_bytes(BYTES_PER_TOKEN) for token in token_ids).rstrip(_FILLER)


def encode_text(text: str) -> list[int]:
    """The tokens of a text, three bytes each."""
    data = text.encode()
    data += _FILLER * (-len(data) % BYTES_PER_TOKEN)
    numbers = np.frombuffer(data, np.uint8).reshape(-1, BYTES_PER_TOKEN) @ _PLACES
    tokens: list[int] = numbers.tolist()
    return tokens


def _spans(text: str) -> list[tuple[int, int]]:
    """A token that holds a part of a character spans it."""
    # Which character each byte is of.
    owners = [at for at, character in enumerate(text) for _ in character.encode()]
    return [
        (owners[start], owners[min(start + BYTES_PER_TOKEN, len(owners)) - 1] + 1)
        for start in range(0, len(owners), BYTES_PER_TOKEN)
    ]
