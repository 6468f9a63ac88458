"""Plain English: words of an earlier, private idiom do not come back.

Prose is what people read: docs, comments, docstrings and messages. Code in backticks is left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import ROOT
from helpers.house import MODULES, TESTS, prose

#: What to write instead is in the second column.
WORDS = {
    r"stands?(?!-in)|stood|standing": "is, exists",
    r"tells?|told": "reports, prints, says",
    r"besides?": "next to, as well as",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"anew": "again",
    r"so many|so often": "n, this often",
    r"whoever|nobody": "name the component",
    r"who (?:is|are|has|knows|asks|comes|may)": "name the component",
    r"kin": "related",
    r"bears?|borne": "has",
    r"lies": "is",
    r"(?<!parent-)deaths?|died|dies": "crashes, crashed",
    r"condemned": "poison",
    r"ledger|courier|luggage|patience": "registry, transport …",
    r"will not do|does not do": "is rejected, fails",
    r"weather": "faults",
}
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
PAGES = sorted(
    path
    for pattern in ("*.md", "Makefile", "docs/**/*.md", "infra/**/*.md", "infra/*.sh")
    for path in ROOT.glob(pattern)
)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines of prose."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    for number, text in prose(path):
        # One word is a key or a value; what people read has spaces.
        if text.startswith("#") or " " in text:
            yield from enumerate(text.splitlines(), number)


@pytest.mark.parametrize(
    "path",
    [*MODULES, *(path for path in TESTS if path != Path(__file__)), *PAGES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_word_of_the_old_idiom_is_used(path: Path) -> None:
    """Each has a plain replacement in WORDS."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} in {line.strip()}"
        for number, line in lines(path)
        if (match := _WORD.search(re.sub(r"`[^`]*`", "", line)))
    ]
    assert found == []
