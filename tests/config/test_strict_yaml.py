"""YAML 1.2: what scalars and keys mean, and what is refused."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.config.strict_yaml import dump_yaml, load_yaml

# A text, and what it means.
SCALARS: list[tuple[str, Any]] = [
    *((text, text) for text in ("yes", "no", "on", "off", "Yes", "NO", "y", "n", "=", "<<")),
    ("true", True),
    ("False", False),
    *((text, None) for text in ("null", "~", "")),
    ("nil", "nil"),
    ("010", 10),
    ("08", 8),
    ("0o10", 8),
    ("0x1F", 31),
    ("+5", 5),
    ("-5", -5),
    *((text, text) for text in ("1:30", "1_000", "0b11", "0o8", "1.2.3", "5k")),
    ("1e3", 1000.0),
    ("1.", 1.0),
    (".5", 0.5),
    ("-1.5e-3", -0.0015),
    (".inf", float("inf")),
    ("-.INF", float("-inf")),
    ("2026-01-31", "2026-01-31"),
    ("2026-01-31 12:00:00", "2026-01-31 12:00:00"),
    ("!!str 5", "5"),
    ("!!float 5", 5.0),
    ('"5"', "5"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text for text, _ in SCALARS])
def test_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    """The same as a value, in a list and in a mapping."""
    for loaded in (
        load_yaml(f"a: {text}")["a"],
        load_yaml(f"- {text}")[0],
        load_yaml(f"{{a: {text}}}")["a"],
    ):
        assert loaded == value
        assert type(loaded) is type(value)


@pytest.mark.parametrize("key", ["28", "yes", "true", "null", "1.5", "2026-01-31"])
def test_keys_are_text(key: str) -> None:
    """So that the job that is stored as JSON or YAML has the same keys."""
    assert load_yaml(f"{key}: 1") == {key: 1}
    assert load_yaml(dump_yaml({key: 1})) == {key: 1}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "28: 1\n'28': 2", "{a: 1, a: 2}"])
def test_a_duplicate_key_is_an_error(text: str) -> None:
    """Also if one of the two is quoted."""
    with pytest.raises(yaml.YAMLError, match="duplicate key"):
        load_yaml(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"a": 1, "b": 3}),
        ("x: &x {a: 1, b: 2}\ny: {b: 3, <<: *x}", {"a": 1, "b": 3}),
        ("x: [&p {a: 1}, &q {a: 2, b: 2}]\ny: {<<: [*p, *q]}", {"a": 1, "b": 2}),
        ("x: {i: &x {<<: {a: 1, b: 2}, b: 3}}\n<<: {c: 4}\ny: {<<: *x, a: 5}", {"a": 5, "b": 3}),
        ("y: {'<<': 1}", {"<<": 1}),
    ],
)
def test_merge_keys_add_keys_that_a_mapping_does_not_have(text: str, value: dict[str, int]) -> None:
    """The mapping's own keys count, then those of the first mapping; a quoted `<<` is a key."""
    assert load_yaml(text)["y"] == value


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a {<<: *a}",
        "&a [*a]",
        "a: !!timestamp 2026-01-31",
        "a: !!set {b}",
        "a: !!python/none x",
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 22)),
    ],
    ids=lambda text: text[:25],
)
def test_what_is_not_plain_data_is_an_error(text: str) -> None:
    """Values that contain themselves or expand to millions, and types that YAML 1.2 lacks."""
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@settings(max_examples=300, deadline=None)
@given(
    st.from_regex(r"[-+.0-9eExo:_<=~ntfNTFyY]{1,8}", fullmatch=True)
    | st.sampled_from([text for text, _ in SCALARS])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.floats(allow_nan=False)
    | st.integers(-(2**70), 2**70)
)
def test_what_is_written_is_read_again(value: Any) -> None:
    """A text that looks like a number stays a text, and a number a number."""
    loaded = load_yaml(dump_yaml({"a": [value], "b": value}))
    assert loaded == {"a": [value], "b": value}
    assert type(loaded["b"]) is type(value)
