"""One small object that names the output which readers are to use.

It is exchanged in one step, so that readers move from one night's output to the next at once, or
back. A night that ends late does not take it away from a later night's.
"""

import json
import time
from dataclasses import asdict, dataclass, replace

from tokenmill.errors import RunFailed, UserError
from tokenmill.output.output import Opened
from tokenmill.output.totals import Totals
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store, split_url

# Each time another writer was faster.
_MOST_EXCHANGES = 10


@dataclass(frozen=True, slots=True)
class Pointer:
    """What the object holds.

    `night` orders outputs: the job's `date`, else the moment of publication (UTC). `previous` is
    the output that the pointer named before, to go back to.
    """

    output: str
    job: str
    fingerprint: str
    night: str
    rows: int
    rejected: int
    published_at: str
    previous: str | None


def publish(opened: Opened, totals: Totals, target: str, *, even_back: bool = False) -> Pointer:
    """Have the object at `target` name this output; the pointer that stands then.

    A later night's stays as it is, unless `even_back`. Raises `UserError` for a target that cannot
    be written or holds something else.
    """
    folder, key = split_url(target)
    store = open_store(folder, opened.job.output.endpoint_url)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pointer = Pointer(
        output=opened.store.url,
        job=opened.job.name,
        fingerprint=opened.plan.fingerprint,
        night=opened.job.date or now,
        rows=totals.rows,
        rejected=totals.rejected,
        published_at=now,
        previous=None,
    )
    for _ in range(_MOST_EXCHANGES):
        made = _exchange(store, key, pointer, even_back)
        if made is not None:
            return made
    raise RunFailed(f"{target}: others keep changing it; run the command again")


def _exchange(store: Store, key: str, pointer: Pointer, even_back: bool) -> Pointer | None:
    """The pointer that stands; None if another writer came between."""
    try:
        version = store.info(key).version
        standing = read_pointer(store, key)
    except FileNotFoundError:
        return pointer if store.put_if_absent(key, _to_bytes(pointer)) else None
    if standing.output == pointer.output:
        pointer = replace(pointer, previous=standing.previous)
    elif standing.night > pointer.night and not even_back:
        return standing
    else:
        pointer = replace(pointer, previous=standing.output)
    return pointer if store.put_if_match(key, _to_bytes(pointer), version) else None


def read_pointer(store: Store, key: str) -> Pointer:
    """The pointer that stands. Raises `FileNotFoundError`, or `UserError` if it is none."""
    try:
        return Pointer(**json.loads(store.read(key)))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{store.url}/{key}: not a pointer that tokenmill wrote; publish to another name"
        ) from error


def _to_bytes(pointer: Pointer) -> bytes:
    return (json.dumps(asdict(pointer), indent=2) + "\n").encode()
