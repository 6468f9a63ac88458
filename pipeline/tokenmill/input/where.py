"""Translate `input.where`, a SQL condition, to an Arrow expression that skips row groups.

Nulls follow SQL: a comparison with null is neither true nor false, and excludes the row.
"""

import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from tokenmill.errors import UserError

_COMPARISONS: dict[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_JOINS: dict[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.And: operator.and_,
    exp.Or: operator.or_,
}
_SUPPORTED = "=, <>, <, <=, >, >=, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL, columns and literals"
# The translated parts of a node. A node with another part (the table of `meta.a`, SYMMETRIC of
# BETWEEN) is refused.
_NODE_PARTS = frozenset({"this", "expression", "expressions", "low", "high", "negate", "quoted"})
_LITERAL_PARTS = frozenset({"this", "is_string"})
# Longer lists are looked up in a set, which cannot skip row groups as a chain of comparisons can.
# Arrow recurses into a chain, and one of some 9,000 comparisons overflows the stack.
_MAX_COMPARED_LIST = 100
_MAX_CHAIN = 2_000


def where_columns(where: str) -> frozenset[str]:
    """The columns in a condition. Raises `UserError` if it does not parse."""
    return frozenset(column.name for column in _parse(where).find_all(exp.Column))


def where_expression(where: str, schema: pa.Schema) -> pc.Expression:
    """Translate a condition over columns of `schema`. Raises `UserError` if it is not supported."""
    expression = _Translation(where, schema).of(_parse(where))
    try:
        empty = schema.empty_table()
        empty.filter(expression)
    except (pa.ArrowException, NotImplementedError) as error:
        raise UserError(f"input.where: {where!r} does not fit the columns: {error}") from error
    return expression


def _parse(where: str) -> exp.Expression:
    try:
        tree = sqlglot.parse_one(where)
    except sqlglot.errors.SqlglotError as error:
        raise UserError(
            f"input.where: {where!r} is not a SQL condition{_position(error)}; write it like "
            "language = 'en' AND year > 2000"
        ) from error
    except RecursionError:
        raise UserError("input.where: the condition is nested too deeply; flatten it") from None
    for node in tree.walk():
        parts = _LITERAL_PARTS if isinstance(node, exp.Literal) else _NODE_PARTS
        if any(part and name not in parts for name, part in node.args.items()):
            raise _unsupported(node, where)
    return tree


def _position(error: sqlglot.errors.SqlglotError) -> str:
    """The position of a parse error. The rest of the parser's message names its own classes."""
    errors = error.errors if isinstance(error, sqlglot.errors.ParseError) else []
    return f" (see character {errors[0]['col']})" if errors else ""


def _unsupported(node: exp.Expression, where: str) -> UserError:
    return UserError(f"input.where: {node.sql()} in {where!r} is not supported; use {_SUPPORTED}")


class _Translation:
    def __init__(self, where: str, schema: pa.Schema) -> None:
        self._where = where
        self._schema = schema

    def of(self, node: exp.Expression) -> pc.Expression:
        """Translate a condition."""
        condition = self._as_written(node)
        return ~condition if node.args.get("negate") else condition

    def _as_written(self, node: exp.Expression) -> pc.Expression:  # noqa: C901 - one case for each kind of node
        match node:
            case exp.Paren():
                return self.of(node.this)
            case exp.And() | exp.Or():
                parts = [self.of(part) for part in node.flatten()]
                return self._join(_JOINS[type(node)], parts)
            case exp.Not():
                return ~self.of(node.this)
            case exp.Is() if isinstance(node.expression, exp.Null):
                return self._field(node.this).is_null()
            case exp.Between():
                low, high = node.args["low"], node.args["high"]
                return self._compare(exp.GTE, node.this, low) & self._compare(
                    exp.LTE, node.this, high
                )
            case exp.In() if node.expressions:
                return self._one_of(node.this, node.expressions)
            case exp.Like():
                return self._like(node)
            case exp.Column():
                return self._field(node)
            case exp.Boolean():
                return pc.scalar(bool(node.this))
        if type(node) in _COMPARISONS:
            return self._compare(type(node), node.this, node.expression)
        raise _unsupported(node, self._where)

    def _join(
        self, how: Callable[[Any, Any], Any], parts: Sequence[pc.Expression]
    ) -> pc.Expression:
        if len(parts) > _MAX_CHAIN:
            raise UserError(
                f"input.where: {len(parts):,} conditions in one chain are too many (at most "
                f"{_MAX_CHAIN:,}); use column IN (…), whose list can have any length"
            )
        # A balanced tree keeps the depth small.
        while len(parts) > 1:
            parts = [reduce(how, parts[start : start + 2]) for start in range(0, len(parts), 2)]
        return parts[0]

    def _one_of(self, column: exp.Expression, items: Sequence[exp.Expression]) -> pc.Expression:
        if len(items) <= _MAX_COMPARED_LIST:
            equal = [self._compare(exp.EQ, column, item) for item in items]
            return self._join(operator.or_, equal)
        field, kind = self._field(column), self._type(column)
        # A number that the column's type cannot represent equals none of its values.
        values = [value for item in items if (value := self._value(item, kind)).type == kind]
        is_in = field.isin(pa.array(values, kind))
        # For null, Arrow's isin is false; in SQL it is unknown.
        return pc.if_else(field.is_valid(), is_in, pc.scalar(pa.scalar(None, pa.bool_())))

    def _like(self, node: exp.Like) -> pc.Expression:
        pattern = node.expression
        if not (isinstance(pattern, exp.Literal) and pattern.is_string):
            raise _unsupported(node, self._where)
        field = self._field(node.this)
        if pa.types.is_dictionary(self._schema.field(node.this.name).type):
            field = field.cast(self._type(node.this))
        return pc.match_like(field, pattern.name)

    def _compare(
        self, kind: type[exp.Expression], left: exp.Expression, right: exp.Expression
    ) -> pc.Expression:
        columns = [node for node in (left, right) if isinstance(node, exp.Column)]
        as_type = self._type(columns[0]) if columns else None
        return _COMPARISONS[kind](self._operand(left, as_type), self._operand(right, as_type))

    def _operand(self, node: exp.Expression, as_type: pa.DataType | None) -> pc.Expression:
        if isinstance(node, exp.Column):
            return self._field(node)
        return pc.scalar(self._value(node, as_type))

    def _value(self, node: exp.Expression, as_type: pa.DataType | None) -> pa.Scalar:
        value = self._literal(node)
        try:
            if isinstance(value, int | Decimal) and not isinstance(value, bool):
                return _number(value, as_type)
            return pa.scalar(value) if as_type is None else pa.scalar(value).cast(as_type)
        except pa.ArrowException as error:
            raise UserError(
                f"input.where: {node.sql()} in {self._where!r} does not fit the column's type "
                f"{as_type}; compare with a value of that type"
            ) from error

    def _field(self, node: exp.Expression) -> pc.Expression:
        if not isinstance(node, exp.Column):
            raise _unsupported(node, self._where)
        field, kind = pc.field(node.name), self._schema.field(node.name).type
        return field.cast(kind.storage_type) if isinstance(kind, pa.JsonType) else field

    def _type(self, column: exp.Column) -> pa.DataType:
        kind = self._schema.field(column.name).type
        if isinstance(kind, pa.JsonType):
            return kind.storage_type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def _literal(self, node: exp.Expression) -> Any:
        if isinstance(node, exp.Neg):
            return -self._literal(node.this)
        if isinstance(node, exp.Boolean):
            return bool(node.this)
        if not isinstance(node, exp.Literal):
            raise _unsupported(node, self._where)
        return node.to_py()


def _number(value: int | Decimal, as_type: pa.DataType | None) -> pa.Scalar:
    """The number in the column's type, which skips row groups; exact if it does not fit."""
    if as_type is not None and pa.types.is_floating(as_type):
        return pa.scalar(float(Decimal(value))).cast(as_type)
    exact = pa.scalar(Decimal(value))
    if as_type is None:
        return exact
    if not (pa.types.is_integer(as_type) or pa.types.is_decimal(as_type)):
        # Arrow would treat it as a number of days or microseconds.
        raise pa.ArrowInvalid("not a number")
    try:
        return exact.cast(as_type)
    except pa.ArrowInvalid:
        # The widest precision; otherwise Arrow finds no common type for both sides.
        return exact.cast(pa.decimal256(exact.type.precision, exact.type.scale))
