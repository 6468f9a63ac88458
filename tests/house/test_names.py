"""Private names: tests touch none of ours, and the package those of others only where guarded."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.house import NAMES, TESTS, imported_names, parse

#: The modules that may use private names of other packages, each of them tested by name.
PATCHES = {"cluster.ray_patches", "engine.vllm", "engine.vllm_params", "engine.vllm_start"}


def private_attributes(path: Path) -> Iterator[str]:
    """Underscored attributes of anything but the object itself."""
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Attribute) or not is_private(node.attr):
            continue
        owner = node.value
        own = isinstance(owner, ast.Name) and owner.id in {"self", "cls"}
        if not own and not isinstance(owner, ast.Call):
            yield f"{ast.unparse(owner)}.{node.attr}, line {node.lineno}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_exit"


@pytest.mark.parametrize("module", NAMES)
def test_private_names_of_others_are_used_in_the_patches_only(module: str) -> None:
    """Neither imports nor attributes with an underscore, of any other package or module."""
    imported = [
        name
        for name in imported_names(NAMES[module])
        if any(is_private(part) for part in name.split("."))
    ]
    if module not in PATCHES:
        assert imported == []
        assert list(private_attributes(NAMES[module])) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_use_public_names_only(path: Path) -> None:
    """What a test needs is public, or it tests too much of the inside."""
    private = [
        name
        for name in imported_names(path)
        if name.startswith("tokenmill.") and is_private(name.rpartition(".")[2])
    ]
    assert private == []
    assert list(private_attributes(path)) == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_replace_nothing_of_ours(path: Path) -> None:
    """No monkeypatching of the package: tests pass in the shipped twins instead."""
    ours = {
        alias.asname or alias.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenmill")
        for alias in node.names
    }
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in {"setattr", "setitem", "delattr"} and node.args:
            target = node.args[0]
            name = target.value if isinstance(target, ast.Constant) else ast.unparse(target)
            assert str(name).split(".")[0] not in ours | {"tokenmill"}, f"line {node.lineno}"
