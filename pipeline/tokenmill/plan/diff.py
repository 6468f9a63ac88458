"""A plan that follows its input: units for new shards, other units for changed ones.

Pure: what differs between a plan and a listing, and the plan that comes of it. Units of shards that
are as they were stay as they are, and so do their objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from tokenmill.errors import UserError
from tokenmill.plan.plan import Plan
from tokenmill.plan.units import check_distinct_folders
from tokenmill.storage.base import ObjectInfo, Store


def changed_shard_error(store: Store, shard: str, what: str) -> str:
    """The message for a shard that is not what was planned."""
    return (
        f"{store.url}/{shard}: the shard {what} since the plan was made; put it back, "
        "or start a new output"
    )


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """What a job wants done about shards that are new or have changed since the plan was made."""

    add_new: bool
    redo_changed: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the input since the plan was made; `gone` are keys of planned shards."""

    new: tuple[ObjectInfo, ...]
    changed: tuple[ObjectInfo, ...]
    unchanged: tuple[ObjectInfo, ...]
    gone: tuple[str, ...]

    def to_plan(self, policy: ChangePolicy) -> tuple[ObjectInfo, ...]:
        """The shards whose units must be planned again."""
        new = self.new if policy.add_new else ()
        return (*new, *(self.changed if policy.redo_changed else ()))

    def check(self, store: Store, policy: ChangePolicy) -> None:
        """Raise `UserError` for the first shard whose change the job does not follow."""
        if self.gone:
            raise UserError(changed_shard_error(store, self.gone[0], "is gone"))
        if self.changed and not policy.redo_changed:
            raise UserError(changed_shard_error(store, self.changed[0].key, "has changed"))


def changes_since(plan: Plan, objects: Sequence[ObjectInfo]) -> Changes:
    """A listing of the input held against the plan."""
    planned = {unit.shard: (unit.size, unit.version) for unit in plan.units}
    known = planned.keys() | {bad.path for bad in plan.skipped}
    still = [item for item in objects if item.key in planned]
    is_same = [planned[item.key] == (item.size, item.version) for item in still]
    return Changes(
        new=tuple(item for item in objects if item.key not in known),
        changed=tuple(item for item, same in zip(still, is_same, strict=True) if not same),
        unchanged=tuple(item for item, same in zip(still, is_same, strict=True) if same),
        gone=tuple(sorted(planned.keys() - {item.key for item in objects})),
    )


def extended_plan(plan: Plan, addition: Plan, followed: Sequence[ObjectInfo]) -> Plan:
    """The plan with the followed shards' units of `addition` behind the others' that it has.

    Raises `UserError` where a new shard's columns are not of the plan's types, or its name would
    give it another's place in the output.
    """
    _refuse_other_types(plan.schema, addition.schema)
    keys = {item.key for item in followed}
    kept = tuple(unit for unit in plan.units if unit.shard not in keys)
    new = tuple(unit for unit in addition.units if unit.shard in keys)
    check_distinct_folders(dict.fromkeys(unit.shard for unit in (*kept, *new)))
    return replace(plan, units=kept + new, skipped=plan.skipped + addition.skipped)


def dropped_keys(plan: Plan, changed: Sequence[ObjectInfo]) -> tuple[str, ...]:
    """The keys of the units of changed shards."""
    keys = {item.key for item in changed}
    return tuple(unit.key for unit in plan.units if unit.shard in keys)


def _refuse_other_types(planned: pa.Schema, added: pa.Schema) -> None:
    for field in planned:
        other = added.field(field.name)
        # Rows are cast to the plan's types when they are read; wider ones would not fit.
        if not _fits(other.type, field.type):
            raise UserError(
                f"the column {field.name} is {field.type} in the plan and {other.type} in a new "
                "shard; make the types equal, or start a new output"
            )


def _fits(added: pa.DataType, planned: pa.DataType) -> bool:
    try:
        common = pa.unify_schemas(
            [pa.schema([("", planned)]), pa.schema([("", added)])], promote_options="permissive"
        )
    except pa.ArrowException:
        return False
    return bool(common.field(0).type == planned)
