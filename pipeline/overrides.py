"""The sampling parameters that a row may set for itself, and what each may be.

Rows are checked where they are prepared, long before an engine sees them; so the limits of vLLM's
`SamplingParams` stand here as well.
"""

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

# Of a row: a grammar is made of it in the engine, which answers nobody meanwhile.
_MOST_SCHEMA_CHARACTERS = 2**16
#: What a value becomes on its way into the sampling; raises `ValueError` for one that cannot be.
_Check = Callable[[Any], Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _number(least: float, most: float, *, above: bool = False) -> _Check:
    """From `least` to `most`, both included; with `above` more than `least`."""
    beyond = "at most" if above else "and"
    limits = f"above {least:g}" if above else f"between {least:g}"
    says = f"a number {limits}" + ("" if math.isinf(most) else f" {beyond} {most:g}")

    def check(value: Any) -> float:
        number = float(value) if _is_number(value) else math.nan
        too_small = number <= least if above else number < least
        if too_small or not number <= most or math.isinf(number):
            raise ValueError(f"must be {says}")
        return number

    return check


def _whole(least: int) -> _Check:
    """A whole number from `least`; 16.0 is one, as a column of numbers with nulls often has it."""

    def check(value: Any) -> int:
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError(f"must be a whole number, {least} or more")
        if value != int(value) or value < least:
            raise ValueError(f"must be a whole number, {least} or more")
        return int(value)

    return check


def _seed(value: Any) -> int:
    seed = int(_whole(-(2**63))(value))
    if seed >= 2**63:
        raise ValueError("must be a whole number of 64 bits")
    return seed


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must be a text or a list of texts, none of them empty")
    return list(texts)


def _structured(value: Any) -> dict[str, Any]:
    """What vLLM's `structured_outputs` may be, as the text of a JSON object."""
    says = 'must be JSON text: {"json": SCHEMA} or {"json_object": true}'
    if not isinstance(value, str) or len(value) > _MOST_SCHEMA_CHARACTERS:
        raise ValueError(f"{says}, of at most {_MOST_SCHEMA_CHARACTERS:,} characters")
    try:
        structured = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(says) from error
    match structured:
        case {"json": dict() as schema} if len(structured) == 1:
            return {"json": json.dumps(schema, ensure_ascii=False)}
        case {"json_object": True} if len(structured) == 1:
            return dict(structured)
    raise ValueError(says)


#: By name as in vLLM's `SamplingParams`.
OVERRIDABLE: Mapping[str, _Check] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(-1),
    "min_p": _number(0, 1),
    "max_tokens": _whole(1),
    "min_tokens": _whole(0),
    "seed": _seed,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, math.inf, above=True),
    "stop": _texts,
    "structured_outputs": _structured,
}
