"""Glossaries: which terms a text uses, and the files they come from."""

from pathlib import Path

import pytest
from tokenmill.tasks.translation.glossary import Glossary, read_glossary

TERMS = {"invoice": "facture", "sign in": "se connecter", "C++": "C++", "発送": "expédition"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Your INVOICE.", ["invoice"]),
        ("invoices and reinvoice", []),
        ("Please sign in; written in C++", ["C++", "sign in"]),
        ("すぐに発送します", ["発送"]),
        ("", []),
    ],
)
def test_terms_are_found_as_whole_words(text: str, found: list[str]) -> None:
    """In either case; inside of a longer word only where a script parts none."""
    assert [term for term, _ in Glossary(TERMS).found(text)] == found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("terms.yaml", "invoice: facture\nsign in: se connecter\n"),
        ("terms.csv", "invoice,facture\n\nsign in, se connecter\n"),
        ("terms.tsv", "invoice\tfacture\nsign in\tse connecter\n"),
    ],
)
def test_a_file_of_terms(tmp_path: Path, name: str, content: str) -> None:
    """YAML, CSV and TSV say the same."""
    path = tmp_path / name
    path.write_text(content)
    assert read_glossary(path) == {"invoice": "facture", "sign in": "se connecter"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.yaml", None, "cannot be read"),
        ("list.yaml", "- a\n", "maps each term"),
        ("bad.yaml", "a: [", "bad.yaml"),
        ("three.csv", "a,b\na,b,c\n", "entry 2 of the glossary has 3 columns"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    """Before anything is run, and in one line."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=reason) as refused:
        read_glossary(tmp_path / name)
    assert "\n" not in str(refused.value)
