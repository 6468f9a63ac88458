"""From texts and chats to token ids, with the model's own tokenizer and chat template."""

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
# What a job says where transformers names an argument.
_TRUST = "model.engine.trust_remote_code: true"
# Stands for an answer in a chat, to see what the template writes behind it.
_MARK = "tokenmill-answer"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A text's token ids, and which of them have a prediction and are the text's own.

    Those are `token_ids[start:end]`; `num_bytes` is the UTF-8 length of the text that they stand
    for. The first token of all has no prediction, so `start` is at least 1.
    """

    token_ids: Sequence[int]
    start: int
    end: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts as one prompt; the second's token types, if there are any, begin at `second`."""

    token_ids: Sequence[int]
    second: int | None


class Tokenizer(Protocol):
    """What rendering needs of a model. One answer per input, in order.

    Control tokens in a text are those tokens, but where `controls` has marked them as text.
    """

    @property
    def controls(self) -> ControlTokens:
        """The model's control tokens."""

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """Token ids of chats of (role, content), ready for the assistant's turn."""

    def encode_chats_with_image(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """As `encode_chats`, with the place of an image before the last turn's text."""

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        """Token ids of plain texts, with the special tokens that the model puts around a text."""

    def spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        """The characters of each token of plain texts: from, and up to.

        Nothing is put around a text, and a special token's name in it is text.
        """

    def encode_answered_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """Token ids of chats that end with the assistant's turn."""

    def encode_spans(self, texts: Sequence[str]) -> list[TextSpan]:
        """As `encode_texts`, with what a language model predicts of each text."""

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        """Pairs of texts, as a cross-encoder reads them. Raises `UserError` if it cannot."""

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        """The texts that the chats' token ids stand for."""

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Token ids of texts without special tokens around them: what stands behind others."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""

    @property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that an answer's text leaves out."""

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an answer; None if the model has none."""


def encode_after(tokenizer: Tokenizer, before: str, texts: Sequence[str]) -> list[Sequence[int]]:
    """Token ids of each text as it follows `before`.

    Alone, some tokenizers put a space before a text. Where the two texts have a token in common,
    they are those of the text alone.
    """
    head, *wholes = tokenizer.encode_continuations([before, *(before + text for text in texts)])
    alone = tokenizer.encode_continuations(texts)
    return [
        whole[len(head) :] if whole[: len(head)] == head else own
        for whole, own in zip(wholes, alone, strict=True)
    ]


class ModelTokenizer:
    """A Hugging Face tokenizer, loaded the way vLLM loads it, so that the ids are the same."""

    def __init__(self, folder: Path, *, trusts_code: bool = False) -> None:
        """Raises `UserError` for a folder whose tokenizer cannot be loaded.

        `trusts_code` says whether Python files in it may run.
        """
        # Imported late: it costs seconds, and the driver never needs it.
        from transformers import AutoTokenizer  # noqa: PLC0415

        self._folder = folder
        try:
            # Without the argument transformers asks on the terminal whether code may run.
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trusts_code
            )
        except ValueError as error:
            reason = " ".join(str(error).replace("trust_remote_code=True", _TRUST).split())
            raise UserError(f"{folder}: its tokenizer cannot be loaded: {reason}") from error
        legacy = folder / "chat_template.json"
        if self._tokenizer.chat_template is None and legacy.is_file():
            # Models with images keep it here, for their processor.
            self._tokenizer.chat_template = json.loads(legacy.read_text())["chat_template"]
        self.controls = ControlTokens(self.special_tokens, self._normalizer())

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
                f"{self._folder}: the model has no chat template; give prompt.text instead"
            )

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        # The template has written the special tokens already.
        return self._encode(texts, add_special_tokens=False)

    @property
    def end_of_turn(self) -> int | None:
        """What the chat template writes behind an answer, or the token that ends a text."""
        if self._tokenizer.chat_template is not None:
            chat = self._apply_template(
                [("user", "x"), ("assistant", _MARK)], add_generation_prompt=True
            )
            behind = chat.rpartition(_MARK)[2] if isinstance(chat, str) else ""
            special = self._tokenizer.added_tokens_decoder
            (tokens,) = self.encode_continuations([behind])
            for token in tokens:
                if token in special and special[token].special:
                    return token
        end: int | None = self._tokenizer.eos_token_id
        return end

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return list(self._encode(texts, add_special_tokens=True))

    def spans(self, texts: Sequence[str]) -> list[Sequence[tuple[int, int]]]:
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            raise UserError(
                f"{self._folder}: length cannot cut for this model, whose tokenizer does not say "
                "where its tokens stand in a text"
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
        return self._each(texts, self._spans_of)

    def _spans_of(self, texts: Sequence[str], split: bool) -> list[TextSpan]:
        plain = [self.controls.literal(text) for text in texts]
        encoded = self._tokenizer(
            plain,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            split_special_tokens=split,
        )
        columns = ("input_ids", "offset_mapping", "special_tokens_mask")
        rows = zip(plain, *(encoded[name] for name in columns), strict=True)
        return [_text_span(*row) for row in rows]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
        count = self._tokenizer.num_special_tokens_to_add
        if count(pair=True) <= count(pair=False):
            raise UserError(
                f"{self._folder}: the model's tokenizer puts nothing between two texts, so it is "
                "no cross-encoder's; use kind reward, with both texts in the prompt"
            )
        if not pairs:
            return []
        return self._each(pairs, self._pairs_of)

    def _pairs_of(self, pairs: Sequence[tuple[str, str]], split: bool) -> list[Pair]:
        plain = [(self.controls.literal(one), self.controls.literal(two)) for one, two in pairs]
        firsts, seconds = zip(*plain, strict=True)
        encoded = self._tokenizer(list(firsts), list(seconds), split_special_tokens=split)
        types = encoded.get("token_type_ids") or [None] * len(pairs)
        return [
            Pair(ids, None if of_pair is None else _second(of_pair))
            for ids, of_pair in zip(encoded["input_ids"], types, strict=True)
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
                return [self._encode_guarded(text, add_special_tokens) for text in texts]
            return list(
                self._tokenizer(list(texts), add_special_tokens=add_special_tokens).input_ids
            )

        return self._each(texts, encode)

    def _encode_guarded(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        """A text some of whose control tokens are text, as tokenizers do: cut at the others."""
        parts = list(self.controls.parts(text))
        if not any(is_control for _, is_control in parts):
            whole = self.controls.literal(text)
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

    def _each(
        self, items: Sequence[Item], encode: Callable[[Sequence[Item], bool], list[Encoded]]
    ) -> list[Encoded]:
        """All items in one batch, but for those with marks of `controls`, in another."""
        guarded = [at for at, item in enumerate(items) if self._is_guarded(item)]
        if not guarded:
            return encode(items, False) if items else []
        others = [at for at in range(len(items)) if at not in set(guarded)]
        found = dict(zip(guarded, encode([items[at] for at in guarded], True), strict=True))
        if others:
            batch = encode([items[at] for at in others], False)
            found |= dict(zip(others, batch, strict=True))
        return [found[at] for at in range(len(items))]

    def _is_guarded(self, item: str | tuple[str, str]) -> bool:
        return any(map(self.controls.is_guarded, [item] if isinstance(item, str) else item))

    def _normalizer(self) -> Callable[[str], str] | None:
        """What the tokenizer does to a text before it looks for control tokens in it."""
        added = self._tokenizer.added_tokens_decoder.values()
        if not (self._tokenizer.is_fast and any(t.special and t.normalized for t in added)):
            return None
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        return None if normalizer is None else normalizer.normalize_str


def _with_image(chat: Chat) -> list[dict[str, Any]]:
    """Messages in parts, as chat templates of models with images take them."""
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}]} for role, content in chat
    ]
    messages[-1]["content"] = [{"type": "image"}, *messages[-1]["content"]]
    return messages


def _text_span(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> TextSpan:
    own = [position for position, flag in enumerate(special) if not flag]
    end = own[-1] + 1 if own else 0
    start = max(1, own[0]) if own else 0
    if start >= end:
        return TextSpan(ids, end, end, 0)
    # Some tokenizers leave a space out of its token's place in the text.
    first = min(offsets[start][0], offsets[start - 1][1])
    return TextSpan(ids, start, end, len(text[first:].encode()))


def _second(token_types: Sequence[int]) -> int:
    """Where the second text's token types begin, which is all that vLLM wants to know of them."""
    return token_types.index(1) if 1 in token_types else len(token_types)
