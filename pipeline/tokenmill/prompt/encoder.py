"""Encode rows as token ids: templates, chat template and tokenizer, a whole unit at a time.

A row that cannot be rendered yields a `Reject` at its position; the other rows are not affected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenmill.prompt.template import PromptTemplates
from tokenmill.prompt.tokenizer import Chat, Tokenizer
from tokenmill.reject import Reject, RejectClass

BatchItem = TypeVar("BatchItem")


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """One prompt's templates and the model's tokenizer."""

    templates: PromptTemplates
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        # Control tokens in the job's own words are intended: a job may write a chat by hand.
        templates = self.templates.map_literal_text(self.tokenizer.control_tokens.allow)
        object.__setattr__(self, "templates", templates)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[int] | Reject]:
        """Each row's prompt as token ids. Rows map column names to values."""
        return self._encode(rows, self.tokenizer.encode_chats)

    def encode_with_image(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[int] | Reject]:
        """As `encode`, with an image placeholder in chats; a plain text must contain its own."""
        return self._encode(rows, self.tokenizer.encode_chats_with_image)

    def _encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        encode_chats: Callable[[Sequence[Chat]], list[Sequence[int] | Reject]],
    ) -> list[Sequence[int] | Reject]:
        if self.templates.chat is not None:
            chats = [self._chat_of_row(row[self.templates.chat]) for row in rows]
            return _with_rejects(chats, encode_chats(_without_rejects(chats)))
        rendered = self.render(rows)
        contents = _without_rejects(rendered)
        if self.templates.is_chat:
            roles = self.templates.roles
            encoded = encode_chats([list(zip(roles, item, strict=True)) for item in contents])
        else:
            encoded = self.tokenizer.encode_texts([text for (text,) in contents])
        return _with_rejects(rendered, encoded)

    def _chat_of_row(self, messages: Any) -> Chat | Reject:
        """The messages in a row's column, with their control tokens escaped as in `render_row`."""
        column = self.templates.chat
        if not messages:
            return Reject(RejectClass.EMPTY_INPUT, f"the column {column} has no messages")
        chat = []
        for number, message in enumerate(messages):
            parts = []
            for key in ("role", "content"):
                part = message.get(key) if isinstance(message, Mapping) else None
                if not isinstance(part, str):
                    reason = f"the column {column}: message {number}: {key} is not a text"
                    return Reject(RejectClass.TEMPLATE_ERROR, reason)
                if not is_unicode(part):
                    return Reject(RejectClass.BAD_TEXT, "the prompt contains a lone surrogate")
                parts.append(self.tokenizer.control_tokens.escape(part))
            role, content = parts
            chat.append((role, content))
        return chat

    def render(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str] | Reject]:
        """The rendered templates of each row; see `render_row`."""
        return [self.render_row(row) for row in rows]

    def render_row(self, row: Mapping[str, Any]) -> list[str] | Reject:
        """The contents of the row's messages, or its one plain text.

        Control tokens that come from the row are escaped, so that the tokenizer encodes them as
        plain text.
        """
        contents = self.templates.render(row)
        if isinstance(contents, list):
            for content in contents:
                if not is_unicode(content):
                    return Reject(RejectClass.BAD_TEXT, "the prompt contains a lone surrogate")
            return [self.tokenizer.control_tokens.escape(content) for content in contents]
        return contents


def _without_rejects(items: Sequence[BatchItem | Reject]) -> list[BatchItem]:
    return [item for item in items if not isinstance(item, Reject)]


def _with_rejects(
    items: Sequence[object], encoded: Sequence[Sequence[int] | Reject]
) -> list[Sequence[int] | Reject]:
    """The encoded items in order, with the rejects among `items` at their positions."""
    results = iter(encoded)
    return [item if isinstance(item, Reject) else next(results) for item in items]


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8: it contains no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
