"""The progress of an output, from its objects alone; works on any machine that can read them."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tokenmill.output.counts import sum_counts
from tokenmill.output.heartbeat import ALIVE_NAME, is_alive
from tokenmill.output.output import OpenedOutput, committed_keys
from tokenmill.output.record import UnitRecord, read_records
from tokenmill.output.runs import RUNS_FOLDER, SUMMARY_NAME, run_folder
from tokenmill.output.success import read_success
from tokenmill.storage.base import Store

# Older commits say nothing about the current speed.
_RECENT_S = 600.0


@dataclass(frozen=True, slots=True)
class Status:
    """The state of an output at one moment. Rows are input rows, filtered ones included.

    `running` names the runs with a recent heartbeat, except processes of this machine that have
    ended. `rows_per_s` is the speed of the commits of
    the last ten minutes, and `remaining_s` follows from it; both are null if no run is active.
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
        """`finished`, `running` or `stopped`."""
        if self.is_finished:
            return "finished"
        return "running" if self.running else "stopped"


class StatusReader:
    """Reads an output's status repeatedly; reads each unit's record once."""

    def __init__(self, opened: OpenedOutput) -> None:
        self._opened = opened
        self._records: dict[str, UnitRecord] = {}

    def until_finished(self, wait: Callable[[], object]) -> Iterator[Status]:
        """The status again and again until the output is finished; `wait` is called in between."""
        status = self.read()
        yield status
        while not status.is_finished:
            wait()
            status = self.read()
            yield status

    def read(self) -> Status:
        """The output's current status. Raises `UserError` for foreign objects below `data/`."""
        store, plan = self._opened.store, self._opened.plan
        committed = committed_keys(store, plan)
        new = sorted(committed - self._records.keys())
        self._records.update(zip(new, read_records(store, new), strict=True))
        counts = sum_counts(record.counts for record in self._records.values())
        now = time.time()
        running = running_runs(store, now)
        rows_per_s = _rows_per_s(self._records.values(), now) if running else None
        return Status(
            output=store.url,
            job=self._opened.job.name,
            is_finished=read_success(store) is not None,
            running=running,
            units_done=counts.units,
            units=len(plan.units),
            rows_done=counts.input_rows,
            rows=plan.num_rows,
            filtered=counts.filtered,
            rejects=counts.rejects,
            input_tokens=counts.input_tokens,
            generated_tokens=counts.generated_tokens,
            rows_per_s=rows_per_s,
            remaining_s=(plan.num_rows - counts.input_rows) / rows_per_s if rows_per_s else None,
        )


def changes(statuses: Iterable[Status]) -> Iterator[Status]:
    """Each status that differs from the one before it in more than its speed."""
    before: Status | None = None
    for status in statuses:
        now = replace(status, rows_per_s=None, remaining_s=None)
        if now != before:
            yield status
        before = now


def running_runs(store: Store, now: float) -> tuple[str, ...]:
    """The runs with a recent heartbeat and no summary at a Unix time, oldest first."""
    return tuple(_running(store, now))


def _running(store: Store, now: float) -> Iterator[str]:
    keys = {item.key for item in store.list(RUNS_FOLDER)}
    for key in sorted(keys):
        run = key.removeprefix(f"{RUNS_FOLDER}/").removesuffix(f"/{ALIVE_NAME}")
        folder = run_folder(run)
        if key != f"{folder}/{ALIVE_NAME}" or f"{folder}/{SUMMARY_NAME}" in keys:
            continue
        if is_alive(json.loads(store.read(key)), now):
            yield run


def _rows_per_s(records: Collection[UnitRecord], now: float) -> float | None:
    """Rows of recent commits, divided by the time since the earliest of these units began."""
    recent = [record for record in records if record.written_at >= now - _RECENT_S]
    if not recent:
        return None
    began = min(record.written_at - record.seconds for record in recent)
    rows = sum_counts(record.counts for record in recent).input_rows
    return rows / max(1.0, now - max(began, now - _RECENT_S))
