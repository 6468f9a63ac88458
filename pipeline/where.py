"""`input.where`: a SQL condition as an Arrow expression that Parquet readers push down.

Nulls follow SQL: a comparison with null is neither true nor false, and its row is left out.
"""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp

from pipeline.errors import UserError

_COMPARISONS: dict[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}
_SUPPORTED = "=, <>, <, <=, >, >=, AND, OR, NOT, IN, BETWEEN, LIKE, IS NULL, columns and literals"


def where_columns(where: str) -> frozenset[str]:
    """The columns that a condition names. Raises `UserError` if it does not parse."""
    return frozenset(column.name for column in _parse(where).find_all(exp.Column))


def where_expression(where: str, schema: pa.Schema) -> pc.Expression:
    """The condition over columns of these types. Raises `UserError` for what it cannot say."""
    expression = _Translation(where, schema).of(_parse(where))
    try:
        empty = schema.empty_table()
        empty.filter(expression)
    except (pa.ArrowException, NotImplementedError) as error:
        raise UserError(f"input.where: {where!r} does not fit the columns: {error}") from error
    return expression


def _parse(where: str) -> exp.Expression:
    try:
        return sqlglot.parse_one(where)
    except sqlglot.errors.SqlglotError as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"input.where: {where!r} is not a SQL condition: {first_line}") from error


class _Translation:
    def __init__(self, where: str, schema: pa.Schema) -> None:
        self._where = where
        self._schema = schema

    def of(self, node: exp.Expression) -> pc.Expression:  # noqa: C901 - one case a kind of node
        """One condition, its parts translated first."""
        match node:
            case exp.Paren():
                return self.of(node.this)
            case exp.And():
                return self.of(node.left) & self.of(node.right)
            case exp.Or():
                return self.of(node.left) | self.of(node.right)
            case exp.Not():
                return ~self.of(node.this)
            case exp.Is() if isinstance(node.expression, exp.Null):
                return pc.field(self._column(node.this)).is_null()
            case exp.Between():
                low, high = node.args["low"], node.args["high"]
                return self._compare(exp.GTE, node.this, low) & self._compare(
                    exp.LTE, node.this, high
                )
            case exp.In() if node.expressions:
                # As a chain of comparisons, since Arrow's isin calls null a value.
                equal = [self._compare(exp.EQ, node.this, item) for item in node.expressions]
                return reduce(operator.or_, equal)
            case exp.Like():
                pattern = self._literal(node.expression)
                return pc.match_like(pc.field(self._column(node.this)), str(pattern))
            case exp.Column():
                return pc.field(self._column(node))
            case exp.Boolean():
                return pc.scalar(bool(node.this))
        if type(node) in _COMPARISONS:
            return self._compare(type(node), node.this, node.expression)
        raise self._unsupported(node)

    def _compare(
        self, kind: type[exp.Expression], left: exp.Expression, right: exp.Expression
    ) -> pc.Expression:
        compared = [node.name for node in (left, right) if isinstance(node, exp.Column)]
        as_type = self._schema.field(compared[0]).type if compared else None
        return _COMPARISONS[kind](self._operand(left, as_type), self._operand(right, as_type))

    def _operand(self, node: exp.Expression, as_type: pa.DataType | None) -> pc.Expression:
        if isinstance(node, exp.Column):
            return pc.field(self._column(node))
        value = pa.scalar(self._literal(node))
        if as_type is None or pa.types.is_floating(value.type):
            return pc.scalar(value)
        if pa.types.is_dictionary(as_type):
            as_type = as_type.value_type
        try:
            return pc.scalar(value.cast(as_type))
        except pa.ArrowException as error:
            raise UserError(
                f"input.where: {node.sql()} in {self._where!r} is not of the column's type "
                f"{as_type}"
            ) from error

    def _column(self, node: exp.Expression) -> str:
        if not isinstance(node, exp.Column):
            raise self._unsupported(node)
        return str(node.name)

    def _literal(self, node: exp.Expression) -> Any:
        if isinstance(node, exp.Neg):
            return -self._literal(node.this)
        if isinstance(node, exp.Boolean):
            return bool(node.this)
        if not isinstance(node, exp.Literal):
            raise self._unsupported(node)
        return node.to_py()

    def _unsupported(self, node: exp.Expression) -> UserError:
        return UserError(
            f"input.where: {node.sql()} in {self._where!r} is not supported; use {_SUPPORTED}"
        )
