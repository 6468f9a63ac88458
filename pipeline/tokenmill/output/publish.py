"""The pointer: one small object that names the output that readers use.

It is replaced in one conditional write, so that readers switch from one output to the next, or
back, at once. A run that finishes late does not replace a pointer to a newer output.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenmill.errors import RunFailed, UserError
from tokenmill.output.counts import Counts
from tokenmill.output.output import OpenedOutput
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store, split_url

# How often to start over because another writer changed the pointer first.
_MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Pointer:
    """The content of the pointer object.

    `version_date` orders outputs: it is the job's `date` or, without one, the time of publication
    (UTC). Its JSON field is called `night`. `previous` is the output that the pointer named before,
    for rolling back.
    """

    output: str
    job: str
    fingerprint: str
    version_date: str
    rows: int
    rejected: int
    published_at: str
    previous: str | None

    @classmethod
    def from_json(cls, data: bytes) -> "Pointer":
        """The inverse of `to_json`. Raises `TypeError` or `ValueError` for anything else."""
        return cls(**{_FIELDS.get(name, name): value for name, value in json.loads(data).items()})

    def to_json(self) -> bytes:
        """The bytes of the object."""
        facts: dict[str, Any] = {_KEYS.get(name, name): part for name, part in asdict(self).items()}
        return (json.dumps(facts, indent=2) + "\n").encode()


# Readers depend on the JSON field's name.
_KEYS = {"version_date": "night"}
_FIELDS = {key: name for name, key in _KEYS.items()}


def publish(
    opened: OpenedOutput,
    totals: Counts,
    target: str,
    *,
    allow_rollback: bool = False,
    folder: Store | None = None,
) -> Pointer:
    """Point the object at the URL `target` to this output, and return the pointer it then holds.

    A pointer to a newer output is left as it is, unless `allow_rollback`. `folder` is the store of
    the target's folder, if it is not the one that its URL names.

    Raises `UserError` if the target cannot be written or holds something else, and `RunFailed` if
    other writers keep changing it.
    """
    url, key = split_url(target)
    store = folder or open_store(url, opened.job.output.endpoint_url)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pointer = Pointer(
        output=opened.store.url,
        job=opened.job.name,
        fingerprint=opened.plan.fingerprint,
        version_date=opened.job.date or now,
        rows=totals.rows,
        rejected=totals.rejected,
        published_at=now,
        previous=None,
    )
    for _ in range(_MAX_ATTEMPTS):
        published = _try_to_publish(store, key, pointer, allow_rollback)
        if published is not None:
            return published
    raise RunFailed(f"{target}: other writers keep changing it; run the command again")


def _try_to_publish(
    store: Store, key: str, pointer: Pointer, allow_rollback: bool
) -> Pointer | None:
    """The pointer that the object then holds; None if another writer changed it first."""
    try:
        version = store.info(key).version
        existing = read_pointer(store, key)
    except FileNotFoundError:
        return pointer if store.put_if_absent(key, pointer.to_json()) else None
    if existing.output == pointer.output:
        pointer = replace(pointer, previous=existing.previous)
    elif existing.version_date > pointer.version_date and not allow_rollback:
        return existing
    else:
        pointer = replace(pointer, previous=existing.output)
    return pointer if store.put_if_match(key, pointer.to_json(), version) else None


def read_pointer(store: Store, key: str) -> Pointer:
    """The pointer that an object holds.

    Raises `FileNotFoundError` if there is no object, and `UserError` if it holds something else.
    """
    try:
        return Pointer.from_json(store.read(key))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{store.url}/{key} is not a pointer written by tokenmill; publish under another name"
        ) from error
