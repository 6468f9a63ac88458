"""Languages: their codes and names, and which one a text is in.

The only door to py3langid, which knows these languages; it works offline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

# Beyond it a text's language is as clear as it gets, and time grows with length.
_MAX_CHARACTERS = 2000
# ISO 639: what py3langid tells apart, with the English names that prompts use.
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
#: Names by code; a tag such as pt-BR is its first part's language.
LANGUAGES = {
    code: name for code, _, name in (entry.strip().partition(" ") for entry in _NAMES.split(","))
}
# Written so much alike that the library's word for one may stand for the other.
_NEAR = (
    frozenset({"no", "nn", "da"}),
    frozenset({"bs", "hr", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"zh", "yue", "wuu"}),
    frozenset({"ar", "ary", "arz"}),
    frozenset({"uz", "uzs"}),
)


@dataclass(frozen=True, slots=True)
class Detected:
    """The likeliest language of a text, and its probability among those that are known."""

    code: str
    score: float

    def is_near(self, tag: str) -> bool:
        """Whether this is the tag's language, or one that is easily taken for it."""
        wanted = base(tag)
        return self.code == wanted or any({self.code, wanted} <= near for near in _NEAR)


def base(tag: str) -> str:
    """The language of a tag: `pt` of `pt-BR`."""
    code = tag.replace("_", "-").partition("-")[0].lower()
    return {"nb": "no", "iw": "he", "in": "id"}.get(code, code)


def language_name(tag: str) -> str | None:
    """What a prompt calls the language: `Portuguese (pt-BR)`; None for one that is not known."""
    name = LANGUAGES.get(base(tag))
    return name if name is None or "-" not in tag else f"{name} ({tag})"


def detect(text: str) -> Detected | None:
    """The language of a text, by its first thousands of characters; None without letters."""
    text = text[:_MAX_CHARACTERS]
    if not _has_letters(text):
        return None
    code, score = _identifier().classify(text)
    return Detected(str(code), float(score))


def _has_letters(text: Iterable[str]) -> bool:
    return any(character.isalpha() for character in text)


@cache
def _identifier() -> Any:
    """Built once in a process, in half a second."""
    # Imported late: only translations pay for it, and only beside the engine.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
