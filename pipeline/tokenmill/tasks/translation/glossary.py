"""Glossaries: prescribed translations of terms, and the terms that a text uses."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenmill.config.strict_yaml import load_yaml

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Scripts from here on are written without spaces, so a term may occur inside longer strings.
_FIRST_UNSPACED = "\u2e80"


class Glossary:
    """Maps terms to their translations. A term is a word or a phrase; case is ignored."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms = [
            (term.casefold(), _whole_words(term), term, terms[term]) for term in sorted(terms)
        ]

    def terms_in(self, text: str) -> list[tuple[str, str]]:
        """The terms that the text uses, with their translations, sorted by term."""
        folded = text.casefold()
        return [
            (term, translation)
            for folded_term, pattern, term, translation in self._terms
            # The substring test rules out most terms and is twenty times faster than the pattern.
            if folded_term in folded and pattern.search(folded)
        ]


def read_glossary(path: Path) -> dict[str, Any]:
    """Read a glossary from a YAML mapping, or from a CSV or TSV file with two columns.

    Raises `ValueError` if the file cannot be read or has another structure.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in _DELIMITERS:
            return _read_columns(text, path, _DELIMITERS[path.suffix])
        terms = load_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the glossary ({error})") from error
    except (csv.Error, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(terms, dict):
        raise ValueError(f"{path}: a glossary must be a mapping of terms to translations")  # noqa: TRY004
    return terms


def _read_columns(text: str, path: Path, delimiter: str) -> dict[str, Any]:
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:  # noqa: PLR2004 - a term and its translation
            raise ValueError(f"{path}: entry {number} has {len(row)} columns; expected 2")
    return {term.strip(): translation.strip() for term, translation in rows}


def _whole_words(term: str) -> re.Pattern[str]:
    folded = term.casefold()
    start = r"(?<!\w)" if _needs_word_boundary(folded[:1]) else ""
    end = r"(?!\w)" if _needs_word_boundary(folded[-1:]) else ""
    return re.compile(f"{start}{re.escape(folded)}{end}")


def _needs_word_boundary(character: str) -> bool:
    return character.isalnum() and character < _FIRST_UNSPACED
