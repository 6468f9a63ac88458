"""The template of a completion, next to the prompt that it answers."""

from typing import Any

from tokenmill.prompt.template import compile_templates
from tokenmill.tasks.kind import TaskStep, Templates, prompt_templates


def completion_templates(step: TaskStep[Any]) -> Templates:
    """The step's prompt and, if its section has one, its `completion`."""
    templates = prompt_templates(step)
    completion = step.section.completion
    if completion is None:
        return templates
    return {"completion": compile_templates({step.key_of("completion"): completion}), **templates}
