"""A job's YAML file as a checked `Job`: parsed strictly, with overrides and the environment.

What is wrong is told by its place in the file. Knows what a job is, and nothing of what it does.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.messages import check_known_keys, validation_message
from tokenmill.job.strict_yaml import StrictLoader, construct_mapping, parse_yaml, read_text

# An environment variable of such a name holds a secret, and jobs are written to the output.
_SECRET_NAME = re.compile(r"SECRET|PASSW|CREDENTIAL|ACCESS_?KEY|API_?KEY|PRIVATE|_TOKEN$|^TOKEN$")
_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


# Where vLLM's own arguments stand, whose types it alone knows.
_UNTYPED = re.compile(r"(tasks?\.)?(model\.engine|((retries|length\.join)\.)?sampling)\b")


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job in a YAML file, with `key.path=value` overrides. Raises `UserError`."""
    data = _with_overrides(parse_yaml(read_text(path), str(path)), overrides)
    return _validated(_resolve_environment(data), str(path))


def stored_job(text: str, where: str, overrides: Sequence[str] = ()) -> Job:
    """The resolved job that an output holds, with overrides. Raises `UserError` naming `where`."""
    return _validated(_with_overrides(parse_yaml(text, where), overrides), where)


def portable_text(job: Job) -> str:
    """The resolved job as a file that is the same job in any environment. Raises `UserError`."""
    text = job.to_yaml()
    _resolve_environment(parse_yaml(text, job.name), of=_refuse_reference)
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
    check_known_keys(data, Job, where)
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {validation_message(error)}") from error


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)


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
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
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
