"""Convert HTML to text."""

import re
from typing import Any

from tokenmill.prompt.encoder import is_unicode

_MARKUP = re.compile(r"<!--|</?[A-Za-z]|<![A-Za-z]|&(?:\w{1,32}|#\d{1,8}|#[xX][0-9a-fA-F]{1,6});")
_NO_TEXT = frozenset({"script", "style", "template", "head", "noscript", "iframe", "svg"})
# Elements on separate lines, and elements with blank lines around them.
_LINES = frozenset({"div", "li", "tr", "dt", "dd", "option", "hr", "caption", "figcaption"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "dl", "fieldset", "figure", "footer", "form"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "header", "main", "nav", "ol", "p", "pre", "section"}
    | {"table", "ul"}
)
_PRE = frozenset({"pre", "textarea"})
_BLANKS = re.compile(r"[ \t\r\n\f]+")


def html(text: str) -> tuple[str, int]:
    """The text that a browser would show, with blocks on separate lines.

    Counts tags, comments and character references; a text without any is not changed.
    """
    count = sum(1 for _ in _MARKUP.finditer(text))
    if count == 0 or not is_unicode(text):
        return text, 0
    # Only jobs that clean HTML pay for the import.
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415

    root = LexborHTMLParser(text).root
    return "" if root is None else _visible_text(root), count


class _Page:
    """Collects visible text: collapses blanks, and separates blocks by newlines."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._newlines = 0

    def __str__(self) -> str:
        return "".join(self._parts).strip()

    def write(self, text: str) -> None:
        """Add text from outside `<pre>`, with its blanks collapsed."""
        text = _BLANKS.sub(" ", text)
        if self._newlines or not self._parts or self._parts[-1].endswith((" ", "\n", "\t")):
            text = text.removeprefix(" ")
        self.write_verbatim(text)

    def write_verbatim(self, text: str) -> None:
        """Add text unchanged, after the newlines that are due."""
        if not text:
            return
        if self._parts and self._newlines:
            self._parts[-1] = self._parts[-1].removesuffix(" ")
            self._parts.append("\n" * self._newlines)
        self._newlines = 0
        self._parts.append(text)

    def open(self, tag: str) -> None:
        """Start an element."""
        if tag == "br":
            self.write_verbatim("\n")
        elif tag in {"td", "th"} and not self._newlines:
            self.write_verbatim("\t")
        self.close(tag)

    def close(self, tag: str) -> None:
        """End an element. Between two blocks the larger distance counts."""
        self._newlines = max(self._newlines, 2 if tag in _BLOCKS else 1 if tag in _LINES else 0)


def _visible_text(root: Any) -> str:
    """The document's text. Not recursive: documents may be nested as deeply as they are long."""
    page = _Page()
    num_pre = 0
    node, entering = root, True
    while node is not None:
        tag = node.tag
        if entering:
            num_pre += tag in _PRE
            if tag == "-text":
                write = page.write_verbatim if num_pre else page.write
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
