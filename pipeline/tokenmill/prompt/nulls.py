"""Nulls in templates: one that would be printed as the word None raises an error instead.

`{% if … %}` and the filter `default` are the ways out. Lists and structs that are printed whole are
printed as Python writes them, nulls included; the filter `tojson` prints them as JSON.
"""

import json
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import make_attrgetter

# Filters that have an answer to null: a default, or JSON's null.
_FILTERS_FOR_NULLS = frozenset({"default", "d", "int", "float", "tojson"})
# Filters that print their arguments.
_PRINTING_ARGUMENTS = frozenset({"format", "replace"})


class NullValue(jinja2.TemplateRuntimeError):
    """A template prints a null."""


class FieldOfNull(jinja2.StrictUndefined):
    """A field of a null struct: undefined, false in a condition, and an error if it is printed."""

    __slots__ = ()
    __bool__ = jinja2.Undefined.__bool__  # type: ignore[assignment]

    def __getattr__(self, name: str) -> "FieldOfNull":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    __getitem__ = __getattr__  # type: ignore[assignment]


def field_of_null() -> FieldOfNull:
    """What a template has for any field of a null."""
    return FieldOfNull(hint="a field of a null is printed", exc=NullValue)


def refuse_null(value: Any, label: str) -> Any:
    """Return the value. Raises `NullValue` if it is null; `label` is its name in the template."""
    if value is None or isinstance(value, FieldOfNull):
        name = label or "a value that the template prints"
        cure = (
            f"write {{% if {label or '…'} %}} around it, or {{{{ {label or '…'} | default('…') }}}}"
        )
        raise NullValue(f"{name} is null; {cure}")
    return value


def printed(value: Any, label: str) -> Any:
    """What a template prints of a value: bytes as text. Raises as `refuse_null`.

    Raises `UnicodeDecodeError` for bytes that are not UTF-8.
    """
    value = refuse_null(value, label)
    return value.decode() if isinstance(value, bytes) else value


def label_of(node: nodes.Node) -> str:
    """The name of a value as the template writes it, or an empty text."""
    match node:
        case nodes.Name():
            return node.name
        case nodes.Getattr() if base := label_of(node.node):
            return f"{base}.{node.attr}"
        case nodes.Getitem(arg=nodes.Const()) if base := label_of(node.node):
            return f"{base}[{json.dumps(node.arg.as_const())}]"
    return ""


def with_nulls_refused(name: str, func: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that raises `NullValue` for a null that it would print."""
    if name in _FILTERS_FOR_NULLS:
        return func
    has_context = hasattr(func, "jinja_pass_arg")

    @wraps(func)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        values = args[1:] if has_context else args
        if name in _PRINTING_ARGUMENTS:
            check_arguments(values[1:], kwargs.values())
        refuse_null(values[0], "")
        return func(*args, **kwargs)

    return filtered


def check_arguments(*arguments: Iterable[Any]) -> None:
    """Raise `NullValue` if there is a null among the arguments of a text format."""
    for values in arguments:
        for value in values:
            refuse_null(value, "")


def default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    """Jinja2's filter, which also replaces null."""
    is_absent = value is None or isinstance(value, jinja2.Undefined)
    return default_value if is_absent or (boolean and not value) else value


def joined(
    environment: jinja2.Environment,
    value: Iterable[Any],
    d: str = "",
    attribute: str | int | None = None,
) -> str:
    """Jinja2's filter `join`, which raises `NullValue` for a null among the elements."""
    elements = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return str(refuse_null(d, "")).join(str(printed(element, "")) for element in elements)
