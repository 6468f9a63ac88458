"""Encode texts and chats as token ids, with the model's own tokenizer and chat template."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jinja2

from tokenmill.errors import UserError
from tokenmill.prompt.control_tokens import ControlTokens
from tokenmill.reject import Reject, RejectClass

Chat = Sequence[tuple[str, str]]
Item = TypeVar("Item", str, tuple[str, str])
Encoded = TypeVar("Encoded")
# The job's key for what transformers' messages call trust_remote_code=True.
_TRUST = "model.engine.trust_remote_code: true"
# A placeholder answer, which shows what the chat template writes after an answer.
_ANSWER = "tokenmill-answer"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A text's token ids, and the range of them that a language model predicts.

    `token_ids[start:end]` are the text's own tokens that have a prediction, without special tokens;
    `num_bytes` is the UTF-8 length of their text. The very first token has no prediction, so
    `start` is at least 1 unless the range is empty.
    """

    token_ids: Sequence[int]
    start: int
    end: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts as one prompt.

    The second text's token types begin at `second_start`; None if the model has no token types.
    """

    token_ids: Sequence[int]
    second_start: int | None


class Tokenizer(Protocol):
    """What rendering needs of a model. Every method returns one result per input, in order.

    Control tokens in a text are encoded as such, except where `control_tokens` has escaped them.
    """

    @property
    def control_tokens(self) -> ControlTokens:
        """The model's control tokens."""

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """Token ids of chats of (role, content), ready for the assistant's turn."""

    def encode_chats_with_image(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """As `encode_chats`, with an image placeholder before the last turn's text."""

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        """Token ids of plain texts, with the special tokens that the model puts around a text."""

    def token_spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        """The start and end, in characters, of each token of plain texts.

        No special tokens are added, and the name of a special token in a text is plain text.
        Raises `UserError` if the model's tokenizer has no offsets.
        """

    def encode_answered_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """Token ids of chats that end with the assistant's turn."""

    def encode_spans(self, texts: Sequence[str]) -> list[TextSpan]:
        """As `encode_texts`, with the range of tokens that a language model predicts."""

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Pairs of texts, as a cross-encoder reads them.

        Raises `UserError` if the model's tokenizer does not separate the two.
        """

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        """The chats as texts, ready for the assistant's turn."""

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Token ids of texts that follow others: without special tokens around them."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that are left out of an answer's text."""

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an answer; None if the model has none."""


def encode_after(tokenizer: Tokenizer, before: str, texts: Sequence[str]) -> list[Sequence[int]]:
    """Token ids of each text as it follows `before`.

    Some tokenizers put a space before a text that is encoded alone. If the last token of `before`
    merges with the text, the result is the text encoded alone.
    """
    head, *joined = tokenizer.encode_continuations([before, *(before + text for text in texts)])
    alone = tokenizer.encode_continuations(texts)
    return [
        whole[len(head) :] if whole[: len(head)] == head else text_ids
        for whole, text_ids in zip(joined, alone, strict=True)
    ]


class ModelTokenizer:
    """A Hugging Face tokenizer, loaded as vLLM loads it, so that the token ids are the same."""

    def __init__(self, folder: Path, *, trusts_code: bool = False) -> None:
        """Load the tokenizer of a model folder. Raises `UserError` if it cannot be loaded.

        `trusts_code` allows Python files in the folder to run.
        """
        # The import takes seconds, and the driver never needs it.
        from transformers import AutoTokenizer  # noqa: PLC0415

        self._folder = folder
        try:
            # Without this argument, transformers asks on the terminal whether code may run.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trusts_code
            )
        except ValueError as error:
            reason = " ".join(str(error).replace("trust_remote_code=True", _TRUST).split())
            raise UserError(f"{folder}: the tokenizer cannot be loaded: {reason}") from error
        legacy = folder / "chat_template.json"
        if self._tokenizer.chat_template is None and legacy.is_file():
            # Older multimodal models have their chat template in this file, for the processor.
            self._tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
        self.control_tokens = ControlTokens(self.special_tokens, self._normalizer())

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return self._encode_all(self.render_chats(chats))

    def encode_chats_with_image(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        self._require_template()
        return self._encode_all(
            [self._render_messages(_with_image(chat), add_generation_prompt=True) for chat in chats]
        )

    def encode_answered_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        return self._encode_all(self._render(chats, add_generation_prompt=False))

    def _encode_all(self, rendered: Sequence[str | Reject]) -> list[Sequence[int] | Reject]:
        texts = [text for text in rendered if isinstance(text, str)]
        encoded = iter(self.encode_continuations(texts))
        return [text if isinstance(text, Reject) else next(encoded) for text in rendered]

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        return self._render(chats, add_generation_prompt=True)

    def _render(self, chats: Sequence[Chat], *, add_generation_prompt: bool) -> list[str | Reject]:
        self._require_template()
        return [self._apply_template(chat, add_generation_prompt) for chat in chats]

    def _require_template(self) -> None:
        if self._tokenizer.chat_template is None:
            raise UserError(
                f"{self._folder}: the model has no chat template; use prompt.text instead"
            )

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        # The chat template has already written the special tokens.
        return self._encode(texts, add_special_tokens=False)

    @property
    def end_of_turn(self) -> int | None:
        """The first special token that the chat template writes after an answer.

        Without a chat template, or without such a token in it, the token that ends a text.
        """
        if self._tokenizer.chat_template is not None:
            chat = self._apply_template(
                [("user", "x"), ("assistant", _ANSWER)], add_generation_prompt=True
            )
            tail = chat.rpartition(_ANSWER)[2] if isinstance(chat, str) else ""
            added = self._tokenizer.added_tokens_decoder
            (tokens,) = self.encode_continuations([tail])
            for token in tokens:
                if token in added and added[token].special:
                    return token
        end_of_text: int | None = self._tokenizer.eos_token_id
        return end_of_text

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return list(self._encode(texts, add_special_tokens=True))

    def token_spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            raise UserError(
                f"{self._folder}: length cannot cut texts for this model: its tokenizer does not "
                "report the positions of tokens in a text"
            )
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        return list(encoded["offset_mapping"])

    def encode_spans(self, texts: Sequence[str]) -> list[TextSpan]:
        if not texts:
            return []
        return self._encode_in_batches(texts, self._encode_spans)

    def _encode_spans(self, texts: Sequence[str], split: bool) -> list[TextSpan]:
        plain = [self.control_tokens.unescape(text) for text in texts]
        encoded = self._tokenizer(
            plain,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            split_special_tokens=split,
        )
        columns = ("input_ids", "offset_mapping", "special_tokens_mask")
        rows = zip(plain, *(encoded[name] for name in columns), strict=True)
        return [text_span(*row) for row in rows]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        count = self._tokenizer.num_special_tokens_to_add
        if count(pair=True) <= count(pair=False):
            raise UserError(
                f"{self._folder}: this is not a cross-encoder: its tokenizer puts nothing between "
                "two texts; use kind: reward with both texts in the prompt"
            )
        if not pairs:
            return []
        return self._encode_in_batches(pairs, self._encode_pairs)

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]], split: bool) -> list[Pair]:
        unescape = self.control_tokens.unescape
        firsts, seconds = zip(*((unescape(one), unescape(two)) for one, two in pairs), strict=True)
        encoded = self._tokenizer(list(firsts), list(seconds), split_special_tokens=split)
        types = encoded.get("token_type_ids") or [None] * len(pairs)
        return [
            Pair(ids, None if token_types is None else second_start(token_types))
            for ids, token_types in zip(encoded["input_ids"], types, strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    @property
    def special_tokens(self) -> frozenset[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        marked = {str(token) for token in added if token.special}
        return frozenset(marked.union(self._tokenizer.all_special_tokens))

    def _apply_template(self, chat: Chat, add_generation_prompt: bool) -> str | Reject:
        messages = [{"role": role, "content": content} for role, content in chat]
        return self._render_messages(messages, add_generation_prompt)

    def _render_messages(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> str | Reject:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            return Reject(RejectClass.CHAT_TEMPLATE_ERROR, " ".join(str(error).split()))
        return str(text)

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Sequence[int]]:
        def encode(texts: Sequence[str], split: bool) -> list[Sequence[int]]:
            if split:
                return [self._encode_escaped(text, add_special_tokens) for text in texts]
            return list(
                self._tokenizer(list(texts), add_special_tokens=add_special_tokens).input_ids
            )

        return self._encode_in_batches(texts, encode)

    def _encode_escaped(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """Encode a text with escaped control tokens, split at those that are intended.

        Tokenizers split at control tokens as well, so the ids are those of the whole text.
        """
        parts = list(self.control_tokens.split(text))
        if not any(is_control for _, is_control in parts):
            whole = self.control_tokens.unescape(text)
            return self._ids(whole, split=True, add_special_tokens=add_special_tokens)
        ids = [
            token
            for part, is_control in parts
            for token in self._ids(part, split=not is_control, add_special_tokens=False)
        ]
        if not add_special_tokens:
            return ids
        around = self._tokenizer("x", return_special_tokens_mask=True)
        start = around.special_tokens_mask.index(0)
        end = len(around.input_ids) - around.special_tokens_mask[::-1].index(0)
        return [*around.input_ids[:start], *ids, *around.input_ids[end:]]

    def _ids(self, text: str, *, split: bool, add_special_tokens: bool) -> list[int]:
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=split
        )
        return list(encoded.input_ids)

    def _encode_in_batches(
        self, items: Sequence[Item], encode: Callable[[Sequence[Item], bool], list[Encoded]]
    ) -> list[Encoded]:
        """Encode all items in one batch, except those with escaped tokens, which form another."""
        is_escaped = [self._is_escaped(item) for item in items]
        results: dict[int, Encoded] = {}
        for split in (False, True):
            indices = [index for index in range(len(items)) if is_escaped[index] == split]
            if indices:
                batch = encode([items[index] for index in indices], split)
                results |= dict(zip(indices, batch, strict=True))
        return [results[index] for index in range(len(items))]

    def _is_escaped(self, item: str | tuple[str, str]) -> bool:
        return any(map(self.control_tokens.is_escaped, [item] if isinstance(item, str) else item))

    def _normalizer(self) -> Callable[[str], str] | None:
        """What the tokenizer applies to a text before it searches for control tokens."""
        added = self._tokenizer.added_tokens_decoder.values()
        if not (self._tokenizer.is_fast and any(t.special and t.normalized for t in added)):
            return None
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        return None if normalizer is None else normalizer.normalize_str


def _with_image(chat: Chat) -> list[dict[str, Any]]:
    """Messages whose content is a list of parts, as chat templates of vision models expect them."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}]} for role, content in chat
    ]
    messages[-1]["content"] = [{"type": "image"}, *messages[-1]["content"]]
    return messages


def text_span(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> TextSpan:
    """A text's tokens as a `TextSpan`.

    `offsets` are the characters of each token and `special` has 1 for each special token, as
    transformers returns them.
    """
    text_tokens = [index for index, is_special in enumerate(special) if not is_special]
    end = text_tokens[-1] + 1 if text_tokens else 0
    start = max(1, text_tokens[0]) if text_tokens else 0
    if start >= end:
        return TextSpan(ids, end, end, 0)
    # Some tokenizers do not count the space before a word as part of its token.
    first = min(offsets[start][0], offsets[start - 1][1])
    return TextSpan(ids, start, end, len(text[first:].encode()))


def second_start(token_types: Sequence[int]) -> int:
    """The index of the first token type 1, all that vLLM needs to know; the length if none."""
    return token_types.index(1) if 1 in token_types else len(token_types)
