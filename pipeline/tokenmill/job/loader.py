"""Load a job file: strict YAML, `--set` overrides and environment variables.

Errors name the file and the key.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tokenmill.config.strict_yaml import load_yaml, parse_yaml, read_text
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.messages import check_known_keys, validation_message

# An environment variable with such a name holds a secret, and jobs are stored with their output.
_SECRET_NAME = re.compile(r"SECRET|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|PRIVATE|_TOKEN$|^TOKEN$")
_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

# Keys that hold arguments of vLLM, whose types tokenmill does not know.
_UNTYPED = re.compile(r"(tasks?\.)?(model\.engine|((retries|length\.join)\.)?sampling)\b")


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Load a YAML file, with `key.path=value` overrides. Raises `UserError`."""
    data = _with_overrides(parse_yaml(read_text(path), str(path)), overrides)
    return _validated(_resolve_environment(data), str(path))


def stored_job(text: str, where: str, overrides: Sequence[str] = ()) -> Job:
    """The resolved job that is stored with an output, with overrides.

    Raises `UserError` with `where` as the name of the file.
    """
    return _validated(_with_overrides(parse_yaml(text, where), overrides), where)


def portable_text(job: Job) -> str:
    """The resolved job as YAML that loads as the same job in any environment.

    Raises `UserError` if a value still looks like an environment variable.
    """
    text = job.to_yaml()
    _resolve_environment(parse_yaml(text, job.name), value_of=_reject_variable)
    return text


def _reject_variable(match: re.Match[str], key: str) -> str:
    raise UserError(
        f"{key}: the value still contains {match.group()} after environment variables were "
        "replaced, so it would be replaced again on another machine; write it without ${"
    )


def _with_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        _apply_override(data, override)
    return data


def _validated(data: dict[str, Any], where: str) -> Job:
    check_known_keys(data, Job, where)
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {validation_message(error)}") from error


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {override}: use the form key.path=value")
    *parents, last = name.split(".")
    section: Any = data
    for parent in parents:
        section = _inner(section, parent, override)
    if isinstance(section, list):
        raise UserError(f"--set {override}: set the whole list, or a key of one of its tasks")
    section[last] = _value(text, "--set")


def _inner(section: Any, name: str, override: str) -> Any:
    """The section below another one by its key, or by its name in the list of tasks."""
    if isinstance(section, list):
        named = (item for item in section if isinstance(item, dict) and item.get("name") == name)
        inner = next(named, None)
        if inner is None:
            raise UserError(f"--set {override}: no task in the list is called {name}")
        return inner
    inner = section.setdefault(name, {})
    if not isinstance(inner, dict | list):
        raise UserError(f"--set {override}: {name} is a value and has no keys")
    return inner


def _value(text: str, where: str) -> Any:
    """What YAML reads in a text that is not in the file. `where` is where it comes from."""
    if text.lstrip().startswith(("{{", "{%")):
        # YAML would read a template as a mapping.
        return text
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {text!r} is not valid YAML; quote it") from error


def _environment_value(match: re.Match[str], key: str) -> str:
    name, default = match.group(1), match.group(2)
    if _SECRET_NAME.search(name.upper()):
        raise UserError(
            f"{key}: ${{{name}}} looks like a secret, and jobs are stored with their output; "
            "use the AWS credential chain instead (AWS_PROFILE, environment, role)"
        )
    value = os.environ.get(name, default)
    if value is None:
        raise UserError(
            f"{key}: the environment variable {name} is not set; "
            f"set it, or write ${{{name}:-default}}"
        )
    return value


def _resolve_environment(
    value: Any, key: str = "", value_of: Callable[[re.Match[str], str], str] = _environment_value
) -> Any:
    """The value with `${NAME}` and `${NAME:-default}` replaced; `key` is its key in the job."""
    if isinstance(value, dict):
        return {
            # A prompt may contain the ${NAME} of a shell.
            name: item
            if name == "prompt"
            else _resolve_environment(item, f"{key}.{name}" if key else name, value_of)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve_environment(item, key, value_of) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    resolved = _ENVIRONMENT.sub(lambda match: value_of(match, key), value)
    # The arguments of vLLM have no types here, so ${N} becomes what YAML reads: a number. All other
    # keys have a type, and a path may be any text.
    is_untyped = _UNTYPED.match(key) and _ENVIRONMENT.fullmatch(value)
    return _value(resolved, key) if is_untyped else resolved
