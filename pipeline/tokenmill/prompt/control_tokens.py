"""A model's control tokens in texts: meant where the job's own words write them, text elsewhere.

`<|im_end|>` in a row must not end the turn. Texts are searched for such tokens before the chat
template writes its own; what is found is replaced by a mark, which no template minds and no row can
hold, and comes back as plain text when the tokens are made. A text without them stays as it is.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterator

# Letters and digits alone, so that no filter of a chat template changes a mark; drawn anew in each
# process, so that no row knows it.
_NONCE = secrets.token_hex(8)
_MEANT, _FOUND = f"tm{_NONCE}m", f"tm{_NONCE}f"
_END = "z"
_MEANT_MARK = re.compile(rf"{_MEANT}(\d+){_END}")
_FOUND_MARK = re.compile(rf"{_FOUND}(\d*){_END}")
# Says of a whole text that nothing in it is a control token.
_NOTHING_MEANT = f"{_FOUND}{_END}"


class ControlTokens:
    """The control tokens of one model, as it spells them.

    `normalize` is what the tokenizer does to a text before it looks for them, if it does.
    """

    def __init__(
        self, tokens: Collection[str], normalize: Callable[[str], str] | None = None
    ) -> None:
        # The longest first: one may be the beginning of another.
        self._tokens = sorted(filter(None, tokens), key=lambda token: (-len(token), token))
        self._places = {token: place for place, token in enumerate(self._tokens)}
        self._any = re.compile(f"({'|'.join(map(re.escape, self._tokens))})")
        self._normalize = normalize

    def meant(self, words: str) -> str:
        """A template's own words, in which control tokens are meant, for `guard` to leave them."""
        return self._marked(words, _MEANT)

    def guard(self, text: str) -> str:
        """A rendered text, its control tokens marked as text but for those that are meant."""
        if not self._tokens:
            return text
        guarded = self._marked(text, _FOUND)
        if self._normalize is not None and self._any.search(self._normalize(guarded)):
            guarded = _NOTHING_MEANT + guarded
        if _MEANT in guarded:
            guarded = _MEANT_MARK.sub(lambda mark: self._tokens[int(mark[1])], guarded)
        return guarded

    @staticmethod
    def is_guarded(text: str) -> bool:
        """Whether the text holds marks of `guard`."""
        return _FOUND in text

    def literal(self, text: str) -> str:
        """The text with its tokens back in the place of `guard`'s marks."""
        if not self.is_guarded(text):
            return text
        return _FOUND_MARK.sub(lambda mark: self._tokens[int(mark[1])] if mark[1] else "", text)

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """A guarded text's parts in order, and of each whether it is a control token."""
        if not self._tokens:
            yield text, False
            return
        # At the odd places stands what separates: the tokens.
        for place, part in enumerate(self._any.split(text)):
            if part:
                yield self.literal(part), bool(place % 2)

    def _marked(self, text: str, mark: str) -> str:
        if not self._tokens or self._any.search(text) is None:
            return text
        return self._any.sub(lambda found: f"{mark}{self._places[found[0]]}{_END}", text)
