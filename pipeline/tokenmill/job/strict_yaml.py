"""Strict YAML: no duplicate keys, no alias bombs, limited size and depth."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tokenmill.errors import UserError

# With all references expanded. A job with a thousand labels has about 20,000.
_MAX_CHARACTERS = 2**22
_MAX_DEPTH = 50


class Dumper(yaml.SafeDumper):
    """A safe dumper that escapes U+0085, which PyYAML would write and read back as a newline."""


def represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Represent a string; one with U+0085 is quoted."""
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, text, style)


class StrictLoader(yaml.SafeLoader):
    """A safe loader that raises for duplicate keys, which PyYAML accepts.

    It also raises for files that are nested too deeply or, with references expanded, too large.
    """

    def get_single_node(self) -> yaml.Node | None:
        try:
            node: yaml.Node | None = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError("the nesting is too deep") from None
        if node is not None and _num_characters(node, {}, 0) > _MAX_CHARACTERS:
            raise yaml.YAMLError(
                f"with references expanded, there are more than {_MAX_CHARACTERS:,} characters"
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # PyYAML raises a plain ValueError for `2024-13-01`, without the line.
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error


def _num_characters(node: yaml.Node, counts: dict[int, int], depth: int) -> int:
    """The number of characters with references expanded; `counts` are those of earlier nodes."""
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError(f"there are more than {_MAX_DEPTH} levels of nesting")
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in counts:
        # A node that contains itself is rejected when it is constructed.
        counts[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        parts = [part for pair in pairs for part in pair]
        counts[id(node)] = 1 + sum(_num_characters(part, counts, depth + 1) for part in parts)
    return counts[id(node)]


def construct_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Construct a mapping. Raises for a duplicate key."""
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            problem = "a key cannot be a list or mapping; quote a value that begins with {{"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key!r}", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def read_text(path: Path) -> str:
    """Read a text file. Raises `UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        advice = "; check the path, or create one with tokenmill init" if missing else ""
        raise UserError(f"{path}: cannot read the job file ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the job file is not UTF-8 text") from error


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """Parse a YAML mapping. Raises `UserError` with the line; `path` names the file."""
    try:
        data = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a job file: it has no keys such as name, input and model")
    return {str(key): value for key, value in data.items()}
