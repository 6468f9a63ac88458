"""YAML 1.2 without surprises: no duplicate keys, no alias bombs, limited size and depth.

PyYAML reads YAML 1.1, where `no` is false, `010` is 8 and `1:30` is 90. Here scalars have the
meaning of YAML 1.2's core schema, and keys are always text. Merge keys (`<<`) are supported.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tokenmill.errors import UserError

# With all references expanded. A job with a thousand labels has about 20,000.
_MAX_CHARACTERS = 2**22
_MAX_DEPTH = 50
# The size of a node while its parts are counted.
_IN_PROGRESS = -1
_TAG = "tag:yaml.org,2002:"
_KEY_TAGS = (f"{_TAG}str", f"{_TAG}merge")
# The core schema of YAML 1.2: each type's tag, its pattern, and the characters that it starts with.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)


class Dumper(yaml.SafeDumper):
    """A safe dumper that escapes U+0085, which PyYAML would write and read back as a newline."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's


class StrictLoader(yaml.SafeLoader):
    """A safe loader for YAML 1.2 that raises for duplicate keys, which PyYAML accepts.

    It also raises for files that are nested too deeply or, with references expanded, too large.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's

    def get_single_node(self) -> yaml.Node | None:
        try:
            node: yaml.Node | None = super().get_single_node()
        except RecursionError:
            raise yaml.YAMLError("the nesting is too deep") from None
        if node is not None and _checked_size(node, {}, 0) > _MAX_CHARACTERS:
            raise yaml.YAMLError(
                f"with references expanded, there are more than {_MAX_CHARACTERS:,} characters"
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            # PyYAML raises a plain ValueError for `!!int five`, without the line.
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error


def _checked_size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """The number of characters with references expanded; `sizes` are those of earlier nodes.

    Makes every key a text. Raises for keys that are duplicate, or are lists or mappings.
    """
    if depth > _MAX_DEPTH:
        raise yaml.YAMLError(f"there are more than {_MAX_DEPTH} levels of nesting")
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if sizes.get(id(node)) == _IN_PROGRESS:
        problem = "a value contains itself"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if id(node) not in sizes:
        sizes[id(node)] = _IN_PROGRESS
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        parts = [part for pair in pairs for part in pair]
        sizes[id(node)] = 1 + sum(_checked_size(part, sizes, depth + 1) for part in parts)
    return sizes[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problem = "a key cannot be a list or mapping; quote a value that begins with {{"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        if key.tag not in _KEY_TAGS:
            key.tag = f"{_TAG}str"
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"duplicate key {key.value!r}", key.start_mark
            )
        seen.add(key.value)


def _construct_int(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    """An integer, where a leading zero means nothing. Raises `ValueError`."""
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_text(loader: StrictLoader, node: yaml.ScalarNode) -> str:
    """A `<<` that is not a key."""
    return str(loader.construct_scalar(node))


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Represent a string; one with U+0085 is quoted."""
    style = '"' if "\x85" in text else None
    return dumper.represent_scalar(yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG, text, style)


for _name, _pattern, _first in _SCALARS:
    for _class in (StrictLoader, Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"(?:{_pattern})\\Z"), _first)
StrictLoader.add_constructor(f"{_TAG}int", _construct_int)
StrictLoader.add_constructor(f"{_TAG}merge", _construct_text)
# YAML 1.2 has none of these; without a constructor their tags are errors that name the line.
for _name in ("timestamp", "binary", "omap", "pairs", "set"):
    del StrictLoader.yaml_constructors[f"{_TAG}{_name}"]
Dumper.add_representer(str, _represent_text)


def dump_yaml(data: Any) -> str:
    """Return data as YAML that `load_yaml` reads as the same data."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(text: str) -> Any:
    """Parse YAML. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader


def read_text(path: Path) -> str:
    """Read a text file. Raises `UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        advice = "; check the path, or create one with tokenmill init" if missing else ""
        raise UserError(f"{path}: cannot read the job file ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the job file is not UTF-8 text; save it as UTF-8") from error


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """Parse a YAML mapping. Raises `UserError` with the line; `path` names the file."""
    try:
        data = load_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {_problem(error, text)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a job file: it has no keys such as name, input and model")
    return data


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    """What PyYAML says, with what to do for the mistakes that its words do not explain."""
    problem = str(error.problem)
    mark = error.problem_mark
    index = 0 if mark is None else mark.index
    if text[index - 1 : index + 1] == "${":
        return 'quote a value with ${NAME} between { and }, or between [ and ]: "${NAME}"'
    if text[index : index + 1] == "\t":
        return "a line is indented with a tab; use spaces"
    if problem == "but found another document":
        return "the file has a second document (---); a job file has one"
    return problem
