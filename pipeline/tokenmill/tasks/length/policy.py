"""Applies length policies to tasks, and lists the columns that they read and write."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from tokenmill.config.length import LENGTH_FIELDS, PARTS, Chunk, JoinPrompt, Truncate
from tokenmill.errors import UserError
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.length.chunk import ChunkingTask
from tokenmill.tasks.length.reject import FittedTask, RejectingTask
from tokenmill.tasks.length.truncate import TruncatingTask
from tokenmill.tasks.row_overrides import with_row_overrides
from tokenmill.tasks.task import TaskContext


def fitted(step: TaskStep[Any], context: TaskContext) -> FittedTask:
    """Build the step's task with its length policy."""
    task = with_row_overrides(step, context)
    match step.section.length:
        case Truncate() as policy:
            return TruncatingTask(task, step, policy, context)
        case Chunk() as policy:
            return ChunkingTask(task, step, policy, context)
        case _:
            return RejectingTask(task, step, context)


def fields_of(step: TaskStep[Any]) -> tuple[pa.Field, ...]:
    """The output columns of a task and its length policy."""
    has_policy = isinstance(step.section.length, Truncate | Chunk)
    return (*step.fields, *LENGTH_FIELDS) if has_policy else step.fields


def columns_of(step: TaskStep[Any]) -> Mapping[str, str]:
    """The columns that a task and its length policy read, each with the job key that names it.

    Raises `UserError` if the task cannot have this policy.
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
            f"{key}.keep: {step.key_of('locate')} gives offsets in {policy.column}, which "
            "would be wrong in the truncated text; set keep: head"
        )
    return {**joining_columns(step), **columns}


def _check_join(step: TaskStep[Any], policy: Chunk, key: str) -> None:
    """Raise `UserError` if the task cannot join its chunks in this way."""
    kind, join = step.kind, step.join
    by_prompt = isinstance(policy.join, JoinPrompt)
    if kind.joins_by_prompt if by_prompt else join is not None and join.kind == policy.join:
        return
    supported = ([] if join is None else [join.kind]) + (
        ["a prompt"] if kind.joins_by_prompt else []
    )
    if not supported:
        raise UserError(f"{key}: this {kind.name} task cannot join chunks; use another policy")
    requested = "a prompt" if by_prompt else policy.join
    raise UserError(
        f"{key}: {kind.name} joins its chunks by {', or by '.join(supported)}, not by {requested}"
    )


def joining_columns(step: TaskStep[Any]) -> Mapping[str, str]:
    """The columns that the second prompt reads, each with its job key. Empty without one.

    Raises `UserError` if the second prompt cannot join the chunks.
    """
    final = step.final
    if final is None:
        return {}
    key = f"{step.key_prefix}length.join."
    if final.section.sampling is not None and not final.kind.writes_text:
        raise UserError(f"{key}sampling: the task writes no text; remove this key")
    if final.fields != step.fields:
        raise UserError(
            f"{key}sampling: the joined answer would have other columns than a chunk's; set "
            "stop in both or in none"
        )
    if PARTS not in final.templates["prompt"].columns:
        raise UserError(f"{key}prompt: no template uses {PARTS}, the list of the chunks' answers")
    return {name: key for name, key in final.all_columns.items() if name != PARTS}
