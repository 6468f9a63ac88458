"""The labels of a task: parses them from the job file and adds them to the prompt.

A label file is read together with the job, so the resolved job and its fingerprint contain the
labels themselves.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict

from tokenmill.config.prompt import Message, Prompt
from tokenmill.config.strict_yaml import load_yaml
from tokenmill.prompt.template import compile_prompt, literal_text_and_names

#: The labels' name in templates.
CHOICES = "choices"
#: Appended to a chat that does not name its labels.
LISTING = "\n\nAnswer with one of these labels and nothing else:\n{{ choices }}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A label and an optional description. Renders as the label."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    label: str
    description: str | None = None

    def __str__(self) -> str:
        return self.label

    @property
    def line(self) -> str:
        """The label's line in a list: `- label: description`."""
        return f"- {self.label}" + (f": {self.description}" if self.description else "")


class ChoiceList(tuple[Choice, ...]):
    """The value of `choices` in templates. Renders as a list with one label per line."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(choice.line for choice in self)


def _read(value: Any) -> Any:
    """Convert a list, a mapping from label to description, or a label file to label mappings."""
    if isinstance(value, str):
        value = _read_file(Path(value).expanduser())
    if isinstance(value, Mapping):
        value = [{"label": label, "description": text} for label, text in value.items()]
    if not isinstance(value, Sequence) or isinstance(value, str):
        reason = "give a list of labels, a mapping from label to description, or a file"
        raise ValueError(reason)  # noqa: TRY004 - what pydantic reports
    return [_label_mapping(item) for item in value]


def _read_file(path: Path) -> Any:
    """Read a label file: YAML or JSON by suffix, otherwise one label per line."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml", ".json"):
            return load_yaml(text)
    except OSError as error:
        raise ValueError(f"cannot read the label file {path} ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot read the label file {path}: {reason}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _label_mapping(item: Any) -> Any:
    if isinstance(item, Choice):
        return item
    choice = dict(item) if isinstance(item, Mapping) else {"label": item}
    label = choice.get("label")
    if not isinstance(label, str):
        # YAML reads true as a boolean, and 1 as a number.
        reason = f"the label {label!r} is not text; put quotes around it"
        raise ValueError(reason)  # noqa: TRY004 - what pydantic reports
    return choice


def _distinct(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    seen: set[str] = set()
    for label in labels_of(choices):
        if not label or label != label.strip() or not label.isprintable():
            raise ValueError(
                f"the label {label!r} is empty, or has surrounding space or a line break"
            )
        if label in seen:
            raise ValueError(f"the label {label!r} is duplicated")
        seen.add(label)
    if not seen:
        raise ValueError("give at least one label")
    return choices


#: `[a, b]`, `{a: what a means, b: …}`, or the path of a YAML, JSON or text file with either.
Choices = Annotated[
    tuple[Choice, ...],
    BeforeValidator(_read, json_schema_input_type=list[str | Choice] | dict[str, str | None] | str),
    AfterValidator(_distinct),
]


def labels_of(choices: Sequence[Choice]) -> list[str]:
    """The labels, in the job's order."""
    return [choice.label for choice in choices]


def with_listing(prompt: Prompt, choices: Sequence[Choice], key_prefix: str) -> Prompt:
    """Append a list of the labels to the last user message of a chat that lacks them.

    A chat has the labels if it uses `choices`, or if it names every label and none has a
    description. A plain-text prompt is returned unchanged. Raises `UserError` for templates that do
    not compile.
    """
    compile_prompt(prompt, key_prefix, {CHOICES: ChoiceList(choices)})
    if not prompt.turns or _has_labels(prompt, choices):
        return prompt
    if prompt.user is not None:
        return prompt.model_copy(update={"user": prompt.user + LISTING})
    turns = list(prompt.turns)
    user_turns = [i for i, turn in enumerate(turns) if turn.role == "user"]
    last = user_turns[-1] if user_turns else len(turns) - 1
    turns[last] = Message(role=turns[last].role, content=turns[last].content + LISTING)
    return Prompt(messages=tuple(turns))


def _has_labels(prompt: Prompt, choices: Sequence[Choice]) -> bool:
    words, names = literal_text_and_names(prompt)
    if CHOICES in names:
        return True
    if any(choice.description for choice in choices):
        return False
    return all(
        re.search(rf"(?<!\w){re.escape(label)}(?!\w)", words, re.IGNORECASE)
        for label in labels_of(choices)
    )
