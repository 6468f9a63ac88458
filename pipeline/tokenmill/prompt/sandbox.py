"""Where templates run: Jinja2's immutable sandbox, with bounds on time and size.

A template is the job's, but what it makes of a row is not known before: `{{ text * 1000000 }}`, or
loops in loops, must cost one row and not the worker. Time is looked at in every turn of a loop,
call, filter and sum; what could make a huge value in one step is refused by its size before.
"""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: Of one rendered template, and of every value on the way to it.
MOST_CHARACTERS = 2**26
_MOST_ITEMS = 2**20
_MOST_BITS = 2**16
# A million times what the usual prompt takes.
MOST_SECONDS = 10.0
_LOOP = "tokenmill_turns"
_JOINED = "tokenmill_joined"
# Widths in a format: `%1000d`, `%.1000f`, `{:>1000}`.
_WIDTH = re.compile(r"%[-+ #0]*\.?(\d+)|\{[^{}]*?(\d+)[^{}]*\}")
# A width that is an argument.
_GIVEN_WIDTH = re.compile(r"%[-+ #0]*\.?\*|\{[^{}]*\{")
# What makes more than it is given, by a number among what it is given.
_WIDENING = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson"}
    | {"generate_lorem_ipsum", "to_bytes"}
)


class TemplateLimit(SecurityError):
    """A template takes too long or makes too much."""


class CappedSandbox(ImmutableSandboxedEnvironment):
    """One per prompt; templates of it are rendered by `render`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self._deadline = float("inf")
        self.filters = {name: self._capped(each) for name, each in self.filters.items()}
        self.filters[_LOOP] = self._turns
        self.filters[_JOINED] = self._joined

    def compiled(self, tree: nodes.Template) -> jinja2.Template:
        """A parsed template, bounded."""
        template = self.from_string(_Bounds(self).visit(tree))
        # Layers of dictionaries, which Jinja2 would copy name by name for each row.
        template.globals = dict(template.globals)
        return template

    def computed(self, operator: str, left: Any, right: Any) -> Any:
        """What an operator makes of two values. Raises `TemplateLimit`, and what it raises."""
        if operator == "*":
            _refuse_product(left, right)
        elif operator == "**":
            _refuse_power(left, right)
        elif operator == "%" and isinstance(left, str):
            _refuse_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            _refuse_size(len(left) + len(right))
        return self.binop_table[operator](left, right)

    def render(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        """A template's text. Raises what a template can, `TemplateLimit` among it."""
        self._deadline = time.monotonic() + MOST_SECONDS
        pieces = []
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            _refuse_size(size)
            self._look_at_time()
            pieces.append(piece)
        return "".join(pieces)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._look_at_time()
        # Of `format` the sandbox gives a wrapper.
        method = getattr(obj, "__wrapped__", obj)
        own = getattr(method, "__self__", None)
        _refuse_widening(getattr(method, "__name__", ""), own, args, kwargs)
        return _checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - jinja's
        self._look_at_time()
        return self.computed(operator, left, right)

    def _look_at_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TemplateLimit(f"the template takes longer than {MOST_SECONDS:g} s")

    def _turns(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._look_at_time()
            yield item

    def _joined(self, values: list[Any]) -> str:
        self._look_at_time()
        texts = [str(value) for value in values]
        _refuse_size(sum(map(len, texts)))
        return "".join(texts)

    def _capped(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def capped(*args: Any, **kwargs: Any) -> Any:
            self._look_at_time()
            # Some are passed the environment or context first.
            value, *rest = args[1:] if hasattr(own, "jinja_pass_arg") else args
            _refuse_widening(own.__name__.removeprefix("do_"), value, rest, kwargs)
            return _checked(own(*args, **kwargs))

        return capped


class _Bounds(NodeTransformer):
    """Puts a filter around what a template loops over, and in the place of `~`.

    What has no column in it is computed, so that its mistakes are found before any row.
    """

    def __init__(self, sandbox: CappedSandbox) -> None:
        self._sandbox = sandbox
        self._context = nodes.EvalContext(sandbox)

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - jinja's name
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - jinja's name
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def _computed(self, node: nodes.BinExpr) -> nodes.Expr:
        self.generic_visit(node)
        try:
            left, right = (side.as_const(self._context) for side in (node.left, node.right))
            value = self._sandbox.computed(node.operator, left, right)
        except (nodes.Impossible, ArithmeticError, TypeError, ValueError):
            # A mistake is told where it is reached, which it may never be.
            return node
        return nodes.Const(value, lineno=node.lineno)

    visit_Add = visit_Mul = visit_Pow = visit_Mod = _computed  # noqa: N815 - jinja's names


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _refuse_size(size: int) -> None:
    if size > MOST_CHARACTERS:
        raise TemplateLimit(
            f"the template makes a text of more than {MOST_CHARACTERS:,} characters"
        )


def _checked(value: Any) -> Any:
    if isinstance(value, str | bytes):
        _refuse_size(len(value))
    return value


def _refuse_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(many, str | bytes | list | tuple):
            most = MOST_CHARACTERS if isinstance(many, str | bytes) else _MOST_ITEMS
            if len(many) * times > most:
                raise TemplateLimit(f"the template makes more than {most:,} of one value")
    if isinstance(left, int) and isinstance(right, int):
        _refuse_bits(left.bit_length() + right.bit_length())


def _refuse_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _refuse_bits(left.bit_length() * max(right, 0))


def _refuse_bits(count: int) -> None:
    if count > _MOST_BITS:
        raise TemplateLimit(f"the template makes a number of more than {_MOST_BITS:,} bits")


def _refuse_format(text: str, arguments: Iterable[Any]) -> None:
    widths = [int((one or other)[:12]) for one, other in _WIDTH.findall(text)]
    if _GIVEN_WIDTH.search(text):
        widths += [argument for argument in arguments if isinstance(argument, int)]
    _refuse_size(max(widths, default=0))


def _refuse_widening(
    name: str, own: Any, arguments: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """What a method of `own`, or a filter of that name over it, would make."""
    given = [*arguments, *named.values()]
    if name in _WIDENING:
        _refuse_size(max((abs(each) for each in given if isinstance(each, int)), default=0))
    elif not isinstance(own, str):
        return
    elif name in ("format", "format_map"):
        _refuse_format(own, given)
    elif name == "replace" and len(given) > 1:
        old, new = str(given[0]), str(given[1])
        _refuse_size(len(own) + own.count(old) * max(0, len(new) - len(old)))
