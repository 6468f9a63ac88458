"""A glossary: how terms are to be translated, and which of them a text uses."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Scripts from here on part no words: there a term may stand inside of anything.
_FIRST_UNPARTED = "\u2e80"


class Glossary:
    """Translations by term; terms are words or phrases, in upper or lower case."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms = [
            (term.casefold(), _whole_words(term), term, terms[term]) for term in sorted(terms)
        ]

    def found(self, text: str) -> list[tuple[str, str]]:
        """The terms that the text uses, and their translations, in order."""
        folded = text.casefold()
        return [
            (term, translation)
            for key, pattern, term, translation in self._terms
            # Nearly all end here: a pattern costs twenty times as much.
            if key in folded and pattern.search(folded)
        ]


def read_glossary(path: Path) -> dict[str, Any]:
    """A file's terms: YAML, or two columns of CSV or TSV. Raises `ValueError`."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in _DELIMITERS:
            return _columns(text, _DELIMITERS[path.suffix])
        terms = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    except (csv.Error, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(terms, dict):
        raise ValueError(f"{path}: a glossary maps each term to its translation; this does not")  # noqa: TRY004
    return terms


def _columns(text: str, delimiter: str) -> dict[str, Any]:
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    for position, row in enumerate(rows):
        if len(row) != 2:  # noqa: PLR2004 - a term and its translation
            raise ValueError(f"entry {position + 1} of the glossary has {len(row)} columns, not 2")
    return {term.strip(): translation.strip() for term, translation in rows}


def _whole_words(term: str) -> re.Pattern[str]:
    folded = term.casefold()
    start = r"(?<!\w)" if _is_parted(folded[:1]) else ""
    end = r"(?!\w)" if _is_parted(folded[-1:]) else ""
    return re.compile(f"{start}{re.escape(folded)}{end}")


def _is_parted(character: str) -> bool:
    return character.isalnum() and character < _FIRST_UNPARTED
