"""Language codes, names and detection.

The only module that imports py3langid, which detects languages offline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

# More text does not improve detection, and the time grows with the length.
_MAX_CHARACTERS = 2000
# The ISO 639 codes that py3langid can detect, and the English names for prompts.
_NAMES = """
af Afrikaans, am Amharic, ar Arabic, as Assamese, az Azerbaijani, ba Bashkir, be Belarusian,
bg Bulgarian, bn Bengali, br Breton, bs Bosnian, ca Catalan, cs Czech, cy Welsh, da Danish,
de German, dz Dzongkha, el Greek, en English, eo Esperanto, es Spanish, et Estonian, eu Basque,
fa Persian, fi Finnish, fo Faroese, fr French, fy Western Frisian, ga Irish, gd Scottish Gaelic,
gl Galician, gu Gujarati, ha Hausa, he Hebrew, hi Hindi, hr Croatian, ht Haitian Creole,
hu Hungarian, hy Armenian, id Indonesian, ig Igbo, is Icelandic, it Italian, ja Japanese,
jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean, ku Kurdish, ky Kyrgyz,
la Latin, lb Luxembourgish, lg Ganda, ln Lingala, lo Lao, lt Lithuanian, lv Latvian, mg Malagasy,
mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, ne Nepali,
nl Dutch, nn Norwegian Nynorsk, no Norwegian, oc Occitan, om Oromo, or Odia, pa Punjabi, pl Polish,
ps Pashto, pt Portuguese, qu Quechua, ro Romanian, ru Russian, rw Kinyarwanda, sa Sanskrit,
se Northern Sami, si Sinhala, sk Slovak, sl Slovenian, sn Shona, so Somali, sq Albanian, sr Serbian,
st Southern Sotho, sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik, th Thai, tk Turkmen,
tl Tagalog, tr Turkish, tt Tatar, ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese,
vo Volapük, wa Walloon, xh Xhosa, yo Yoruba, zh Chinese, zu Zulu
"""
#: English names by ISO 639 code.
LANGUAGES = {
    code: name for code, _, name in (entry.strip().partition(" ") for entry in _NAMES.split(","))
}
# Languages so similar in writing that py3langid often confuses them.
_CONFUSABLE = (
    frozenset({"no", "nn", "da"}),
    frozenset({"bs", "hr", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"zh", "yue", "wuu"}),
    frozenset({"ar", "ary", "arz"}),
    frozenset({"uz", "uzs"}),
)


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """The most likely language of a text. `score` is its probability among all languages."""

    code: str
    score: float

    def matches(self, tag: str) -> bool:
        """Whether this is the tag's language, or one that is easily confused with it."""
        expected = base_language(tag)
        return self.code == expected or any({self.code, expected} <= group for group in _CONFUSABLE)


def base_language(tag: str) -> str:
    """The language code of a tag: `pt` for `pt-BR`."""
    code = tag.replace("_", "-").partition("-")[0].lower()
    return {"nb": "no", "iw": "he", "in": "id"}.get(code, code)


def language_name(tag: str) -> str | None:
    """The name for prompts, such as `Portuguese (pt-BR)`. None for an unknown language."""
    name = LANGUAGES.get(base_language(tag))
    return name if name is None or "-" not in tag else f"{name} ({tag})"


def detect_language(text: str) -> DetectedLanguage | None:
    """Detect the language from the first 2,000 characters. None if they hold no letters."""
    text = text[:_MAX_CHARACTERS]
    if not _has_letters(text):
        return None
    code, score = _identifier().classify(text)
    return DetectedLanguage(str(code), float(score))


def _has_letters(text: Iterable[str]) -> bool:
    return any(character.isalpha() for character in text)


@cache
def _identifier() -> Any:
    """The detector. Loading takes half a second, once per process."""
    # Imported here so that only replicas that translate pay for it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
