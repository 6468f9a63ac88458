"""Error messages about a job file, with the keys of the file and suggestions."""

import re
import types
import typing
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tokenmill.config.length import Length
from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.tasks.kinds import DEFAULT_KIND, TASK_KINDS


def check_known_keys(data: Any, annotation: Any, where: str, path: str = "") -> None:
    """Raise `UserError` for a key that its section does not have, with a suggestion.

    Raises it too for true and false where a number is expected, which pydantic reads as 1 and 0.
    """
    if isinstance(data, bool) and _wants_number(annotation):
        key = path.removesuffix(".")
        raise UserError(f"{where}: {key}: {str(data).lower()} is not a number")
    if isinstance(data, list):
        for position, item in enumerate(data):
            check_known_keys(item, annotation, where, f"{path}{position}.")
    if not isinstance(data, dict):
        return
    section = _section_for(data, annotation)
    if section is None:
        return
    # `from` is a keyword of Python, so the field has an alias.
    fields = {field.alias or name: field for name, field in section.model_fields.items()}
    for key, value in data.items():
        field = fields.get(key)
        if field is None:
            raise UserError(f"{where}: {path}{key}: {did_you_mean(str(key), fields)}")
        check_known_keys(value, field.annotation, where, f"{path}{key}.")


def _section_for(value: Mapping[str, Any], annotation: Any) -> type[BaseModel] | None:
    """The section that validates a value; of several, the one with the value's kind or policy."""
    sections = _sections_of(annotation)
    if len(sections) < 2:  # noqa: PLR2004 - nothing to choose
        return next(iter(sections), None)
    key = next(name for name in ("kind", "policy") if name in sections[0].model_fields)
    return _names(annotation, key).get(value.get(key, DEFAULT_KIND.name if key == "kind" else None))


def _names(annotation: Any, key: str) -> dict[str, type[BaseModel]]:
    """The sections that a field may hold, by the literal value of each at `key`."""
    return {
        typing.get_args(section.model_fields[key].annotation)[0]: section
        for section in _sections_of(annotation)
    }


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a field's type, which may be a union, an optional or a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union, tuple, Annotated):
        return [part for member in typing.get_args(annotation) for part in _sections_of(member)]
    return []


def _wants_number(annotation: Any) -> bool:
    """Whether a field's type has numbers in it and neither booleans nor untyped values."""
    types = _leaf_types(annotation)
    return not types.isdisjoint({int, float}) and types.isdisjoint({bool, Any})


def _leaf_types(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    members = () if typing.get_origin(annotation) is Literal else typing.get_args(annotation)
    return set().union(*map(_leaf_types, members)) if members else {annotation}


def validation_message(error: ValidationError) -> str:
    """All errors of pydantic in one line, with the keys of the job file."""
    parts = []
    for item in error.errors(include_url=False):
        name = ".".join(_keys(item["loc"]))
        message = _message(item)
        parts.append(f"{name}: {message}" if name else message)
    return "; ".join(parts)


def _message(item: ErrorDetails) -> str:
    """An error of pydantic, with what to write instead if a value has another form."""
    value = item["input"]
    match item["type"]:
        case "tuple_type" | "list_type" if isinstance(value, str):
            return f"must be a list: [{value}]"
        case "model_type" | "dict_type" if value is not None:
            return f"must have keys of its own, not the value {value!r:.40}"
        case "string_type" if isinstance(value, bool | int | float):
            return f'must be text; put quotes around it: "{str(value).lower()}"'
    return item["msg"].removeprefix("Value error, ")


def _keys(location: Sequence[str | int]) -> list[str]:
    """The keys in the job file for a location of pydantic, which has additional parts."""
    # For a value of two forms, the validator of the form: `constrained-int`.
    keys = [str(part) for part in location if re.fullmatch(r"\w+", str(part))]
    # For a task its kind: `tasks.0.generate.prompt`. For a length its policy: `length.chunk.by`.
    position = {"task": 1, "tasks": 2}.get(keys[0], len(keys)) if keys else 0
    _drop(keys, position, {kind.name for kind in TASK_KINDS})
    _drop(
        keys, 1 + keys.index("length") if "length" in keys else 0, _names(Length, "policy").keys()
    )
    return keys


def _drop(keys: list[str], position: int, names: AbstractSet[str]) -> None:
    """Remove the key at a position if it is one of the names."""
    if position < len(keys) and keys[position] in names:
        del keys[position]
