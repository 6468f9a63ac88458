"""The sandbox for templates: Jinja2's immutable sandbox, with limits on time and size.

A job writes the template, but what it produces depends on the row: `{{ text * 1000000 }}`, or
nested loops, must cost one row and not the worker. The time is checked in every iteration of a
loop, call, filter and operation. What could produce a huge value in a single step is checked by
size before it runs.
"""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from tokenmill.prompt.nulls import (
    NullValue,
    check_arguments,
    default,
    field_of_null,
    joined,
    label_of,
    printed,
    with_nulls_refused,
)

_LOOP_FILTER = "tokenmill_loop"
_CONCAT_FILTER = "tokenmill_concat"
_PRINT_FILTER = "tokenmill_print"
# Widths in a format string: `%1000d`, `%.1000f`, `{:>1000}`.
_WIDTH = re.compile(r"%[-+ #0]*\.?(\d+)|\{[^{}]*?(\d+)[^{}]*\}")
# A width that is passed as an argument.
_WIDTH_ARGUMENT = re.compile(r"%[-+ #0]*\.?\*|\{[^{}]*\{")
_FORMATS = ("format", "format_map")
# Methods and filters whose result can be as long as a number among their arguments.
_WIDENING = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson"}
    | {"generate_lorem_ipsum", "to_bytes"}
)


class TemplateLimit(SecurityError):
    """A template takes too long or produces too much."""


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """How much time and memory a template may use.

    `max_seconds` is the time for one rendered template, a million times what an ordinary prompt
    takes. `max_characters` applies to its text and to every text on the way to it, `max_items` to a
    repeated list, and `max_bits` to an integer.
    """

    max_seconds: float = 10.0
    max_characters: int = 2**26
    max_items: int = 2**20
    max_bits: int = 2**16


DEFAULT_LIMITS = TemplateLimits()


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of one prompt; `render` renders its templates."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, limits: TemplateLimits = DEFAULT_LIMITS) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self._limits = limits
        self._deadline = float("inf")
        filters = {**self.filters, "default": default, "d": default}
        filters["join"] = jinja2.pass_environment(joined)
        self.filters = {
            name: self._limited(with_nulls_refused(name, func)) for name, func in filters.items()
        }
        self.filters[_PRINT_FILTER] = printed
        self.filters[_LOOP_FILTER] = self._timed_iteration
        self.filters[_CONCAT_FILTER] = self._concatenate

    def compile_tree(self, tree: nodes.Template) -> jinja2.Template:
        """Compile a parsed template, with the limits built in."""
        template = self.from_string(_InsertLimits(self).visit(tree))
        # The globals are layers of dictionaries, which Jinja2 would copy name by name for each row.
        template.globals = dict(template.globals)
        return template

    def apply_operator(self, operator: str, left: Any, right: Any) -> Any:
        """The result of a binary operator.

        Raises `TemplateLimit` instead of producing a huge value, and what the operator raises.
        """
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            self._check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            arguments = right if isinstance(right, tuple) else (right,)
            check_arguments(arguments)
            self._check_format(left, arguments)
        elif operator == "+" and isinstance(left, str):
            check_arguments((right,))
            self._check_size(len(left) + (len(right) if isinstance(right, str) else 0))
        return self.binop_table[operator](left, right)

    def render(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        """The text of a template. Raises `TemplateLimit`, and whatever the template raises."""
        self._deadline = time.monotonic() + self._limits.max_seconds
        pieces = []
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            self._check_size(size)
            self._check_time()
            pieces.append(piece)
        return "".join(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return field_of_null() if obj is None else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return field_of_null() if obj is None else super().getitem(obj, argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_time()
        # For `format` the sandbox passes a wrapper of the method.
        method = getattr(obj, "__wrapped__", obj)
        receiver = getattr(method, "__self__", None)
        name = getattr(method, "__name__", "")
        if isinstance(receiver, str) and name in _FORMATS:
            check_arguments(args, kwargs.values())
        self._check_widening(name, receiver, args, kwargs)
        return self._checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - Jinja2's signature
        self._check_time()
        return self.apply_operator(operator, left, right)

    def _timed_iteration(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._check_time()
            yield item

    def _concatenate(self, values: list[Any], labels: list[str]) -> str:
        self._check_time()
        texts = [str(printed(value, label)) for value, label in zip(values, labels, strict=True)]
        self._check_size(sum(map(len, texts)))
        return "".join(texts)

    def _limited(self, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._check_time()
            # Jinja2 passes the environment or context to some filters, as the first argument.
            value, *rest = args[1:] if hasattr(func, "jinja_pass_arg") else args
            self._check_widening(func.__name__.removeprefix("do_"), value, rest, kwargs)
            return self._checked(func(*args, **kwargs))

        return limited

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TemplateLimit(f"the template takes longer than {self._limits.max_seconds:g} s")

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_characters:
            raise TemplateLimit(
                f"the template makes a text of more than {self._limits.max_characters:,} characters"
            )

    def _checked(self, value: Any) -> Any:
        if isinstance(value, str | bytes):
            self._check_size(len(value))
        return value

    def _check_product(self, left: Any, right: Any) -> None:
        for repeated, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(repeated, str | bytes | list | tuple):
                is_text = isinstance(repeated, str | bytes)
                limit = self._limits.max_characters if is_text else self._limits.max_items
                if len(repeated) * times > limit:
                    raise TemplateLimit(f"the template makes more than {limit:,} of one value")
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())

    def _check_power(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * max(right, 0))

    def _check_bits(self, count: int) -> None:
        if count > self._limits.max_bits:
            raise TemplateLimit(
                f"the template makes a number of more than {self._limits.max_bits:,} bits"
            )

    def _check_format(self, text: str, arguments: Iterable[Any]) -> None:
        widths = [int((one or other)[:12]) for one, other in _WIDTH.findall(text)]
        if _WIDTH_ARGUMENT.search(text):
            widths += [argument for argument in arguments if isinstance(argument, int)]
        self._check_size(max(widths, default=0))

    def _check_widening(
        self, name: str, value: Any, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        """Check the size of what a method of `value`, or a filter applied to it, would produce."""
        passed = [*arguments, *named.values()]
        if name in _WIDENING:
            widths = (abs(argument) for argument in passed if isinstance(argument, int))
            self._check_size(max(widths, default=0))
        elif not isinstance(value, str):
            return
        elif name in _FORMATS:
            self._check_format(value, passed)
        elif name == "replace" and len(passed) > 1:
            old, new = str(passed[0]), str(passed[1])
            self._check_size(len(value) + value.count(old) * max(0, len(new) - len(old)))


class _InsertLimits(NodeTransformer):
    """Wraps what a template loops over or prints in a filter, and replaces `~` with one.

    Operations on constants are computed here, so that their errors are found before any row.
    """

    def __init__(self, sandbox: TemplateSandbox) -> None:
        self._sandbox = sandbox
        self._context = nodes.EvalContext(sandbox)

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja2's name
        self.generic_visit(node)
        node.iter = _filter_node(node.iter, _LOOP_FILTER)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - Jinja2's name
        labels = [label_of(part) for part in node.nodes]
        self.generic_visit(node)
        return _filter_node(nodes.List(node.nodes, lineno=node.lineno), _CONCAT_FILTER, labels)

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802 - Jinja2's name
        labels = [label_of(part) for part in node.nodes]
        self.generic_visit(node)
        node.nodes = [
            part
            if isinstance(part, nodes.TemplateData)
            else _filter_node(part, _PRINT_FILTER, label)
            for part, label in zip(node.nodes, labels, strict=True)
        ]
        return node

    def _fold_constants(self, node: nodes.BinExpr) -> nodes.Expr:
        self.generic_visit(node)
        try:
            left, right = (side.as_const(self._context) for side in (node.left, node.right))
            value = self._sandbox.apply_operator(node.operator, left, right)
        except (nodes.Impossible, NullValue, ArithmeticError, TypeError, ValueError):
            # An error is reported when a row reaches it, which may never happen.
            return node
        return nodes.Const(value, lineno=node.lineno)

    visit_Add = visit_Mul = visit_Pow = visit_Mod = _fold_constants  # noqa: N815 - Jinja2's names


def _filter_node(node: nodes.Node, name: str, *arguments: Any) -> nodes.Filter:
    constants: list[nodes.Expr] = [nodes.Const(argument) for argument in arguments]
    value = cast(nodes.Expr, node)
    return nodes.Filter(value, name, constants, [], None, None, lineno=node.lineno)
