"""Cut shards into units, and compute how many units a replica needs at a time."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field, model_validator

from tokenmill.config.section import Section
from tokenmill.errors import UserError
from tokenmill.plan.keys import output_folder
from tokenmill.plan.plan import RowGroup, Shard, Unit

# For estimates only. English text has 4 to 5 bytes per token with the usual vocabularies.
_BYTES_PER_TOKEN = 4
# A unit is built in memory, so its rows are limited however short they are.
_MAX_ROWS = 100_000
# Per replica: rows for this many engine batches, plus units that wait for their longest rows.
_BATCHES_IN_FLIGHT = 8
_FINISHING_UNITS = 3
# Each unit in flight takes a thread.
_MAX_UNITS_IN_FLIGHT = 64
# About a minute of one replica: 300 tokens/s on two cores, some 20,000 tokens/s on a large GPU.
_UNIT_TOKENS_CPU = 16_384
_UNIT_TOKENS_GPU = 1_000_000


class Units(Section):
    """The size of a unit: give one of `rows` and `tokens`."""

    rows: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Rows of a unit.")
    tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Estimated tokens of a unit, input and output."
    )

    @model_validator(mode="after")
    def _check_one(self) -> "Units":
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give one of rows and tokens")
        return self


@dataclass(frozen=True, slots=True)
class UnitSize:
    """The size of units: exactly `rows`, or about `tokens`."""

    rows: int | None = None
    tokens: int | None = None


def cut_shard(shard: Shard, size: UnitSize, overhead_tokens: int) -> Iterator[Unit]:
    """Yield the units of one shard, which cover each of its rows once, in order.

    If the size is in tokens, units follow row groups, so that few groups are read twice: small
    groups are joined, large ones are split evenly. `overhead_tokens` are each row's tokens beyond
    its text: those of the template and the answer.
    """
    if size.rows is not None:
        ranges = list(_equal_rows(shard.row_groups, size.rows, overhead_tokens))
    else:
        ranges = list(_near_tokens(shard.row_groups, size.tokens or 1, overhead_tokens))
    first_row = 0
    for num_rows, tokens in ranges:
        yield Unit(shard.path, shard.size, shard.version, first_row, num_rows, tokens)
        first_row += num_rows


def _tokens(group: RowGroup, overhead_tokens: int) -> int:
    return group.num_bytes // _BYTES_PER_TOKEN + group.num_rows * overhead_tokens


def _equal_rows(
    groups: Sequence[RowGroup], rows: int, overhead_tokens: int
) -> Iterator[tuple[int, int]]:
    total = sum(group.num_rows for group in groups)
    tokens = sum(_tokens(group, overhead_tokens) for group in groups)
    for first in range(0, total, rows):
        num_rows = min(rows, total - first)
        yield num_rows, tokens * num_rows // total


def _near_tokens(
    groups: Sequence[RowGroup], tokens: int, overhead_tokens: int
) -> Iterator[tuple[int, int]]:
    open_rows = open_tokens = 0
    for group in groups:
        group_tokens = _tokens(group, overhead_tokens)
        fits = open_tokens + group_tokens <= tokens and open_rows + group.num_rows <= _MAX_ROWS
        if open_rows and not fits:
            yield open_rows, open_tokens
            open_rows = open_tokens = 0
        parts = max(math.ceil(group_tokens / tokens), math.ceil(group.num_rows / _MAX_ROWS))
        if parts > 1:
            yield from _split_evenly(group.num_rows, group_tokens, min(parts, group.num_rows))
        else:
            open_rows += group.num_rows
            open_tokens += group_tokens
    if open_rows:
        yield open_rows, open_tokens


def _split_evenly(num_rows: int, tokens: int, parts: int) -> Iterator[tuple[int, int]]:
    for part in range(parts):
        rows = num_rows * (part + 1) // parts - num_rows * part // parts
        yield rows, tokens * rows // num_rows


def plan_units(shards: Sequence[Shard], size: UnitSize, overhead_tokens: int) -> tuple[Unit, ...]:
    """All units, shard by shard. Raises `UserError` if two shards would share a folder."""
    check_distinct_folders(shard.path for shard in shards)
    return tuple(unit for shard in shards for unit in cut_shard(shard, size, overhead_tokens))


def check_distinct_folders(paths: Iterable[str]) -> None:
    """Raise `UserError` for two shards whose output would be in the same folder."""
    folders: dict[str, str] = {}
    for path in paths:
        other = folders.setdefault(output_folder(path), path)
        if other != path:
            raise UserError(
                f"the shards {other} and {path} differ only in their suffix, so both would be "
                f"written to {output_folder(path)}; rename one"
            )


def units_in_flight(units: Sequence[Unit], max_num_seqs: int) -> int:
    """How many units a replica needs at a time to keep its engine's batch full.

    A unit occupies its slot until its last row is answered, and with log-normal lengths (sigma 1)
    the longest of a hundred rows takes ten times the mean. Eight batches and three units keep the
    batch full even then. With four batches, a run of 64 sequences takes 1.6 times as long
    (`python -m bench tail`). More units would only wait, and no other replica could take them.
    """
    rows_per_unit = max(1, sum(unit.num_rows for unit in units) // len(units))
    ahead = math.ceil(_BATCHES_IN_FLIGHT * max_num_seqs / rows_per_unit)
    return min(_MAX_UNITS_IN_FLIGHT, ahead + _FINISHING_UNITS)


def first_rows(shards: Sequence[Shard], limit: int) -> tuple[Shard, ...]:
    """The shards that contain the first `limit` rows; the last one is cut short."""
    kept = []
    for shard in shards:
        groups = []
        for group in shard.row_groups:
            rows = min(group.num_rows, limit)
            limit -= rows
            if rows:
                groups.append(RowGroup(rows, group.num_bytes * rows // group.num_rows))
        if groups:
            kept.append(replace(shard, row_groups=tuple(groups)))
    return tuple(kept)


def unit_size(units: Units | None, has_gpus: bool) -> UnitSize:
    """The size of units: the job's, or a default for the hardware."""
    if units is None:
        return UnitSize(tokens=_UNIT_TOKENS_GPU if has_gpus else _UNIT_TOKENS_CPU)
    return UnitSize(rows=units.rows, tokens=units.tokens)
