"""The summary of a run, and its id."""

import json
import secrets
import time
from dataclasses import asdict, dataclass

from tokenmill.output.counts import Counts


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run: its own counts, and the `totals` of the output once it is finished.

    `warnings` are about answers that are likely to be wrong, one line each.
    """

    job: str
    run: str
    tokenmill: str
    output: str
    log: str
    model: str
    units: int
    rows: int
    rejected: int
    filtered: int
    input_tokens: int
    generated_tokens: int
    reused: int
    lost_races: int
    engine_deaths: int
    seconds: float
    engine_seconds: float
    skipped_shards: tuple[str, ...]
    warnings: tuple[str, ...]
    totals: Counts | None
    exit_code: int
    error: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def new_run_id() -> str:
    """A unique id that sorts by time: UTC time and six hexadecimal digits."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)
