"""The keys of units' output objects."""

import hashlib
import re
from urllib.parse import quote

#: The key of an output's plan, by which an output is recognized.
PLAN_KEY = "_tokenmill/plan.parquet"
#: Matches the keys of units. Other keys below `data/` are not ours.
UNIT_KEY = re.compile(r"data/(?:[A-Za-z0-9.=+-]|%[0-9A-F]{2}|[_/])+/rows-\d{12}-\d{12}\.parquet")
# What file managers, Hadoop and EMR write into folders that they show or list.
_BY_PRODUCT = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini", re.IGNORECASE)
_READER_SKIPS = re.compile(r"[._].*|.*\.crc|.*_\$folder\$", re.IGNORECASE)
# Most file systems allow names of 255 bytes, and percent-encoding lengthens most of Unicode.
_MAX_NAME_BYTES = 200


def is_by_product(key: str) -> bool:
    """Whether a file manager has written the object, which says nothing about its folder."""
    return _BY_PRODUCT.fullmatch(key.rpartition("/")[2]) is not None


def is_stray(key: str) -> bool:
    """Whether an object below `data/` is one that other programs write and Parquet readers skip.

    No part of a unit's key looks like one.
    """
    return is_by_product(key) or any(_READER_SKIPS.fullmatch(part) for part in key.split("/"))


def output_folder(shard: str) -> str:
    """`data/` and the shard's path without its suffix, as a key for every store and reader.

    All characters except letters, digits and `.=+-_/` are percent-encoded, as are leading dots and
    underscores: stores resolve `..`, and readers skip such folders. A name that is too long for a
    disk ends with a hash. Shards whose paths differ in more than the suffix get different folders.
    """
    stem = re.sub(r"\.(parquet|pq|parq)$", "", shard, flags=re.IGNORECASE)
    return "/".join(["data", *(_encode(part) for part in stem.split("/"))])


def _encode(part: str) -> str:
    encoded = quote(part, safe="=+").replace("~", "%7E")
    if encoded[:1] in (".", "_"):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > _MAX_NAME_BYTES:
        digest = hashlib.sha256(part.encode()).hexdigest()[:32]
        start = re.sub(r"%.?$", "", encoded[: _MAX_NAME_BYTES - 40])
        # `-` is not encoded elsewhere, so no other name looks like this one.
        return f"{start}%2D{digest}"
    # A local disk would drop an empty part (`a//b`).
    return encoded or "%00"
