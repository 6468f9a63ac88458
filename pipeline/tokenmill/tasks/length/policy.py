"""What a length policy adds to a task: the columns that it reads and writes, and what it does."""

from collections.abc import Mapping

import pyarrow as pa

from tokenmill.config.length import LENGTH_FIELDS, PARTS, Chunk, JoinPrompt, Truncate
from tokenmill.errors import UserError
from tokenmill.tasks.length.chunk import Chunked
from tokenmill.tasks.length.reject import FittedTask, Whole
from tokenmill.tasks.length.truncate import Truncated
from tokenmill.tasks.row_overrides import with_row_overrides
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.task import TaskContext


def fitted(section: TaskSection, tools: TaskContext) -> FittedTask:
    """The section's task, with what its length policy does about long texts."""
    task = with_row_overrides(section, tools)
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
    if isinstance(policy, Chunk):
        _check_join(section, policy, f"{place}.join")
    elif policy.keep != "head" and policy.column == section.located_column:
        raise UserError(
            f"{place}.keep: {section.place_of('locate')} gives places in {policy.column}, which "
            "would be those in its cut text; keep the head"
        )
    return {**joining_columns(section), **columns}


def _check_join(section: TaskSection, policy: Chunk, place: str) -> None:
    """Raise `UserError` for a join that the task cannot do."""
    by_prompt = isinstance(policy.join, JoinPrompt)
    if section.joins_by_prompt if by_prompt else policy.join == section.join_kind:
        return
    can = [section.join_kind, "a prompt" if section.joins_by_prompt else None]
    ways = ", or by ".join(way for way in can if way is not None)
    if not ways:
        raise UserError(f"{place}: this {section.kind} task cannot join chunks; leave chunk out")
    wanted = "a prompt" if by_prompt else policy.join
    raise UserError(f"{place}: {section.kind} joins its chunks by {ways}, not by {wanted}")


def joining_columns(section: TaskSection) -> Mapping[str, str]:
    """What the task reads to join a text's chunks, if it does so by a second prompt."""
    final = section.final
    if final is None:
        return {}
    place = f"{section.place}length.join."
    if final.sampling is not None and not final.samples:
        raise UserError(f"{place}sampling: the task writes no text; leave it out")
    if final.fields != section.fields:
        raise UserError(
            f"{place}sampling: the joined answer would have other columns than a chunk's; set "
            "stop in both or in none"
        )
    prompt = final.compile_at(place).columns
    if PARTS not in prompt:
        raise UserError(f"{place}prompt: no template uses {PARTS}, the list of the chunks' answers")
    columns = {**final.reads, **prompt}
    return {name: columns[name] for name in columns if name != PARTS}
