"""Sampling parameters: which of them a row may set, and what a retry changes."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo

from tokenmill.config.section import Section

# The engine compiles a row's schema to a grammar, and no row is answered until that is done.
_MAX_SCHEMA_CHARACTERS = 2**16
# The engine crashes on a larger seed.
_MAX_INT64 = 2**63 - 1
#: Sampling parameters of vLLM that tokenmill sets itself.
RESERVED = frozenset(
    {"detokenize", "flat_logprobs", "output_kind", "output_text_buffer_length", "skip_clone"}
)
# Parameters that may be null in vLLM, among those that a row may set.
_NULLABLE = ("max_tokens", "seed", "stop", "structured_outputs")


def _not_text_or_bool(value: Any) -> Any:
    """Raise `ValueError` for "5" and true, which pydantic would convert to numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError  # noqa: TRY004 - pydantic expects it
    return value


def _structured_outputs(value: Any) -> dict[str, Any]:
    """The `structured_outputs` of vLLM, from the text of a JSON object. Raises `ValueError`."""
    if not isinstance(value, str) or len(value) > _MAX_SCHEMA_CHARACTERS:
        raise ValueError
    try:
        structured = json.loads(value)
    except RecursionError as error:
        raise ValueError from error
    match structured:
        case {"json": dict() as schema} if len(structured) == 1:
            return {"json": json.dumps(schema, ensure_ascii=False)}
        case {"json_object": True} if len(structured) == 1:
            return dict(structured)
        case {"choice": [*texts]} if len(structured) == 1 and texts:
            if all(isinstance(text, str) and text for text in texts):
                return dict(structured)
    raise ValueError


_Number = Annotated[float, BeforeValidator(_not_text_or_bool), Field(allow_inf_nan=False)]
# 16.0 is a whole number: a column of whole numbers with nulls often has the type double.
_WholeNumber = Annotated[int, BeforeValidator(_not_text_or_bool)]
_Texts = Annotated[
    list[Annotated[str, Field(strict=True, min_length=1)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(strict=True),
]


class RowSampling(Section):
    """The sampling parameters that a row may set, within the limits of vLLM's `SamplingParams`.

    A description completes the error message "NAME must be …".
    """

    temperature: Annotated[_Number, Field(ge=0, le=2)] | None = Field(
        default=None, description="a number between 0 and 2"
    )
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        default=None, description="a number above 0 and at most 1"
    )
    top_k: Annotated[_WholeNumber, Field(ge=-1)] | None = Field(
        default=None, description="a whole number, -1 or more"
    )
    min_p: Annotated[_Number, Field(ge=0, le=1)] | None = Field(
        default=None, description="a number between 0 and 1"
    )
    max_tokens: Annotated[_WholeNumber, Field(ge=1)] | None = Field(
        default=None, description="a whole number, 1 or more"
    )
    min_tokens: Annotated[_WholeNumber, Field(ge=0)] | None = Field(
        default=None, description="a whole number, 0 or more"
    )
    seed: Annotated[_WholeNumber, Field(ge=-_MAX_INT64 - 1, le=_MAX_INT64)] | None = Field(
        default=None, description="a whole number of 64 bits"
    )
    presence_penalty: Annotated[_Number, Field(ge=-2, le=2)] | None = Field(
        default=None, description="a number between -2 and 2"
    )
    frequency_penalty: Annotated[_Number, Field(ge=-2, le=2)] | None = Field(
        default=None, description="a number between -2 and 2"
    )
    repetition_penalty: Annotated[_Number, Field(gt=0)] | None = Field(
        default=None, description="a number above 0"
    )
    stop: _Texts | None = Field(
        default=None, description="a string or a list of strings, none of them empty"
    )
    structured_outputs: Annotated[dict[str, Any], PlainValidator(_structured_outputs)] | None = (
        Field(
            default=None,
            description=f"JSON text of at most {_MAX_SCHEMA_CHARACTERS:,} characters, "
            '{"json": SCHEMA}, {"json_object": true} or {"choice": [TEXT, ...]}',
        )
    )


def _value_check(field: FieldInfo) -> Callable[[Any], Any]:
    # One validator a field: the whole model takes three times as long for a row.
    validator: TypeAdapter[Any] = TypeAdapter(
        field.rebuild_annotation(), config=ConfigDict(defer_build=True)
    )

    def check(value: Any) -> Any:
        try:
            return validator.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"must be {field.description}") from error

    return check


#: Converts a row's value to the one that vLLM takes, by parameter. Raises `ValueError`.
OVERRIDABLE: Mapping[str, Callable[[Any], Any]] = {
    name: _value_check(field) for name, field in RowSampling.model_fields.items()
}


class Retries(Section):
    """Run a row again if its answer was unusable, with other sampling parameters."""

    times: Annotated[int, Field(ge=1, le=10)] = Field(
        default=1, description="Number of retries after the first attempt."
    )
    sampling: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters that replace the task's, such as `temperature` or `max_tokens`.",
    )

    def samplings(self, sampling: dict[str, Any]) -> list[dict[str, Any]]:
        """The sampling of each retry of a task with this `sampling`.

        A seed is one larger in each retry.
        """
        changed = {**sampling, **self.sampling}
        seed = changed.get("seed")
        if seed is None:
            return [changed] * self.times
        start = seed + (seed == sampling.get("seed"))
        return [{**changed, "seed": start + retry} for retry in range(self.times)]


def check_retries(retries: Retries, sampling: dict[str, Any]) -> None:
    """Raise `ValueError` for retries that a task cannot use, or that repeat the same answer."""
    changed = {**sampling, **retries.sampling}
    check_sampling(changed, "retries.")
    if changed.get("temperature", 1) != 0:
        return
    if {**changed, "seed": None} == {**sampling, "seed": None}:
        raise ValueError(
            "retries: at temperature 0 the same request gets the same answer; "
            "set another temperature or max_tokens in retries.sampling"
        )
    if retries.times > 1:
        raise ValueError(
            "retries.times: at temperature 0 all retries get the same answer; "
            "set times: 1, or a temperature in retries.sampling"
        )


def check_sampling(sampling: dict[str, Any], prefix: str = "") -> None:
    """Raise `ValueError` for sampling parameters that a task cannot use.

    `prefix` precedes `sampling` in messages: `tasks.topic.` in a list of tasks.
    """
    if "max_tokens" not in sampling:
        # vLLM's default of 16 tokens would silently cut nearly every answer.
        raise ValueError(
            f"{prefix}sampling.max_tokens is missing; set the largest number of tokens of an answer"
        )
    for name, value in sampling.items():
        if name in RESERVED:
            raise ValueError(f"{prefix}sampling.{name} is set by tokenmill; remove it")
        # A row's schema is text and has a limited size, a job's is not.
        if name in OVERRIDABLE and name != "structured_outputs":
            _check_value(name, value, f"{prefix}sampling.{name}")
    if sampling.get("n", 1) != 1:
        raise ValueError(
            f"{prefix}sampling.n must be 1; for several answers a row, set n or best_of in the task"
        )


def _check_value(name: str, value: Any, key: str) -> None:
    """Raise `ValueError` for a value of the job, at `key`, that vLLM would refuse."""
    if value is None and name in _NULLABLE:
        return
    try:
        checked = OVERRIDABLE[name](value)
    except ValueError as error:
        raise ValueError(f"{key} {error}") from error
    if value is None or (isinstance(value, float) and isinstance(checked, int)):
        raise ValueError(f"{key} must be {RowSampling.model_fields[name].description}")
