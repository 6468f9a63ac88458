"""YAML without surprises: no duplicate keys, no alias bombs, bounded size and depth."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tokenmill.errors import UserError

# Of a job with each reference written out; one of a thousand labels has some 20,000.
_MOST_CHARACTERS = 2**22
_MOST_DEPTH = 50


class Dumper(yaml.SafeDumper):
    """Safe, and U+0085 is escaped: PyYAML writes it as the line break that it reads as another."""


def represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Write texts of several lines as YAML blocks."""
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, text, style)


class StrictLoader(yaml.SafeLoader):
    """Safe, and a key that stands twice is an error instead of the last one winning.

    So is a file that is nested deeply or, its references written out, huge.
    """

    def get_single_node(self) -> yaml.Node | None:
        try:
            node: yaml.Node | None = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError("it is nested too deeply") from None
        if node is not None and _num_characters(node, {}, 0) > _MOST_CHARACTERS:
            raise yaml.YAMLError(
                f"with its references written out it has more than {_MOST_CHARACTERS:,} characters"
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # PyYAML lets it through for `2024-13-01` and the like, without the line.
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error


def _num_characters(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The characters of a node, references written out; `known` are those of other nodes."""
    if depth > _MOST_DEPTH:
        raise yaml.YAMLError(f"it is nested more than {_MOST_DEPTH} deep")
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in known:
        # A node in itself is refused where it is constructed.
        known[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        parts = [part for pair in pairs for part in pair]
        known[id(node)] = 1 + sum(_num_characters(part, known, depth + 1) for part in parts)
    return known[id(node)]


def construct_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; a duplicate key is an error."""
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            problem = (
                "a key cannot be a list or mapping; put quotes around text that begins with {{"
            )
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def read_text(path: Path) -> str:
    """The text of a file. Raises `UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        advice = "; mend the path, or write one with tokenmill init" if missing else ""
        raise UserError(f"{path}: cannot read the job file ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the job file is not UTF-8 text") from error


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """The mapping in a YAML text. Raises `UserError`, with the line."""
    try:
        data = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a job file holds keys such as name, input, model; this does not")
    return {str(key): value for key, value in data.items()}
