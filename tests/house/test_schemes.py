"""URL schemes are known to `storage/` only."""

import ast
import re

import pytest
from helpers.house import NAMES, parse

_SCHEME = re.compile(r"(?:s3|file|memory)://")


def _is_prose(node: ast.AST) -> bool:
    """Whether a node holds texts only: a docstring, a raised message, an option's help."""
    if isinstance(node, ast.keyword):
        return node.arg in {"help", "description", "metavar"}
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Raise)


def schemes_in_code(tree: ast.Module) -> list[str]:
    """The strings with a scheme that the code computes with, by line."""
    texts = [node for node in ast.walk(tree) if _is_prose(node)]
    prose = {id(part) for node in texts for part in ast.walk(node)}
    return [
        f"line {node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _SCHEME.match(node.value)
        and id(node) not in prose
    ]


def test_only_storage_computes_with_schemes() -> None:
    """Other code asks `storage.open` what a URL is; texts for users may show an example."""
    found = {name: schemes_in_code(parse(path)) for name, path in NAMES.items()}
    assert [name for name in found if found[name] and not name.startswith("storage.")] == []
    assert found["storage.open"]


@pytest.mark.parametrize(
    ("line", "is_code"),
    [
        ('is_s3 = url.startswith("s3://")', True),
        ('is_absolute = url.startswith(("s3://", "/"))', True),
        ('url = f"file://{path}"', True),
        ('open_store("s3://bucket")', True),
        ('"""s3://bucket/prefix"""', False),
        ('raise UserError(f"s3://{name}: has no bucket")', False),
        ('option = Option(help="s3://bucket/prefix")', False),
    ],
)
def test_a_scheme_in_code_is_noticed(line: str, is_code: bool) -> None:
    """The check sees arguments, tuples and f-strings, and skips docstrings, help and messages."""
    assert bool(schemes_in_code(ast.parse(line))) is is_code
