"""Language names, tags and detection."""

import subprocess
import sys

import pytest
from helpers.command import ROOT
from tokenmill.tasks.translation.languages import (
    LANGUAGES,
    base_language,
    detect_language,
    language_name,
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("This sentence was written in the language of these tests.", "en"),
        ("Cette phrase est écrite dans la langue de Molière.", "fr"),
        ("Dieser Satz steht in der Sprache, in der Goethe schrieb.", "de"),
        ("この文章は日本語で書かれています。", "ja"),
        ("Это предложение написано по-русски.", "ru"),
    ],
)
def test_one_sentence_is_enough_to_detect_its_language(text: str, code: str) -> None:
    """The score is high enough for the language check."""
    language = detect_language(text)
    assert language is not None
    assert (language.code, language.score > 0.5) == (code, True)


@pytest.mark.parametrize("text", ["", "  \n", "12 + 34 = 46", "⟦⟧ … !"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    """Digits, punctuation and marks have no language."""
    assert detect_language(text) is None


def test_the_library_can_detect_every_language_a_job_may_use() -> None:
    """So the language check works for every target language."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    labels = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    assert set(labels) >= LANGUAGES.keys()


def test_a_tag_has_a_base_language_and_a_name() -> None:
    """The first part of a tag is the language; the name in prompts includes the whole tag."""
    assert (base_language("pt-BR"), language_name("pt-BR")) == ("pt", "Portuguese (pt-BR)")
    assert (base_language("zh_Hant"), language_name("fr")) == ("zh", "French")
    assert (base_language("nb"), language_name("nb")) == ("no", "Norwegian")
    assert language_name("xx") is None


def test_languages_that_are_often_confused_match() -> None:
    """Danish matches Norwegian, but not Swedish."""
    danish = detect_language("Dette er en kort dansk tekst om vejret i København og omegn.")
    assert danish is not None and danish.code == "da"
    assert danish.matches("nb")
    assert danish.matches("da-DK")
    assert not danish.matches("sv")


def test_the_library_is_imported_at_its_first_use() -> None:
    """Jobs that translate nothing do not load it."""
    module = "tokenmill.tasks.translation.translate"
    script = f"import sys, tokenmill.cli, {module}; print('py3langid' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
