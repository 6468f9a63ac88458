"""Totals of a finished output, as `_SUCCESS` holds them."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from tokenmill.output.plan_file import SUCCESS_KEY
from tokenmill.output.record import UnitRecord
from tokenmill.storage.base import Store


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over all committed units of an output, whichever run made them."""

    units: int
    rows: int
    filtered: int
    rejects: Mapping[str, int]
    input_tokens: int
    generated_tokens: int

    @property
    def rejected(self) -> int:
        """Rows without an answer."""
        return sum(self.rejects.values())

    @property
    def reject_rate(self) -> float:
        """Rejected rows as a share of the output's rows."""
        return self.rejected / self.rows if self.rows else 0.0


def totals_of(records: Collection[UnitRecord]) -> Totals:
    """The sums over units' records."""
    rejects: Counter[str] = Counter()
    for record in records:
        rejects.update(record.rejects)
    return Totals(
        units=len(records),
        rows=sum(record.num_rows for record in records),
        filtered=sum(record.num_filtered for record in records),
        rejects=dict(sorted(rejects.items())),
        input_tokens=sum(record.input_tokens for record in records),
        generated_tokens=sum(record.generated_tokens for record in records),
    )


def read_success(store: Store) -> Totals | None:
    """The totals of a finished output; None if it is not finished."""
    try:
        return Totals(**json.loads(store.read(SUCCESS_KEY)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # Some other tool's marker: the run verifies and writes ours.
        return None


def write_success(store: Store, totals: Totals) -> None:
    """Mark the output as finished: the last write of its last run."""
    store.replace(SUCCESS_KEY, (json.dumps(asdict(totals)) + "\n").encode())
