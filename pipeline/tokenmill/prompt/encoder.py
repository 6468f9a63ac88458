"""From rows to token ids: templates, chat template, tokenizer, for whole units at a time.

A row that cannot be rendered becomes a `Reject` in its place; the others go on.
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
        # Control tokens are meant where the job's own words write them, as in a chat by hand.
        templates = self.templates.with_words(self.tokenizer.controls.meant)
        object.__setattr__(self, "templates", templates)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[int] | Reject]:
        """Each row's prompt as token ids; rows are mappings from column to value."""
        return self._encode(rows, self.tokenizer.encode_chats)

    def encode_with_image(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[int] | Reject]:
        """As `encode`, a chat with the place of an image; a plain text has the job's own."""
        return self._encode(rows, self.tokenizer.encode_chats_with_image)

    def _encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        encode_chats: Callable[[Sequence[Chat]], list[Sequence[int] | Reject]],
    ) -> list[Sequence[int] | Reject]:
        if self.templates.chat is not None:
            chats = [self._own_chat(row[self.templates.chat]) for row in rows]
            return _in_place(chats, encode_chats(_sound(chats)))
        rendered = self.render(rows)
        contents = _sound(rendered)
        if self.templates.is_chat:
            roles = self.templates.roles
            encoded = encode_chats([list(zip(roles, item, strict=True)) for item in contents])
        else:
            encoded = self.tokenizer.encode_texts([text for (text,) in contents])
        return _in_place(rendered, encoded)

    def _own_chat(self, messages: Any) -> Chat | Reject:
        """A row's own messages, their control tokens marked as text, as `render_row` does."""
        column = self.templates.chat
        if not messages:
            return Reject(RejectClass.EMPTY_INPUT, f"the column {column} holds no messages")
        chat = []
        for number, message in enumerate(messages):
            parts = []
            for key in ("role", "content"):
                part = message.get(key) if isinstance(message, Mapping) else None
                if not isinstance(part, str):
                    reason = f"the column {column}: message {number} has no {key} that is a text"
                    return Reject(RejectClass.TEMPLATE_ERROR, reason)
                if not is_unicode(part):
                    return Reject(RejectClass.BAD_TEXT, "the prompt holds a lone surrogate")
                parts.append(self.tokenizer.controls.guard(part))
            role, content = parts
            chat.append((role, content))
        return chat

    def render(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str] | Reject]:
        """Each row's contents, as the templates write them."""
        return [self.render_row(row) for row in rows]

    def render_row(self, row: Mapping[str, Any]) -> list[str] | Reject:
        """The contents of the row's messages, or of its one plain text.

        Control tokens from the row are marked as text (`controls`), for the tokenizer to see.
        """
        contents = self.templates.render(row)
        if isinstance(contents, list):
            for content in contents:
                if not is_unicode(content):
                    return Reject(RejectClass.BAD_TEXT, "the prompt holds a lone surrogate")
            return [self.tokenizer.controls.guard(content) for content in contents]
        return contents


def _sound(items: Sequence[BatchItem | Reject]) -> list[BatchItem]:
    return [item for item in items if not isinstance(item, Reject)]


def _in_place(
    items: Sequence[object], encoded: Sequence[Sequence[int] | Reject]
) -> list[Sequence[int] | Reject]:
    """What came of the sound items, with the rejects in their places."""
    answers = iter(encoded)
    return [item if isinstance(item, Reject) else next(answers) for item in items]


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: no lone surrogate is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
