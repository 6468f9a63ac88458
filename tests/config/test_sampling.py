"""The sampling parameters that a row may set."""

from typing import Any

import pytest
from pydantic import ValidationError
from tokenmill.config.sampling import OVERRIDABLE, RowSampling


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 3, "must be a number between 0 and 2"),
        ("temperature", 10**400, "must be a number between 0 and 2"),
        ("top_p", 0, "must be a number above 0 and at most 1"),
        ("repetition_penalty", 0, "must be a number above 0"),
        ("max_tokens", "16", "must be a whole number, 1 or more"),
        ("seed", 2**63, "must be a whole number of 64 bits"),
        ("stop", ["a", ""], "must be a string or a list of strings, none of them empty"),
        ("structured_outputs", "{" * 2**17, "must be JSON text of at most 65,536 characters"),
    ],
)
def test_the_message_names_the_limits(name: str, value: Any, message: str) -> None:
    """A value that vLLM would refuse is a ValueError in one line that says what is allowed."""
    with pytest.raises(ValueError, match=message) as failed:
        OVERRIDABLE[name](value)
    assert "\n" not in str(failed.value)


def test_the_model_and_the_single_checks_agree() -> None:
    """A whole row as a model has the values that the checks give, and no unknown parameter."""
    row = {"temperature": 1, "max_tokens": 16.0, "stop": "."}
    checked = {name: OVERRIDABLE[name](value) for name, value in row.items()}
    assert RowSampling.model_validate(row).model_dump(exclude_unset=True) == checked
    assert checked == {"temperature": 1.0, "max_tokens": 16, "stop": ["."]}
    with pytest.raises(ValidationError, match="logprobs"):
        RowSampling.model_validate({"logprobs": 1})
