"""Suggestions for names that do not exist."""

import pytest
from tokenmill.formatting import did_you_mean, listed

MANY = [f"column_{number}" for number in range(5_000)]


@pytest.mark.parametrize(
    ("name", "names", "parts"),
    [
        ("colour", ["color", "size"], ["did you mean color?"]),
        ("TEXT", ["text", "id"], ["did you mean text?"]),
        ("zzz", ["color", "size"], ["known: color, size"]),
        ("zzz", MANY, ["column_0, ", "4,995 more"]),
    ],
    ids=["similar", "another case", "none similar", "none similar of many"],
)
def test_the_nearest_name_or_the_known_names_are_suggested(
    name: str, names: list[str], parts: list[str]
) -> None:
    """Of many names only a few, with the number of the others."""
    message = did_you_mean(name, names)
    assert message.startswith("unknown key; ")
    assert all(part in message for part in parts)
    assert len(message) < 200


def test_a_few_similar_names_represent_many() -> None:
    """Few names are listed whole."""
    assert listed("colum_17", ["a", "b"]) == "a, b"
    shown = listed("Column_1717", MANY)
    assert shown.startswith("column_1717, ") and shown.endswith(" and 4,995 more")
