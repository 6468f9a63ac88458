"""Glossaries: finding the terms of a text, and reading glossary files."""

from pathlib import Path

import pytest
from tokenmill.tasks.translation.glossary import Glossary, read_glossary

TERMS = {"invoice": "facture", "sign in": "se connecter", "C++": "C++", "発送": "expédition"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Your INVOICE.", ["invoice"]),
        ("invoices and reinvoice", []),
        ("Please sign in; written in C++", ["C++", "sign in"]),
        ("すぐに発送します", ["発送"]),
        ("", []),
    ],
)
def test_terms_match_whole_words_in_any_case(text: str, expected: list[str]) -> None:
    """Only in scripts without spaces may a term match inside a longer string."""
    assert [term for term, _ in Glossary(TERMS).terms_in(text)] == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("terms.yaml", "invoice: facture\nsign in: se connecter\n"),
        ("terms.csv", "invoice,facture\n\nsign in, se connecter\n"),
        ("terms.tsv", "invoice\tfacture\nsign in\tse connecter\n"),
    ],
)
def test_a_glossary_file_may_be_yaml_csv_or_tsv(tmp_path: Path, name: str, content: str) -> None:
    """All formats give the same terms."""
    path = tmp_path / name
    path.write_text(content)
    assert read_glossary(path) == {"invoice": "facture", "sign in": "se connecter"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.yaml", None, "none.yaml: cannot read"),
        ("list.yaml", "- a\n", "list.yaml: .* must be a mapping"),
        ("bad.yaml", "a: [", "bad.yaml"),
        ("three.csv", "a,b\na,b,c\n", "three.csv: entry 2 has 3 columns"),
    ],
)
def test_the_error_names_the_file_and_the_problem(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    """The message is one line."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=reason) as raised:
        read_glossary(tmp_path / name)
    assert "\n" not in str(raised.value)
