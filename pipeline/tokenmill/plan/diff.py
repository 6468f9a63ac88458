"""Extend a plan when its input grows: units for new shards, new units for changed ones.

Pure functions: compare a plan with a listing, and build the plan that follows. Units of unchanged
shards stay the same, and so do their objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.plan.column_types import fits
from tokenmill.plan.plan import Plan
from tokenmill.plan.units import check_distinct_folders
from tokenmill.storage.base import ObjectInfo, Store


def changed_shard_error(store: Store, shard: str, change: str) -> UserError:
    """The error for a shard that "has changed" or "has been deleted" since it was planned."""
    return UserError(
        f"{store.url}/{shard}: the shard {change} since the plan was made; restore it, or start a "
        "new output"
    )


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """What to do with shards that are new or have changed since the plan was made."""

    add_new: bool
    redo_changed: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """How the input differs from the plan. `deleted` are keys of planned shards."""

    new: tuple[ObjectInfo, ...]
    changed: tuple[ObjectInfo, ...]
    unchanged: tuple[ObjectInfo, ...]
    deleted: tuple[str, ...]

    def to_plan(self, policy: ChangePolicy) -> tuple[ObjectInfo, ...]:
        """The shards to plan: the new and changed ones that the policy includes."""
        new = self.new if policy.add_new else ()
        return (*new, *(self.changed if policy.redo_changed else ()))

    def check(self, store: Store, policy: ChangePolicy) -> None:
        """Raise `UserError` for the first change that the policy does not allow."""
        if self.deleted:
            raise changed_shard_error(store, self.deleted[0], "has been deleted")
        if self.changed and not policy.redo_changed:
            raise changed_shard_error(store, self.changed[0].key, "has changed")


def changes_since(plan: Plan, objects: Sequence[ObjectInfo]) -> Changes:
    """Compare a listing of the input with the plan."""
    planned = {unit.shard: (unit.size, unit.version) for unit in plan.units}
    seen = planned.keys() | {bad.path for bad in plan.skipped}
    listed = [item for item in objects if item.key in planned]
    is_same = [planned[item.key] == (item.size, item.version) for item in listed]
    return Changes(
        new=tuple(item for item in objects if item.key not in seen),
        changed=tuple(item for item, same in zip(listed, is_same, strict=True) if not same),
        unchanged=tuple(item for item, same in zip(listed, is_same, strict=True) if same),
        deleted=tuple(sorted(planned.keys() - {item.key for item in objects})),
    )


def extended_plan(plan: Plan, addition: Plan, followed: Sequence[ObjectInfo]) -> Plan:
    """The plan with the units of the `followed` shards replaced by those of `addition`, at its end.

    Raises `UserError` if a column of a new shard does not have the plan's type, or if two shards
    would share a folder in the output.
    """
    _check_types(plan.schema, addition.schema)
    keys = {item.key for item in followed}
    kept = tuple(unit for unit in plan.units if unit.shard not in keys)
    new = tuple(unit for unit in addition.units if unit.shard in keys)
    check_distinct_folders(dict.fromkeys(unit.shard for unit in (*kept, *new)))
    return replace(plan, units=kept + new, skipped=plan.skipped + addition.skipped)


def dropped_keys(plan: Plan, changed: Sequence[ObjectInfo]) -> tuple[str, ...]:
    """The keys of the units of changed shards."""
    keys = {item.key for item in changed}
    return tuple(unit.key for unit in plan.units if unit.shard in keys)


def _check_types(planned: pa.Schema, added: pa.Schema) -> None:
    for field in planned:
        other = added.field(field.name)
        # Rows are cast to the plan's types when they are read; wider types would not fit.
        if not fits(other.type, field.type):
            raise UserError(
                f"the column {field.name} is {field.type} in the plan and {other.type} in a new "
                "shard; make the types equal, or start a new output"
            )
