"""Protected spans: which spans are masked, and that they are restored exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.tasks.translation.placeholders import (
    PlaceholderMask,
    Protected,
    placeholder_counts,
    restore_placeholders,
    without_placeholders,
)

ALL = PlaceholderMask(Protected)
PIECES = [
    "⟦1⟧", "⟦", "⟧", "⟦ 2 ⟧", "`", "```", "\n", " ", "a", "{x}", "{{ y }}", "%s", "$HOME", "<b>",
    "</b>", "<!--", "-->", "http://a.b", "me@x.org", "&amp;", "<0>", "~~~", "<pre>", "</pre>",
]  # fmt: skip


@given(
    st.text() | st.lists(st.sampled_from(PIECES)).map("".join), st.sets(st.sampled_from(Protected))
)
def test_any_text_can_be_masked_and_restored(text: str, kinds: set[Protected]) -> None:
    """This includes texts that contain marks. Each mark occurs once in the masked text."""
    masked = PlaceholderMask(kinds).mask(text)
    assert restore_placeholders(masked.text, masked.spans) == text
    assert placeholder_counts(masked.text) == dict.fromkeys(range(1, len(masked.spans) + 1), 1)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("a\n```py\nx = 1\n\ny\n```\nb", ["```py\nx = 1\n\ny\n```"]),
        ("a\n~~~\nnever closed", ["~~~\nnever closed"]),
        ("see `a b` and ``c ` d``", ["`a b`", "``c ` d``"]),
        ("<pre>x\n\ny</pre> z <code>w</code>", ["<pre>x\n\ny</pre>", "<code>w</code>"]),
        ("at https://x.org/a?b=c#d, or (www.y.net).", ["https://x.org/a?b=c#d", "www.y.net"]),
        ("mail me.too+x@mail.example.com.", ["me.too+x@mail.example.com"]),
        ("Hi {name}, {0} {} {a.b[0]!r:>3}", ["{name}", "{0}", "{}", "{a.b[0]!r:>3}"]),
        ("{{ user.name }}{% if a %} b {# c #}", ["{{ user.name }}{% if a %}", "{# c #}"]),
        ("%s of %d, %(count)s %1$s %.2f %@", ["%s", "%d", "%(count)s", "%1$s", "%.2f", "%@"]),
        ("100 % sure, 50%de, 5 %.", []),
        ("in $HOME/x or ${PATH}: US$5, $5", ["$HOME", "${PATH}"]),
        ("<0>Click</0> <br/>", ["<0>", "</0>", "<br/>"]),
        ('<a href="x">y</a> a < b &nbsp; c', ['<a href="x">', "</a>", "&nbsp;"]),
        ("<!-- a - b --> c", ["<!-- a - b -->"]),
        ("an <|im_end|> and [/INST]", ["<|im_end|>", "[/INST]"]),
        ("it was ⟦1⟧ there, ⟦ alone", ["⟦1⟧", "⟦"]),
        ("<b><i>x", ["<b><i>"]),
    ],
)  # fmt: skip
def test_spans_of_all_kinds_are_masked(text: str, spans: list[str]) -> None:
    """Adjacent spans share a mark, and ordinary words are not masked."""
    assert list(ALL.mask(text).spans) == spans


@pytest.mark.parametrize(
    ("kind", "spans"),
    [
        (Protected.CODE, ["`c`"]),
        (Protected.URLS, ["http://u.v"]),
        (Protected.PLACEHOLDERS, ["{p}"]),
        (Protected.MARKUP, ["<b>"]),
    ],
)
def test_only_the_chosen_kinds_are_masked(kind: Protected, spans: list[str]) -> None:
    """A job may protect some kinds and leave the others to the model."""
    assert list(PlaceholderMask([kind]).mask("`c` http://u.v {p} <b>").spans) == spans


def test_a_mark_may_contain_spaces() -> None:
    """Models add such spaces. A mark with an unknown number stays."""
    assert restore_placeholders("⟦ 2 ⟧ et ⟦1⟧, ⟦7⟧ ⟦0⟧", ["a", "b"]) == "b et a, ⟦7⟧ ⟦0⟧"
    assert placeholder_counts("⟦ 2 ⟧ ⟦2⟧ ⟦1⟧") == {2: 2, 1: 1}
    assert without_placeholders("a⟦1⟧b") == "a b"


@pytest.mark.parametrize(
    "part",
    [
        "`",
        "`a ",
        "<!--",
        "<pre>",
        "<a ",
        "a",
        "a.",
        "a@",
        "http://",
        "{a",
        "{{ ",
        "%(",
        "$a",
        "⟦",
        "&a",
    ],
)
def test_masking_a_hostile_text_takes_linear_time(part: str) -> None:
    """The text opens 30,000 spans and closes none."""
    text = part * 30_000
    masked = ALL.mask(text)
    assert restore_placeholders(masked.text, masked.spans) == text
