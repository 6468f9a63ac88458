"""The names and types of vLLM's arguments, read from its source.

To import the classes of its engine arguments takes ten seconds, to parse their source milliseconds.
A type that is not made of plain data is `Any` here; vLLM checks it when the engine starts.
"""

import ast
import importlib.util
import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union

from pydantic import TypeAdapter, ValidationError

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean

_PLAIN_TYPES: Mapping[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, dict, list, set, tuple)},
}
# The class of a mapping among the engine arguments, by the argument.
_SECTIONS = {
    "speculative_config": ("config/speculative.py", "SpeculativeConfig"),
    "structured_outputs_config": ("config/structured_outputs.py", "StructuredOutputsConfig"),
}


def check_engine_arguments(arguments: Mapping[str, Any], key: str) -> None:
    """Raise `UserError` for an engine argument that vLLM does not have, or of another type.

    `key` is the job key of the arguments.
    """
    _check(arguments, key, "engine/arg_utils.py", "EngineArgs")


def check_sampling_names(values: Mapping[str, Any], key: str) -> None:
    """Raise `UserError` for a sampling parameter that vLLM does not have, with the nearest name.

    `key` is the job key of the parameters.
    """
    check_names(values, key, field_types("sampling_params.py", "SamplingParams"))


def _check(values: Mapping[str, Any], key: str, file: str, class_name: str) -> None:
    types = field_types(file, class_name)
    check_names(values, key, types)
    for name, value in values.items():
        if value is not None:
            check_type(value, types[name], f"{key}.{name}")
        if name in _SECTIONS and isinstance(value, Mapping):
            _check(value, f"{key}.{name}", *_SECTIONS[name])


def check_names(values: Mapping[str, Any], key: str, names: Collection[str]) -> None:
    """Raise `UserError` for a name of `values` that is not one of `names`, with the nearest one."""
    for name in values:
        if names and name not in names:
            raise UserError(f"{key}.{name}: {did_you_mean(name, names)}")


def check_type(value: Any, kind: Any, key: str) -> Any:
    """Return a job's value as a type that vLLM expects at `key`. Raises `UserError`.

    As in JSON, where a list may be a set and a mapping an object, but true is no number.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{key}: vLLM refuses it: {message}") from error
    except TypeError as error:
        raise UserError(f"{key}: vLLM refuses it: {error}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def field_types(file: str, class_name: str) -> Mapping[str, Any]:
    """The public annotated fields of a class in a file of vLLM. Empty if vLLM has no such class."""
    module = _module(file)
    node = module.get(class_name)
    if not isinstance(node, ast.ClassDef):
        return {}
    return {
        field.target.id: _type(field.annotation, file)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
    }


@cache
def _module(file: str) -> Mapping[str, ast.AST]:
    """What the top level of a file of vLLM binds to names: classes, values, and imports."""
    spec = importlib.util.find_spec("vllm")
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / file
    names: dict[str, ast.AST] = {}
    for node in ast.parse(path.read_text()).body if path is not None and path.is_file() else ():
        match node:
            case ast.ClassDef():
                names[node.name] = node
            case ast.Assign(targets=[ast.Name(id=name)]):
                names[name] = node.value
            case ast.ImportFrom():
                names |= dict.fromkeys((alias.name for alias in node.names), node)
    return names


def _type(node: ast.AST, file: str) -> Any:
    """The type that an annotation means in a file; `Any` if it is not made of plain types."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body, file)
        case ast.Name(id=name):
            return _PLAIN_TYPES.get(name) or _named_type(name, file)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _generic(Union, (_type(left, file), _type(right, file)))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[_literals(choices, file)]
        case ast.Subscript(value=ast.Name(id="dict" | "list" | "set" | "tuple" as name)):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return _generic(_PLAIN_TYPES[name], tuple(_type(part, file) for part in inner))
    return Any


def _generic(origin: Any, arguments: tuple[Any, ...]) -> Any:
    """A union, which is `Any` if one of its members is, or a collection of these types."""
    return Any if origin is Union and Any in arguments else origin[arguments]


def _named_type(name: str, file: str) -> Any:
    """What a name means as a type: a value of this file, or of a file that it is imported from."""
    match _module(file).get(name):
        case ast.ImportFrom(module=str(module)) if module.startswith("vllm."):
            return _named_type(name, module.removeprefix("vllm.").replace(".", "/") + ".py")
        case ast.Subscript() as value:
            return _type(value, file)
    return Any


def _literals(node: ast.AST, file: str) -> tuple[Any, ...]:
    """The values of a `Literal`, which may contain others by name."""
    if isinstance(node, ast.Tuple):
        return tuple(value for part in node.elts for value in _literals(part, file))
    if isinstance(node, ast.Constant):
        return (node.value,)
    kind = _type(node, file)
    return getattr(kind, "__args__", ())
