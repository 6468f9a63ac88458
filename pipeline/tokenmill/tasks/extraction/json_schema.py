"""Map JSON schemas to Arrow types, and read JSON answers as cells of those types.

The types are string, int64, float64, bool, list and struct; `format: date-time` is a timestamp in
UTC and `format: date` a date. A JSON null, an absent property and a row without an answer all
become null. If a column cannot represent part of a schema, the error names the path to that part.
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
    join_path,
    path_of,
    shorten_message,
    to_cell,
)

# Keywords that describe a value without constraining it. Engines ignore them.
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
# Keywords that constrain a value without changing its type.
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
# Keywords that determine the type.
_TYPE_KEYWORDS = frozenset(
    {"additionalProperties", "const", "enum", "format", "items", "properties", "required", "type"}
)
_HINTS = {
    "dependentSchemas": "a column's type cannot depend on another column",
    "if": "a column's type cannot depend on another column",
    "nullable": 'write type: [string, "null"]',
    "patternProperties": "columns need names; list the properties",
    "prefixItems": "the items of a list have one type; use an object with a property for each",
}
_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_MAX_NODES = 10_000

#: The definitions that are being expanded, each as the keys that lead to it.
_References = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class TypedSchema:
    """A schema whose references are expanded, and the Arrow type of its values."""

    schema: Mapping[str, Any]
    type: pa.DataType


def read_object_schema(schema: Mapping[str, Any]) -> TypedSchema:
    """Read the schema of an object, whose Arrow type is a struct.

    The result has its references expanded, its annotations dropped and its objects closed to
    additional properties. Reading the resulting schema again changes nothing. Raises `ValueError`
    that names the path in the schema.
    """
    # Imported here because it takes a quarter of a second, which other jobs need not spend.
    from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415

    try:
        _check_is_json(schema, "")
        Draft202012Validator.check_schema(schema)
        typed = _SchemaReader(schema).read(schema, "", ())
    except SchemaError as error:
        raise ValueError(
            at_path(path_of(error.absolute_path), shorten_message(error.message))
        ) from error
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    if not pa.types.is_struct(typed.type):
        raise ValueError("type: must be object, since its properties become the columns")
    return typed


def _check_is_json(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                # YAML reads on, off, yes and no as booleans, and 1 as a number.
                reason = f"the key {key!r} is not a string; put quotes around it"
                raise ValueError(at_path(path, reason))  # noqa: TRY004 - pydantic reports ValueError only
            _check_is_json(item, join_path(path, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_is_json(item, join_path(path, position))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(at_path(path, f"{value!r} is not a JSON number"))
    elif not isinstance(value, str | int | float | None):
        raise ValueError(at_path(path, f"{value!r} is not a JSON value; put quotes around it"))


class _SchemaReader:
    """Reads one schema. Inside a reference, paths are those of the definition."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._num_nodes = 0

    def read(self, node: Any, path: str, refs: _References) -> TypedSchema:
        self._num_nodes += 1
        if self._num_nodes > _MAX_NODES:
            raise ValueError(
                f"the schema has more than {_MAX_NODES:,} parts after its references are expanded"
            )
        if not isinstance(node, Mapping):
            reason = f"the schema {node} has no type; use an object with a type"
            raise ValueError(at_path(path, reason))  # noqa: TRY004 - pydantic reports ValueError only
        node = {key: value for key, value in node.items() if key not in _ANNOTATIONS}
        if "$ref" in node:
            _check_is_only_key(node, "$ref", path)
            return self._read_reference(node["$ref"], path, refs)
        if "allOf" in node:
            _check_is_only_key(node, "allOf", path)
            if len(node["allOf"]) != 1:
                raise ValueError(at_path(path, "allOf has several schemas; merge them"))
            return self.read(node["allOf"][0], join_path(path, "allOf", 0), refs)
        for key in ("anyOf", "oneOf"):
            if key in node:
                _check_is_only_key(node, key, path)
                return self._read_choice(key, node[key], path, refs)
        return self._read_typed(node, path, refs)

    def _read_reference(self, ref: str, path: str, refs: _References) -> TypedSchema:
        if ref != "#" and not ref.startswith("#/"):
            reason = f"$ref {ref}: only references inside the schema (#/…) are supported"
            raise ValueError(at_path(path, reason))
        escaped = unquote(ref).split("/")[1:]
        keys = tuple(key.replace("~1", "/").replace("~0", "~") for key in escaped)
        if keys in refs or not keys:
            reason = f"$ref {ref} is recursive; a column's type must be finite"
            raise ValueError(at_path(path, reason))
        target: Any = self._root
        for key in keys:
            if not isinstance(target, Mapping) or key not in target:
                raise ValueError(at_path(path, f"$ref {ref}: not found in the schema"))
            target = target[key]
        return self.read(target, join_path("", *keys), (*refs, keys))

    def _read_choice(
        self, key: str, branches: Sequence[Any], path: str, refs: _References
    ) -> TypedSchema:
        schemas: list[Mapping[str, Any]] = []
        types: list[pa.DataType] = []
        for position, branch in enumerate(branches):
            if isinstance(branch, Mapping) and branch.get("type") == "null":
                schemas.append({"type": "null"})
                continue
            typed = self.read(branch, join_path(path, key, position), refs)
            schemas.append(typed.schema)
            types.append(typed.type)
        if not types:
            raise ValueError(at_path(path, f"{key} allows only null; add another type"))
        if any(not type_.equals(types[0]) for type_ in types):
            names = " and ".join(dict.fromkeys(map(str, types)))
            raise ValueError(at_path(path, f"{key} mixes {names}; a column has one type"))
        return TypedSchema({key: schemas}, types[0])

    def _read_typed(self, node: dict[str, Any], path: str, refs: _References) -> TypedSchema:
        for key in node:
            if key not in _TYPE_KEYWORDS | _CONSTRAINTS:
                raise ValueError(at_path(path, f"{key}: {_HINTS.get(key, 'not supported')}"))
        kind = _type_name(node, path)
        if kind == "object":
            return self._read_object(node, path, refs)
        if kind == "array":
            if "items" not in node:
                raise ValueError(at_path(path, "items is missing; add the schema of the items"))
            items = self.read(node["items"], join_path(path, "items"), refs)
            return TypedSchema({**node, "items": items.schema}, pa.list_(items.type))
        type_ = _SCALARS[kind]
        if kind == "string":
            type_ = FORMATS.get(node.get("format", ""), type_)
        _check_values(node, type_, path)
        return TypedSchema(node, type_)

    def _read_object(self, node: dict[str, Any], path: str, refs: _References) -> TypedSchema:
        if node.get("additionalProperties", False) is not False:
            raise ValueError(
                at_path(path, "additionalProperties: columns need names; list the properties")
            )
        properties: Mapping[str, Any] = node.get("properties", {})
        if not properties:
            raise ValueError(at_path(path, "properties: an object needs at least one"))
        if "" in properties:
            raise ValueError(at_path(path, "properties: a property needs a name"))
        for name in node.get("required", ()):
            if name not in properties:
                raise ValueError(at_path(path, f"required: {name} is not one of the properties"))
        typed = {
            name: self.read(inner, join_path(path, "properties", name), refs)
            for name, inner in properties.items()
        }
        schemas = {name: inner.schema for name, inner in typed.items()}
        return TypedSchema(
            {**node, "properties": schemas, "additionalProperties": False},
            pa.struct([pa.field(name, inner.type) for name, inner in typed.items()]),
        )


def _check_is_only_key(node: Mapping[str, Any], key: str, path: str) -> None:
    others = [other for other in node if other != key]
    if others:
        reason = f"{others[0]} next to {key} is not supported; merge both into one schema"
        raise ValueError(at_path(path, reason))


def _type_name(node: Mapping[str, Any], path: str) -> str:
    """The node's only type, apart from null: as declared, or that of its values."""
    declared = node.get("type")
    kinds = [declared] if isinstance(declared, str) else list(declared or ())
    kinds = [kind for kind in kinds if kind != "null"]
    if len(kinds) > 1:
        raise ValueError(at_path(path, f"type mixes {' and '.join(kinds)}; a column has one type"))
    value_kinds = {_type_name_of_value(value, path) for value in _values(node) if value is not None}
    if not kinds:
        if not value_kinds:
            problem = "type is missing; add one"
            if declared is not None:
                problem = "type allows only null; add another type"
            raise ValueError(at_path(path, problem))
        if value_kinds == {"integer", "number"}:
            return "number"
        if len(value_kinds) > 1:
            reason = f"the values mix {' and '.join(sorted(value_kinds))}; use one type"
            raise ValueError(at_path(path, reason))
        return value_kinds.pop()
    accepted = {"number": {"integer", "number"}}.get(kinds[0], {kinds[0]})
    for kind in sorted(value_kinds - accepted):
        reason = f"type is {kinds[0]}, but a value has type {kind}; put quotes around strings"
        raise ValueError(at_path(path, reason))
    return kinds[0]


def _values(node: Mapping[str, Any]) -> list[Any]:
    return [*node.get("enum", ()), *([node["const"]] if "const" in node else ())]


def _type_name_of_value(value: Any, path: str) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
    raise ValueError(at_path(path, "enum and const values must be strings, numbers or booleans"))


def _check_values(node: Mapping[str, Any], type_: pa.DataType, path: str) -> None:
    for value in _values(node):
        try:
            to_cell(value, type_)
        except ValueError as error:
            raise ValueError(at_path(path, str(error))) from error


class AnswerReader:
    """Reads the JSON answers of one schema as cells of its Arrow type."""

    def __init__(self, typed: TypedSchema) -> None:
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - slow to import

        checker = Draft202012Validator.FORMAT_CHECKER
        self._validator = Draft202012Validator(typed.schema, format_checker=checker)
        self._type = typed.type

    def read(self, text: str) -> dict[str, Any]:
        """The answer's cells by property. Raises `ValueError` that names the path in the answer."""
        try:
            value = json.loads(
                text,
                parse_constant=_reject_constant,
                parse_int=_parse_integer,
                object_pairs_hook=_check_unique_keys,
            )
            for error in self._validator.iter_errors(value):
                raise ValueError(
                    at_path(path_of(error.absolute_path), shorten_message(error.message))
                )
            cells: dict[str, Any] = to_cell(value, self._type)
        except RecursionError:
            raise ValueError("the answer is nested too deeply") from None
        except OverflowError as error:
            raise ValueError(f"a number is too large: {error}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"the answer is not JSON: {error}") from error
        return cells


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _parse_integer(digits: str) -> float:
    """Read longer integers as floats: they exceed 64 bits, and `int` rejects 5,000 digits."""
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the property {duplicate!r} occurs twice")
    return value
