"""JSON schemas as Arrow types: which schemas have one, and an answer's JSON as cells of it.

The types: string, int64, float64, bool, list, struct; `format: date-time` is a timestamp in UTC,
`format: date` a date. Null, a property that is absent and a row without an answer are all null.
What a column cannot hold is refused with its place in the schema. Ground floor: imports nothing of
ours.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from tokenmill.tasks.extraction.cells import (
    FORMATS,
    MAX_DIGITS,
    at_path,
    cell,
    join_path,
    path_of,
    shorten_message,
)

# Say something about a value without narrowing it; engines ignore them.
_ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
# Narrow a value and leave its type alone.
_CONSTRAINTS = frozenset(
    {
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "uniqueItems",
    }
)
_TYPED = frozenset(
    {"additionalProperties", "const", "enum", "format", "items", "properties", "required", "type"}
)
_HINTS = {
    "dependentSchemas": "a column's type cannot depend on another column",
    "if": "a column's type cannot depend on another column",
    "nullable": 'write type: [string, "null"]',
    "patternProperties": "columns need names: list the properties",
    "prefixItems": "the items of a list have one type: use an object with a property for each",
}
_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_MOST_NODES = 10_000


#: The definitions that are being read, each as the keys that lead to it.
_References = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class TypedSchema:
    """A schema, whole and without references, and the Arrow type of its values."""

    schema: Mapping[str, Any]
    type: pa.DataType


def read_object_schema(schema: Mapping[str, Any]) -> TypedSchema:
    """A schema of objects, whose type is a struct; what is read once is read the same again.

    References are written out, annotations dropped, and objects closed to other properties.
    Raises `ValueError` with the place in the schema.
    """
    # Imported late: a quarter of a second that other jobs need not pay.
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415

    try:
        _refuse_other_than_json(schema, "")
        Draft202012Validator.check_schema(schema)
        typed = _Reader(schema).read(schema, "", ())
    except SchemaError as error:
        raise ValueError(
            at_path(path_of(error.absolute_path), shorten_message(error.message))
        ) from error
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    if not pa.types.is_struct(typed.type):
        raise ValueError("type: an answer is an object; its properties are the columns")
    return typed


def _refuse_other_than_json(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                # YAML reads on, off, yes and no as truth values, and 1 as a number.
                reason = f"the key {key!r} is not text; put quotes around it"
                raise ValueError(at_path(place, reason))  # noqa: TRY004 - what pydantic reports
            _refuse_other_than_json(item, join_path(place, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_other_than_json(item, join_path(place, position))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(at_path(place, f"{value!r} is no number of JSON"))
    elif not isinstance(value, str | int | float | None):
        raise ValueError(at_path(place, f"{value!r} is no value of JSON; put quotes around it"))


class _Reader:
    """Reads one schema. Places are those of the definitions, where there are references."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._num_nodes = 0

    def read(self, node: Any, place: str, refs: _References) -> TypedSchema:
        self._num_nodes += 1
        if self._num_nodes > _MOST_NODES:
            raise ValueError(f"written out, the schema has more than {_MOST_NODES:,} parts")
        if not isinstance(node, Mapping):
            reason = f"the schema {node} has no type"
            raise ValueError(at_path(place, reason))  # noqa: TRY004 - what pydantic reports
        node = {key: value for key, value in node.items() if key not in _ANNOTATIONS}
        if "$ref" in node:
            _alone(node, "$ref", place)
            return self._read_reference(node["$ref"], place, refs)
        if "allOf" in node:
            _alone(node, "allOf", place)
            if len(node["allOf"]) != 1:
                raise ValueError(at_path(place, "allOf of several schemas; write them as one"))
            return self.read(node["allOf"][0], join_path(place, "allOf", 0), refs)
        for key in ("anyOf", "oneOf"):
            if key in node:
                _alone(node, key, place)
                return self._read_choice(key, node[key], place, refs)
        return self._read_typed(node, place, refs)

    def _read_reference(self, ref: str, place: str, refs: _References) -> TypedSchema:
        if ref != "#" and not ref.startswith("#/"):
            raise ValueError(at_path(place, f"$ref {ref}: only references within the schema (#/…)"))
        escaped = unquote(ref).split("/")[1:]
        keys = tuple(key.replace("~1", "/").replace("~0", "~") for key in escaped)
        if keys in refs or not keys:
            raise ValueError(at_path(place, f"$ref {ref} is recursive; a column's type has an end"))
        target: Any = self._root
        for key in keys:
            if not isinstance(target, Mapping) or key not in target:
                raise ValueError(at_path(place, f"$ref {ref}: the schema has no such part"))
            target = target[key]
        return self.read(target, join_path("", *keys), (*refs, keys))

    def _read_choice(
        self, key: str, branches: Sequence[Any], place: str, refs: _References
    ) -> TypedSchema:
        schemas: list[Mapping[str, Any]] = []
        types: list[pa.DataType] = []
        for position, branch in enumerate(branches):
            if isinstance(branch, Mapping) and branch.get("type") == "null":
                schemas.append({"type": "null"})
                continue
            typed = self.read(branch, join_path(place, key, position), refs)
            schemas.append(typed.schema)
            types.append(typed.type)
        if not types:
            raise ValueError(at_path(place, f"{key}: nothing but null"))
        if any(not type_.equals(types[0]) for type_ in types):
            names = " and ".join(dict.fromkeys(map(str, types)))
            raise ValueError(at_path(place, f"{key} of {names}; a column has one type"))
        return TypedSchema({key: schemas}, types[0])

    def _read_typed(self, node: dict[str, Any], place: str, refs: _References) -> TypedSchema:
        for key in node:
            if key not in _TYPED | _CONSTRAINTS:
                raise ValueError(at_path(place, f"{key}: {_HINTS.get(key, 'not supported')}"))
        kind = _kind(node, place)
        if kind == "object":
            return self._read_object(node, place, refs)
        if kind == "array":
            if "items" not in node:
                raise ValueError(at_path(place, "items is missing: say what the list holds"))
            items = self.read(node["items"], join_path(place, "items"), refs)
            return TypedSchema({**node, "items": items.schema}, pa.list_(items.type))
        type_ = _SCALARS[kind]
        if kind == "string":
            type_ = FORMATS.get(node.get("format", ""), type_)
        _check_values(node, type_, place)
        return TypedSchema(node, type_)

    def _read_object(self, node: dict[str, Any], place: str, refs: _References) -> TypedSchema:
        if node.get("additionalProperties", False) is not False:
            raise ValueError(
                at_path(place, "additionalProperties: columns need names: list the properties")
            )
        properties: Mapping[str, Any] = node.get("properties", {})
        if not properties:
            raise ValueError(at_path(place, "properties: an object needs at least one"))
        if "" in properties:
            raise ValueError(at_path(place, "properties: a property needs a name"))
        for name in node.get("required", ()):
            if name not in properties:
                raise ValueError(at_path(place, f"required: {name} is none of the properties"))
        typed = {
            name: self.read(inner, join_path(place, "properties", name), refs)
            for name, inner in properties.items()
        }
        schemas = {name: inner.schema for name, inner in typed.items()}
        return TypedSchema(
            {**node, "properties": schemas, "additionalProperties": False},
            pa.struct([pa.field(name, inner.type) for name, inner in typed.items()]),
        )


def _alone(node: Mapping[str, Any], key: str, place: str) -> None:
    beside = [other for other in node if other != key]
    if beside:
        raise ValueError(at_path(place, f"{beside[0]} beside {key}; write both in one schema"))


def _kind(node: Mapping[str, Any], place: str) -> str:
    """The node's one type beside null."""
    declared = node.get("type")
    kinds = [declared] if isinstance(declared, str) else list(declared or ())
    kinds = [kind for kind in kinds if kind != "null"]
    if len(kinds) > 1:
        raise ValueError(at_path(place, f"type: {' and '.join(kinds)}; a column has one type"))
    found = {_kind_of(value, place) for value in _values(node) if value is not None}
    if not kinds:
        if not found:
            what = "type is missing" if declared is None else "type: nothing but null"
            raise ValueError(at_path(place, f"{what}; say what it holds"))
        if found == {"integer", "number"}:
            return "number"
        if len(found) > 1:
            raise ValueError(
                at_path(place, f"values of {' and '.join(sorted(found))}; use one type")
            )
        return found.pop()
    accepted = {"number": {"integer", "number"}}.get(kinds[0], {kinds[0]})
    for kind in sorted(found - accepted):
        raise ValueError(
            at_path(place, f"a value of type {kind} where type is {kinds[0]}; quotes make text")
        )
    return kinds[0]


def _values(node: Mapping[str, Any]) -> list[Any]:
    return [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]


def _kind_of(value: Any, place: str) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
    raise ValueError(at_path(place, "an enum holds strings, numbers or truth values"))


def _check_values(node: Mapping[str, Any], type_: pa.DataType, place: str) -> None:
    for value in _values(node):
        try:
            cell(value, type_)
        except ValueError as error:
            raise ValueError(at_path(place, str(error))) from error


class AnswerReader:
    """Reads answers written by a schema of objects as cells of its type."""

    def __init__(self, typed: TypedSchema) -> None:
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - as above

        checker = Draft202012Validator.FORMAT_CHECKER
        self._validator = Draft202012Validator(typed.schema, format_checker=checker)
        self._type = typed.type

    def read(self, text: str) -> dict[str, Any]:
        """The answer's cells by property. Raises `ValueError` with the place in the answer."""
        try:
            value = json.loads(
                text,
                parse_constant=_refuse_constant,
                parse_int=_integer,
                object_pairs_hook=_refuse_doubled,
            )
            for error in self._validator.iter_errors(value):
                raise ValueError(
                    at_path(path_of(error.absolute_path), shorten_message(error.message))
                )
            cells: dict[str, Any] = cell(value, self._type)
        except RecursionError:
            raise ValueError("the answer is nested too deeply") from None
        except OverflowError as error:
            raise ValueError(f"a number is too large: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"the answer is not JSON: {error}") from error
        return cells


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> float:
    """A longer number is beyond 64 bits, and Python refuses to read one of 5,000 digits."""
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _refuse_doubled(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the property {doubled!r} stands twice")
    return value
