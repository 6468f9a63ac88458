"""How an output is doing, from its objects alone and on any machine: done, left, rejected, rate."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenmill.output.heartbeat import ALIVE_NAME, alive_until
from tokenmill.output.output import Opened, committed_keys, read_records
from tokenmill.output.plan_file import RUNS_FOLDER, SUMMARY_NAME, run_folder
from tokenmill.output.record import UnitRecord
from tokenmill.output.totals import read_success, totals_of
from tokenmill.storage.base import Store

# What happened longer ago says nothing of the present pace.
_PACE_S = 600.0


@dataclass(frozen=True, slots=True)
class Status:
    """An output at a moment. Rows are input rows, those that a filter leaves out included.

    `running` names the runs that give a sign of life; `rows_per_s` is the pace of the last ten
    minutes' commits, and what `remaining_s` follows from: None where nobody is at work.
    """

    output: str
    job: str
    is_finished: bool
    running: tuple[str, ...]
    units_done: int
    units: int
    rows_done: int
    rows: int
    filtered: int
    rejects: Mapping[str, int]
    input_tokens: int
    generated_tokens: int
    rows_per_s: float | None
    remaining_s: float | None

    @property
    def state(self) -> str:
        """In a word: finished, running, or stopped."""
        if self.is_finished:
            return "finished"
        return "running" if self.running else "stopped"


class Watch:
    """Looks at an output, again and again; what was read of a unit is not read again."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._records: dict[str, UnitRecord] = {}

    def look(self) -> Status:
        """The output's state now. Raises `UserError` for foreign objects among the results."""
        store, plan = self._opened.store, self._opened.plan
        committed = committed_keys(store, plan)
        new = sorted(committed - self._records.keys())
        self._records.update(zip(new, read_records(store, new), strict=True))
        totals = totals_of(list(self._records.values()))
        running = tuple(_running(store, time.time()))
        rows_done = totals.rows + totals.filtered
        pace = _pace(list(self._records.values()), time.time()) if running else None
        return Status(
            output=store.url,
            job=self._opened.job.name,
            is_finished=read_success(store) is not None,
            running=running,
            units_done=totals.units,
            units=len(plan.units),
            rows_done=rows_done,
            rows=plan.num_rows,
            filtered=totals.filtered,
            rejects=totals.rejects,
            input_tokens=totals.input_tokens,
            generated_tokens=totals.generated_tokens,
            rows_per_s=pace,
            remaining_s=(plan.num_rows - rows_done) / pace if pace else None,
        )


def _running(store: Store, now: float) -> Iterator[str]:
    """The runs that have given a sign of life lately and have not ended."""
    names = {item.key for item in store.list(RUNS_FOLDER)}
    for key in sorted(names):
        run = key.removeprefix(f"{RUNS_FOLDER}/").removesuffix(f"/{ALIVE_NAME}")
        folder = run_folder(run)
        if key != f"{folder}/{ALIVE_NAME}" or f"{folder}/{SUMMARY_NAME}" in names:
            continue
        if alive_until(json.loads(store.read(key))) >= now:
            yield run


def _pace(records: Sequence[UnitRecord], now: float) -> float | None:
    """Rows a second of what was committed lately, of the time since the first of it began."""
    recent = [record for record in records if record.written_at >= now - _PACE_S]
    if not recent:
        return None
    began = min(record.written_at - record.seconds for record in recent)
    rows = sum(record.num_rows + record.num_filtered for record in recent)
    return rows / max(1.0, now - max(began, now - _PACE_S))
