"""Languages: their names, and which one a text is in."""

import subprocess
import sys

import pytest
from helpers.command import ROOT
from tokenmill.tasks.translation.languages import LANGUAGES, base, detect, language_name


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
def test_a_sentence_is_told_by_its_language(text: str, code: str) -> None:
    """One sentence is enough, and its score says that it is sure."""
    found = detect(text)
    assert found is not None
    assert (found.code, found.score > 0.5) == (code, True)


@pytest.mark.parametrize("text", ["", "  \n", "12 + 34 = 46", "⟦⟧ … !"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    """Nothing is said of what nobody could tell."""
    assert detect(text) is None


def test_any_name_that_a_job_may_use_is_one_the_library_knows() -> None:
    """A job's language can always be checked."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    known = LanguageIdentifier.from_model_file(MODEL_FILE).labels
    assert set(known) >= LANGUAGES.keys()


def test_tags_are_languages_of_places() -> None:
    """A tag's first part is checked; the prompt says all of it."""
    assert (base("pt-BR"), language_name("pt-BR")) == ("pt", "Portuguese (pt-BR)")
    assert (base("zh_Hant"), language_name("fr")) == ("zh", "French")
    assert (base("nb"), language_name("nb")) == ("no", "Norwegian")
    assert language_name("xx") is None


def test_languages_that_are_taken_for_each_other_are_near() -> None:
    """Norwegian that looks Danish is no fault; French that looks Italian is."""
    danish = detect("Dette er en kort dansk tekst om vejret i København og omegn.")
    assert danish is not None and danish.code == "da"
    assert danish.is_near("nb")
    assert danish.is_near("da-DK")
    assert not danish.is_near("sv")


def test_the_library_is_imported_by_its_first_use_only() -> None:
    """A job without translations pays nothing for it."""
    module = "tokenmill.tasks.translation.translate"
    script = f"import sys, tokenmill.cli, {module}; print('py3langid' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
