"""A model's control tokens in texts: intended in the job's own words, plain text in a row.

`<|im_end|>` in a row must not end the turn. Such tokens are searched for before the chat template
writes its own. Those of a row are replaced by marks, which pass through any template and cannot
occur in a row, and are encoded as plain text later. A text without control tokens is not changed.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterator

# Letters and digits only, so that no filter of a chat template changes a mark. Drawn at random in
# each process, so that no row can contain it.
_NONCE = secrets.token_hex(8)
_ALLOWED, _ESCAPED = f"tm{_NONCE}m", f"tm{_NONCE}f"
_END = "z"
_ALLOWED_MARK = re.compile(rf"{_ALLOWED}(\d+){_END}")
_ESCAPED_MARK = re.compile(rf"{_ESCAPED}(\d*){_END}")
# Marks a whole text as free of intended control tokens.
_NOTHING_ALLOWED = f"{_ESCAPED}{_END}"


class ControlTokens:
    """The control tokens of one model, as it spells them.

    `normalize` is what the tokenizer applies to a text before it searches for them, if anything.
    """

    def __init__(
        self, tokens: Collection[str], normalize: Callable[[str], str] | None = None
    ) -> None:
        # Longest first: one token may be the beginning of another.
        self._tokens = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
        self._indices = {token: index for index, token in enumerate(self._tokens)}
        self._any = re.compile(f"({'|'.join(map(re.escape, self._tokens))})")
        self._normalize = normalize

    def allow(self, words: str) -> str:
        """Mark control tokens in the job's own words as intended, so that `escape` keeps them."""
        return self._mark(words, _ALLOWED)

    def escape(self, text: str) -> str:
        """Mark the control tokens in a rendered text as plain text, except the intended ones."""
        if not self._tokens:
            return text
        escaped = self._mark(text, _ESCAPED)
        if self._normalize is not None and self._any.search(self._normalize(escaped)):
            escaped = _NOTHING_ALLOWED + escaped
        if _ALLOWED in escaped:
            escaped = _ALLOWED_MARK.sub(lambda mark: self._tokens[int(mark[1])], escaped)
        return escaped

    @staticmethod
    def is_escaped(text: str) -> bool:
        """Whether the text contains marks of `escape`."""
        return _ESCAPED in text

    def unescape(self, text: str) -> str:
        """The text with the original tokens instead of the marks of `escape`."""
        if not self.is_escaped(text):
            return text
        return _ESCAPED_MARK.sub(lambda mark: self._tokens[int(mark[1])] if mark[1] else "", text)

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of an escaped text in order, each with whether it is a control token."""
        if not self._tokens:
            yield text, False
            return
        # `re.split` with one group returns the separators, here the tokens, at odd indices.
        for index, part in enumerate(self._any.split(text)):
            if part:
                yield self.unescape(part), bool(index % 2)

    def _mark(self, text: str, mark: str) -> str:
        if not self._tokens or self._any.search(text) is None:
            return text
        return self._any.sub(lambda match: f"{mark}{self._indices[match[0]]}{_END}", text)
