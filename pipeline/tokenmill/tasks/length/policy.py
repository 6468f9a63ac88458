"""What a length policy adds to a task: the columns that it reads and writes, and what it does."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from tokenmill.config.length import LENGTH_FIELDS, PARTS, Chunk, JoinPrompt, Truncate
from tokenmill.errors import UserError
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.chunk import Chunked
from tokenmill.tasks.length.reject import FittedTask, Whole
from tokenmill.tasks.length.truncate import Truncated
from tokenmill.tasks.row_overrides import with_row_overrides
from tokenmill.tasks.task import TaskContext


def fitted(step: TaskStep[Any], context: TaskContext) -> FittedTask:
    """The step's task, with what its length policy does about long texts."""
    task = with_row_overrides(step, context)
    match step.section.length:
        case Truncate() as policy:
            return Truncated(task, step, policy, context)
        case Chunk() as policy:
            return Chunked(task, step, policy, context)
        case _:
            return Whole(task, step, context)


def fields_of(step: TaskStep[Any]) -> tuple[pa.Field, ...]:
    """The columns of a task and of its length policy."""
    has_policy = isinstance(step.section.length, Truncate | Chunk)
    return (*step.fields, *LENGTH_FIELDS) if has_policy else step.fields


def columns_of(step: TaskStep[Any]) -> Mapping[str, str]:
    """The columns that a task and its length policy read, and the places that name them.

    Raises `UserError` for a policy that does not go with the task.
    """
    columns, policy = step.all_columns, step.section.length
    if not isinstance(policy, Truncate | Chunk):
        return columns
    key = f"{step.key_prefix}length"
    if policy.column not in step.columns:
        raise UserError(
            f"{key}.column: the task does not read {policy.column}; it reads "
            f"{', '.join(sorted(step.columns))}"
        )
    if isinstance(policy, Chunk):
        _check_join(step, policy, f"{key}.join")
    elif policy.keep != "head" and policy.column == step.located_column:
        raise UserError(
            f"{key}.keep: {step.key_of('locate')} gives places in {policy.column}, which "
            "would be those in its cut text; keep the head"
        )
    return {**joining_columns(step), **columns}


def _check_join(step: TaskStep[Any], policy: Chunk, key: str) -> None:
    """Raise `UserError` for a join that the task cannot do."""
    kind, join = step.kind, step.join
    by_prompt = isinstance(policy.join, JoinPrompt)
    if kind.joins_by_prompt if by_prompt else join is not None and join.kind == policy.join:
        return
    ways = ([] if join is None else [join.kind]) + (["a prompt"] if kind.joins_by_prompt else [])
    if not ways:
        raise UserError(f"{key}: this {kind.name} task cannot join chunks; leave chunk out")
    asked = "a prompt" if by_prompt else policy.join
    raise UserError(
        f"{key}: {kind.name} joins its chunks by {', or by '.join(ways)}, not by {asked}"
    )


def joining_columns(step: TaskStep[Any]) -> Mapping[str, str]:
    """What the task reads to join a text's chunks, if it does so by a second prompt."""
    final = step.final
    if final is None:
        return {}
    key = f"{step.key_prefix}length.join."
    if final.section.sampling is not None and not final.kind.writes_text:
        raise UserError(f"{key}sampling: the task writes no text; leave it out")
    if final.fields != step.fields:
        raise UserError(
            f"{key}sampling: the joined answer would have other columns than a chunk's; set "
            "stop in both or in none"
        )
    if PARTS not in final.templates["prompt"].columns:
        raise UserError(f"{key}prompt: no template uses {PARTS}, the list of the chunks' answers")
    return {name: key for name, key in final.all_columns.items() if name != PARTS}
