"""From texts and chats to token ids, with the model's own tokenizer and chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2

from pipeline.errors import UserError
from pipeline.schema import Reject, RejectClass

Chat = Sequence[tuple[str, str]]


class Tokenizer(Protocol):
    """What rendering needs of a model. One answer per input, in order."""

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        """Token ids of chats of (role, content), ready for the assistant's turn."""

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        """Token ids of plain texts, with the special tokens that the model puts around a text."""


class ModelTokenizer:
    """A Hugging Face tokenizer, loaded the way vLLM loads it, so that the ids are the same."""

    def __init__(self, folder: Path) -> None:
        # Imported late: it costs seconds, and the driver never needs it.
        from transformers import AutoTokenizer  # noqa: PLC0415

        self._folder = folder
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def encode_chats(self, chats: Sequence[Chat]) -> list[Sequence[int] | Reject]:
        if self._tokenizer.chat_template is None:
            raise UserError(
                f"{self._folder}: the model has no chat template; give prompt.text instead"
            )
        rendered = [self._apply_template(chat) for chat in chats]
        texts = [text for text in rendered if isinstance(text, str)]
        # The template has written the special tokens already.
        encoded = iter(self._encode(texts, add_special_tokens=False))
        return [text if isinstance(text, Reject) else next(encoded) for text in rendered]

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return list(self._encode(texts, add_special_tokens=True))

    def _apply_template(self, chat: Chat) -> str | Reject:
        messages = [{"role": role, "content": content} for role, content in chat]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            return Reject(RejectClass.CHAT_TEMPLATE_ERROR, " ".join(str(error).split()))
        return str(text)

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Sequence[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=add_special_tokens)
        return list(encoded["input_ids"])
