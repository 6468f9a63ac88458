"""A plan that follows its input: units for new shards, other units for changed ones.

Pure: what differs between a plan and a listing, and the plan that comes of it. Units of shards that
are as they were stay as they are, and so do their objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.job import Input
from pipeline.plan import Plan, refuse_shared_folders
from pipeline.source import changed_shard
from pipeline.store import ObjectInfo, Store


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the input since the plan was made; `gone` are keys of planned shards."""

    new: tuple[ObjectInfo, ...]
    changed: tuple[ObjectInfo, ...]
    unchanged: tuple[ObjectInfo, ...]
    gone: tuple[str, ...]

    def followed(self, settings: Input) -> tuple[ObjectInfo, ...]:
        """The shards to be planned anew."""
        new = self.new if settings.on_new_shard == "add" else ()
        return (*new, *(self.changed if settings.on_changed_shard == "redo" else ()))

    def refuse(self, store: Store, settings: Input) -> None:
        """Raise `UserError` for the first shard whose change the job does not follow."""
        if self.gone:
            raise UserError(changed_shard(store, self.gone[0], "is gone"))
        if self.changed and settings.on_changed_shard == "stop":
            raise UserError(changed_shard(store, self.changed[0].key, "has changed"))


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


def grown(plan: Plan, addition: Plan, followed: Sequence[ObjectInfo]) -> Plan:
    """The plan with the followed shards' units of `addition` behind the others' that it has.

    Raises `UserError` where a new shard's columns are not of the plan's types, or its name would
    give it another's place in the output.
    """
    _refuse_other_types(plan.schema, addition.schema)
    keys = {item.key for item in followed}
    kept = tuple(unit for unit in plan.units if unit.shard not in keys)
    new = tuple(unit for unit in addition.units if unit.shard in keys)
    refuse_shared_folders(dict.fromkeys(unit.shard for unit in (*kept, *new)))
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
