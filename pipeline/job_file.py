"""A job's YAML file as a checked `Job`: parsed strictly, with overrides and the environment.

What is wrong is told by its place in the file. Knows what a job is, and nothing of what it does.
"""

import os
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.job import AnyTask, Job
from pipeline.length import Length
from pipeline.section import unknown

# An environment variable of such a name holds a secret, and jobs are written to the output.
_SECRET_NAME = re.compile(r"SECRET|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|PRIVATE|_TOKEN$|^TOKEN$")
# Of a job with each reference written out; one of a thousand labels has some 20,000.
_MOST_CHARACTERS = 2**22
_MOST_DEPTH = 50
_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


# Where vLLM's own arguments stand, whose types it alone knows.
_UNTYPED = re.compile(r"(tasks?\.)?(model\.engine|((retries|length\.join)\.)?sampling)\b")


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job in a YAML file, with `key.path=value` overrides. Raises `UserError`."""
    data = _with_overrides(_parse_yaml(_read_text(path), str(path)), overrides)
    return _validated(_resolve_environment(data), str(path))


def stored_job(text: str, where: str, overrides: Sequence[str] = ()) -> Job:
    """The resolved job that an output holds, with overrides. Raises `UserError` naming `where`."""
    return _validated(_with_overrides(_parse_yaml(text, where), overrides), where)


def portable_text(job: Job) -> str:
    """The resolved job as a file that is the same job in any environment. Raises `UserError`."""
    text = job.to_yaml()
    _resolve_environment(_parse_yaml(text, job.name), of=_refuse_reference)
    return text


def _refuse_reference(match: re.Match[str], where: str) -> str:
    raise UserError(
        f"{where}: {match.group()} is left after the variables were filled in, and would be filled "
        "in once more elsewhere; write it without ${"
    )


def _with_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        _apply_override(data, override)
    return data


def _validated(data: dict[str, Any], where: str) -> Job:
    _refuse_unknown_keys(data, Job, where)
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_in_one_line(error)}") from error


class _StrictLoader(yaml.SafeLoader):
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


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
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


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        advice = "; mend the path, or write one with tokenmill init" if missing else ""
        raise UserError(f"{path}: cannot read the job file ({error.strerror}){advice}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the job file is not UTF-8 text") from error


def _parse_yaml(text: str, path: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a job file holds keys such as name, input, model; this does not")
    return {str(key): value for key, value in data.items()}


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {override}: write it as key.path=value")
    *parents, last = name.split(".")
    section = data
    for parent in parents:
        inner = section.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: {parent} holds a value, not keys")
        section = inner
    section[last] = _override_value(text)


def _override_value(text: str) -> Any:
    if text.lstrip().startswith(("{{", "{%")):
        # A template, which YAML would take for a mapping.
        return text
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"--set: {text!r} is not valid YAML; put quotes around it") from error


def _resolve_environment(
    value: Any, where: str = "", of: Callable[[re.Match[str], str], str] | None = None
) -> Any:
    of = of or _environment_value
    if isinstance(value, dict):
        return {
            # Templates keep their own syntax: a shell's ${NAME} in a prompt is text.
            key: item
            if key == "prompt"
            else _resolve_environment(item, f"{where}.{key}" if where else key, of)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve_environment(item, where, of) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    resolved = _ENVIRONMENT.sub(lambda match: of(match, where), value)
    # vLLM's own arguments have no types here: ${N} is the number that YAML would read. All other
    # keys know their type, and a path may be any text.
    is_untyped = _UNTYPED.match(where) and _ENVIRONMENT.fullmatch(value)
    return yaml.safe_load(resolved) if is_untyped else resolved


def _environment_value(match: re.Match[str], where: str) -> str:
    name, default = match.group(1), match.group(2)
    if _SECRET_NAME.search(name.upper()):
        raise UserError(
            f"{where}: ${{{name}}} looks like a secret, and jobs are stored with their output; "
            "credentials come from the AWS chain (AWS_PROFILE, environment, role)"
        )
    value = os.environ.get(name, default)
    if value is None:
        raise UserError(
            f"{where}: the environment variable {name} is not set; "
            f"set it or write ${{{name}:-default}}"
        )
    return value


def _refuse_unknown_keys(data: Any, annotation: Any, where: str, path: str = "") -> None:
    if isinstance(data, list):
        for position, item in enumerate(data):
            _refuse_unknown_keys(item, annotation, where, f"{path}{position}.")
    if not isinstance(data, dict):
        return
    section = _section_for(data, annotation)
    if section is None:
        return
    # A key that Python has a word for is an alias: `from`.
    fields = {field.alias or name: field for name, field in section.model_fields.items()}
    for key, value in data.items():
        field = fields.get(key)
        if field is None:
            raise UserError(f"{where}: {path}{key}: {unknown(str(key), fields)}")
        _refuse_unknown_keys(value, field.annotation, where, f"{path}{key}.")


def _section_for(value: Mapping[str, Any], annotation: Any) -> type[BaseModel] | None:
    """The section that a value is of; among several its kind or policy chooses one, if any is."""
    sections = _sections_of(annotation)
    if len(sections) < 2:  # noqa: PLR2004 - nothing to choose
        return next(iter(sections), None)
    key = next(name for name in ("kind", "policy") if name in sections[0].model_fields)
    return _names(annotation, key).get(value.get(key, "generate" if key == "kind" else None))


def _names(annotation: Any, key: str) -> dict[str, type[BaseModel]]:
    """The sections that a field may hold, by the one value that each has at its key."""
    return {
        typing.get_args(section.model_fields[key].annotation)[0]: section
        for section in _sections_of(annotation)
    }


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type may hold: through unions, optionals and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union, tuple, Annotated):
        return [part for member in typing.get_args(annotation) for part in _sections_of(member)]
    return []


def _in_one_line(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        name = ".".join(_keys(item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{name}: {message}" if name else message)
    return "; ".join(parts)


def _keys(location: Sequence[str | int]) -> list[str]:
    """The job file's keys that lead to a mistake; pydantic's location names its own parts too."""
    # Of a value with two forms the form's validator: `constrained-int`.
    keys = [str(part) for part in location if re.fullmatch(r"\w+", str(part))]
    # Of a task its kind: `tasks.0.generate.prompt`; of a length its policy: `length.chunk.by`.
    place = {"task": 1, "tasks": 2}.get(keys[0], len(keys)) if keys else 0
    _drop(keys, place, _names(AnyTask, "kind"))
    _drop(keys, 1 + keys.index("length") if "length" in keys else 0, _names(Length, "policy"))
    return keys


def _drop(keys: list[str], place: int, names: Mapping[str, Any]) -> None:
    """Take the key at a place out if it is one of the names."""
    if keys[place : place + 1] and keys[place] in names:
        del keys[place]
