"""The prompts of a rendered row as text, for people who want to see what the model reads."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from tokenmill.reject import Reject
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import PreparedRow, TaskContext


def has_prompt(entry: PreparedRow | Reject | None) -> TypeGuard[PreparedRow]:
    """Whether a task has a prompt for a row before other tasks have answered."""
    return isinstance(entry, PreparedRow) and len(entry.prompts) > 0


def prompt_texts(
    steps: Sequence[TaskStep[Any]],
    context: TaskContext,
    entries: Sequence[PreparedRow | Reject | None],
) -> dict[str, str]:
    """A row's prompts by task; if a task has several for the row, the first."""
    texts = {}
    for step, entry in zip(steps, entries, strict=True):
        if has_prompt(entry):
            key = step.model_key
            model = context if key is None else context.auxiliary[key]
            texts[step.name] = model.tokenizer.decode(entry.prompts[0])
    return texts
