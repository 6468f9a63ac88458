"""The Arrow types of columns: as shards have them, as they are read, and as prompts print them."""

from collections.abc import Callable

import pyarrow as pa

# Widths may differ between shards, kinds may not: a prompt prints 5 and 5.0, or a text and its
# bytes, differently.
_KINDS: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_decimal,
    lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
)
#: Holds all integers of 64 bits, signed and unsigned, and prints them as an integer does.
_ALL_INTEGERS = pa.decimal128(20, 0)


def as_read(type_: pa.DataType) -> pa.DataType:
    """The type that a column of this type is read as: Arrow cannot filter or take views."""
    return _changed(type_, _without_views)


def as_strings(type_: pa.DataType) -> pa.DataType:
    """The type with strings in place of bytes.

    Impala, Hive and old versions of Spark store texts without their annotation.
    """
    return _changed(type_, _strings)


def holds_chats(type_: pa.DataType) -> bool:
    """Whether a column can hold chats: lists of structs with the texts `role` and `content`."""
    if pa.types.is_null(type_):
        return True
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    if not (is_list or pa.types.is_fixed_size_list(type_)):
        return False
    message = type_.value_type
    if not pa.types.is_struct(message):
        return bool(pa.types.is_null(message))
    parts = [message.get_field_index(name) for name in ("role", "content")]
    return -1 not in parts and all(_is_text(message.field(part).type) for part in parts)


def _is_text(type_: pa.DataType) -> bool:
    plain = as_strings(_plain(type_))
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    return any(is_of(plain) for is_of in texts)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of two shards' columns; None if they differ in kind."""
    common = _widest(one, other)
    kinds = [_changed(kind, _plain) for kind in (one, other) if kind != pa.null()]
    if common is None or (common == _ALL_INTEGERS and all(map(pa.types.is_integer, kinds))):
        return common
    plain = _changed(common, _plain)
    if any(is_of(kind) != is_of(plain) for kind in kinds for is_of in _KINDS):
        return None
    return common


def fits(added: pa.DataType, planned: pa.DataType) -> bool:
    """Whether the values of a new shard can be read as the type that was planned."""
    # Plans of former versions have views.
    planned = as_read(planned)
    return bool(_widest(planned, added) == planned)


def _widest(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if pa.uint64() in (one, other) and any(map(pa.types.is_signed_integer, (one, other))):
        return _ALL_INTEGERS
    common = _unified(one, other)
    # A text may be a dictionary or JSON in one shard and plain in the other.
    return common or _unified(_changed(one, _plain), _changed(other, _plain))


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _without_views(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(type_):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(type_) else type_


def _strings(type_: pa.DataType) -> pa.DataType:
    type_ = _plain(type_) if _has_bytes(_plain(type_)) else type_
    if pa.types.is_large_binary(type_):
        return pa.large_string()
    return pa.string() if _has_bytes(type_) else type_


def _has_bytes(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(type_)
        or pa.types.is_large_binary(type_)
        or pa.types.is_fixed_size_binary(type_)
    )


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values, or of JSON's text."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    return type_.storage_type if isinstance(type_, pa.JsonType) else type_


def _changed(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with its innermost types changed."""
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_changed(field.type, change)) for field in type_])
    if pa.types.is_map(type_):
        key, value = type_.key_field, type_.item_field
        return pa.map_(
            key.with_type(_changed(key.type, change)), value.with_type(_changed(value.type, change))
        )
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_changed_element(type_, change), type_.list_size)
    if pa.types.is_large_list(type_):
        return pa.large_list(_changed_element(type_, change))
    if pa.types.is_list(type_):
        return pa.list_(_changed_element(type_, change))
    return change(type_)


def _changed_element(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.Field:
    field = type_.value_field
    return field.with_type(_changed(field.type, change))
