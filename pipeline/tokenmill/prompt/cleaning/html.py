"""HTML to text."""

import re
from typing import Any

from tokenmill.prompt.encoder import is_unicode

_MARKUP = re.compile(r"<!--|</?[A-Za-z]|<![A-Za-z]|&(?:\w{1,32}|#\d{1,8}|#[xX][0-9a-fA-F]{1,6});")
_NO_TEXT = frozenset({"script", "style", "template", "head", "noscript", "iframe", "svg"})
# Elements that stand on lines of their own, and those with a blank line around them.
_LINES = frozenset({"div", "li", "tr", "dt", "dd", "option", "hr", "caption", "figcaption"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "header", "main", "nav", "ol", "p", "pre", "section"}
    | {"table", "ul"}
)
_PRE = frozenset({"pre", "textarea"})
_BLANKS = re.compile(r"[ \t\r\n\f]+")


def html(text: str) -> tuple[str, int]:
    """The text that a browser would show, blocks on lines of their own.

    Counts tags, comments and character references; a text without any stays as it is.
    """
    count = sum(1 for _ in _MARKUP.finditer(text))
    if count == 0 or not is_unicode(text):
        return text, 0
    # Only jobs that name the step need the library.
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415

    root = LexborHTMLParser(text).root
    return "" if root is None else _shown(root), count


class _Page:
    """Text as it is shown: blanks run together, and blocks ask for the newlines between them."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 0

    def __str__(self) -> str:
        return "".join(self._parts).strip()

    def write(self, text: str) -> None:
        """Text outside of `<pre>`."""
        text = _BLANKS.sub(" ", text)
        if self._newlines or not self._parts or self._parts[-1].endswith((" ", "\n", "\t")):
            text = text.removeprefix(" ")
        self.write_as_it_is(text)

    def write_as_it_is(self, text: str) -> None:
        if not text:
            return
        if self._parts and self._newlines:
            self._parts[-1] = self._parts[-1].removesuffix(" ")
            self._parts.append("\n" * self._newlines)
        self._newlines = 0
        self._parts.append(text)

    def open(self, tag: str) -> None:
        """Begin an element."""
        if tag == "br":
            self.write_as_it_is("\n")
        elif tag in {"td", "th"} and not self._newlines:
            self.write_as_it_is("\t")
        self.close(tag)

    def close(self, tag: str) -> None:
        """End an element: between two blocks the larger distance holds."""
        self._newlines = max(self._newlines, 2 if tag in _BLOCKS else 1 if tag in _LINES else 0)


def _shown(root: Any) -> str:
    """The document's text. Without recursion: it may be nested as deeply as it is long."""
    page = _Page()
    num_pre = 0
    node, entering = root, True
    while node is not None:
        tag = node.tag
        if entering:
            num_pre += tag in _PRE
            if tag == "-text":
                write = page.write_as_it_is if num_pre else page.write
                write(node.text_content or "")
            else:
                page.open(tag)
            if tag not in _NO_TEXT and node.child is not None:
                node = node.child
                continue
        page.close(tag)
        num_pre -= tag in _PRE
        entering = node.next is not None
        node = node.next if entering else node.parent
    return str(page)
