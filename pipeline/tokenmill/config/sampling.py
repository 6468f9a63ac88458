"""Sampling parameters: those that a row may set for itself, and those of retries."""

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from tokenmill.config.section import Section

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


class Retries(Section):
    """How often a row is asked again whose answer does not do, and with what change."""

    times: Annotated[int, Field(ge=1, le=10)] = 1
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="In place of the task's values of the same names."
    )

    def samplings(self, first: dict[str, Any]) -> list[dict[str, Any]]:
        """The sampling of each retry, behind the first attempt's; a seed grows by one each time."""
        changed = {**first, **self.sampling}
        seed = changed.get("seed")
        if seed is None:
            return [changed] * self.times
        start = seed + (seed == first.get("seed"))
        return [{**changed, "seed": start + time} for time in range(self.times)]


def check_retries(retries: Retries, first: dict[str, Any]) -> None:
    """Raise `ValueError` for retries that a task cannot take, or that repeat the same answer."""
    changed = {**first, **retries.sampling}
    check_sampling(changed)
    if not isinstance(changed.get("seed", 0), int):
        raise ValueError("retries: the sampling's seed must be a whole number")  # noqa: TRY004
    if changed.get("temperature", 1) != 0:
        return
    same = [
        {key: value for key, value in each.items() if key != "seed"} for each in (first, changed)
    ]
    if same[0] == same[1]:
        raise ValueError(
            "retries: at temperature 0 the same request has the same answer; "
            "give retries.sampling another temperature or max_tokens"
        )
    if retries.times > 1:
        raise ValueError(
            "retries.times: at temperature 0 all retries have the same answer; "
            "write times: 1, or give retries.sampling a temperature"
        )


def check_sampling(sampling: dict[str, Any], place: str = "") -> None:
    """Raise `ValueError` for sampling parameters that a task cannot take.

    `place` stands before `sampling` in messages: `tasks.topic.` in a list of tasks.
    """
    if "max_tokens" not in sampling:
        # vLLM's own default of 16 tokens would cut nearly every answer without a word.
        raise ValueError(f"{place}sampling.max_tokens is missing: say how long an answer may be")
    limit = sampling["max_tokens"]
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(
            f"{place}sampling.max_tokens must be a positive number, or null for no limit"
        )
    seed = sampling.get("seed")
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        # The engine would die of it.
        raise ValueError(f"{place}sampling.seed must fit into 64 bits")
    for key in ("output_kind", "detokenize"):
        if key in sampling:
            raise ValueError(f"{place}sampling.{key} is set by tokenmill; leave it out")
    if sampling.get("n", 1) != 1:
        raise ValueError(
            f"{place}sampling.n must be 1; several answers a row are the task's: n, best_of"
        )
