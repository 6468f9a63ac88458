"""What a length policy adds to a task: the columns that it reads and writes, and what it does."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.length import LENGTH_FIELDS, PARTS, Chunk, JoinPrompt, Truncate
from pipeline.tasks.base import TaskSection, Tools
from pipeline.tasks.chunked import Chunked
from pipeline.tasks.fitting import FittedTask, Whole
from pipeline.tasks.truncated import Truncated
from pipeline.tasks.vary import built
from pipeline.template import compile_prompt


def fitted(section: TaskSection, tools: Tools) -> FittedTask:
    """The section's task, with what its length policy does about long texts."""
    task = built(section, tools)
    match section.length:
        case Truncate() as policy:
            return Truncated(task, section, policy, tools)
        case Chunk() as policy:
            return Chunked(task, section, policy, tools)
        case _:
            return Whole(task, section, tools)


def fields_of(section: TaskSection) -> tuple[pa.Field, ...]:
    """The columns of a task and of its length policy."""
    own = section.fields
    return (*own, *LENGTH_FIELDS) if isinstance(section.length, Truncate | Chunk) else own


def columns_of(section: TaskSection) -> Mapping[str, str]:
    """The columns that a task and its length policy read, and the places that name them.

    Raises `UserError` for a policy that does not go with the task.
    """
    columns, policy = section.reads, section.length
    if not isinstance(policy, Truncate | Chunk):
        return columns
    place = f"{section.place}length"
    if policy.column not in section.columns:
        raise UserError(
            f"{place}.column: the task does not read {policy.column}; it reads "
            f"{', '.join(sorted(section.columns))}"
        )
    if isinstance(policy, Truncate):
        return columns
    if not isinstance(policy.join, JoinPrompt) and policy.join != section.join_kind:
        own = "" if section.join_kind is None else f"{section.join_kind}, or by "
        raise UserError(
            f"{place}.join: a {section.kind} task joins its chunks by {own}a prompt, "
            f"not by {policy.join}"
        )
    return {**joining_columns(section), **columns}


def joining_columns(section: TaskSection) -> Mapping[str, str]:
    """The row's columns that the prompt uses which joins the chunks' answers, if one does."""
    policy = section.length
    if not (isinstance(policy, Chunk) and isinstance(policy.join, JoinPrompt)):
        return {}
    place = f"{section.place}length.join."
    columns = dict(compile_prompt(policy.join.prompt, place).columns)
    if columns.pop(PARTS, None) is None:
        raise UserError(f"{place}prompt: no template uses {PARTS}, the list of the chunks' answers")
    return columns
