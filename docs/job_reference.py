"""Generate docs/job.md, the reference of all job file keys, from the pydantic model.

`python docs/job_reference.py` writes the page; `reference()` returns its text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.job.job import Job

PATH = Path(__file__).with_name("job.md")
_HEAD = """\
# The job file

All keys of the job file. A key that is not listed here is an error. [Tasks](tasks.md) explains \
what each kind of task does. `tokenmill schema` prints this reference as a JSON schema, which \
editors can use for completion. This page is generated from the model that validates job files; \
run `make docs` to update it.
"""
#: Constraints of a JSON schema, in words.
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "matches `{}`",
}

Schema = Mapping[str, Any]


def reference() -> str:
    """Return the text of the page: the top-level keys, then the sections in alphabetical order."""
    whole = Job.model_json_schema()
    sections = whole["$defs"]
    parts = [_HEAD, _section("Job", whole)]
    parts += [_section(name, sections[name]) for name in sorted(sections)]
    return "\n".join(parts)


def _section(name: str, schema: Schema) -> str:
    about = " ".join(schema.get("description", "").split("\n\n")[0].split())
    lines = [f"## {name}", "", *([about, ""] if about else [])]
    properties = schema.get("properties")
    if properties is None:
        return "\n".join([*lines, f"{_type(schema)}", ""])
    lines += ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    required = schema.get("required", ())
    lines += [_row(key, value, is_required=key in required) for key, value in properties.items()]
    return "\n".join([*lines, ""])


def _row(key: str, schema: Schema, *, is_required: bool) -> str:
    default = "required" if is_required else _default(schema)
    cells = (f"`{key}`", _type(schema), default, schema.get("description", ""))
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] is None:
        return ""
    return f"`{json.dumps(schema['default'], ensure_ascii=False)}`"


def _type(schema: Schema) -> str:
    """Describe the type of a value in words; sections become links."""
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices is not None:
        named = [_type(choice) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(named))
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema]
    return ", ".join([_plain(schema), *bounds])


def _plain(schema: Schema) -> str:
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items") or {}
        return f"list of {_type(items)}" if items else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of {_type(values)}" if isinstance(values, Mapping) else "mapping"
    return str(kind) if kind else "any value"


if __name__ == "__main__":
    PATH.write_text(reference(), encoding="utf-8")
    print(PATH)
