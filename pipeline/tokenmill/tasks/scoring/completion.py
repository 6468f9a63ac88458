"""Templates for tasks that read a prompt and, optionally, its completion."""

from typing import Any

from tokenmill.prompt.template import compile_templates
from tokenmill.tasks.kind import TaskStep, Templates, prompt_templates


def completion_templates(step: TaskStep[Any]) -> Templates:
    """Compile the step's prompt and, if the section sets it, its `completion` template."""
    templates = prompt_templates(step)
    completion = step.section.completion
    if completion is None:
        return templates
    return {"completion": compile_templates({step.key_of("completion"): completion}), **templates}
