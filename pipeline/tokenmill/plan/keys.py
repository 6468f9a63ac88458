"""Where units are written: from a shard and a row range to a key."""

import hashlib
import re
from urllib.parse import quote

#: Every key below `data/` that is ours.
UNIT_KEY = re.compile(r"data/(?:[A-Za-z0-9.=+-]|%[0-9A-F]{2}|[_/])+/rows-\d{12}-\d{12}\.parquet")
# A name's limit on the usual file systems is 255 bytes; percent-encoding triples most of Unicode.
_LONGEST_NAME = 200


def output_folder(shard: str) -> str:
    """`data/` plus the shard's path without its suffix, as a key that every store and reader takes.

    Everything but letters, digits and `.=+-_/` is percent-encoded, as are parts that a store would
    resolve (`..`) and leading dots and underscores, at which readers skip a folder. Of a name that
    no disk would take, the end is a hash. Injective up to the suffix.
    """
    stem = re.sub(r"\.(parquet|pq|parq)$", "", shard, flags=re.IGNORECASE)
    return "/".join(["data", *(_encode(part) for part in stem.split("/"))])


def _encode(part: str) -> str:
    encoded = quote(part, safe="=+").replace("~", "%7E")
    if encoded[:1] in (".", "_"):
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > _LONGEST_NAME:
        digest = hashlib.sha256(part.encode()).hexdigest()[:32]
        start = re.sub(r"%.?$", "", encoded[: _LONGEST_NAME - 40])
        # A `-` is never encoded elsewhere: no other name looks like this one.
        return f"{start}%2D{digest}"
    # An empty part (`a//b`) would vanish on a local disk.
    return encoded or "%00"
