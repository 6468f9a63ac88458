"""A run's events as JSON, for programs: what happens and when."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit


class EventName(StrEnum):
    """The kinds of events. REMARK, PROGRESS and ERROR are printed only, the others are stored."""

    START = "start"
    COMMIT = "commit"
    # Programs that read events.jsonl know this name.
    CRASH = "death"
    STOP = "stop"
    FINISH = "finish"
    REMARK = "remark"
    PROGRESS = "progress"
    ERROR = "error"


def new_event(name: EventName) -> dict[str, Any]:
    """The fields that every event has: its time in Unix seconds, and its name."""
    return {"time": round(time.time(), 3), "event": name}


def progress_event(progress: Progress, now: float) -> dict[str, Any]:
    """The numbers of the live screen.

    `remaining_s` is None until the rate is known, and `stage` is None while a replica is ready.
    """
    input_rate, output_rate = progress.rates(now)
    loads = progress.pool.loads.values()
    return {
        **new_event(EventName.PROGRESS),
        "units_done": progress.units_done,
        "units": progress.units_total,
        "rows_answered": progress.rows_answered,
        "rows": progress.rows_total,
        "rejects": dict(progress.counts.rejects),
        "input_tokens_per_s": round(input_rate, 1),
        "output_tokens_per_s": round(output_rate, 1),
        "stage": progress.stage,
        "replicas": len(loads),
        "requests_running": sum(load.num_running for load in loads),
        "engine_deaths": progress.engine_crashes,
        "remaining_s": progress.remaining_s(now),
    }


class EventLog(RunListener):
    """A run's events as JSON lines, each with the run's id; `show` gets each as it happens."""

    def __init__(self, run: str, show: Callable[[Mapping[str, Any]], None]) -> None:
        self._run = run
        self._show = show
        self._lines: list[str] = []

    def add(self, name: EventName, **fields: Any) -> None:
        event = {**new_event(name), "run": self._run, **fields}
        self._lines.append(json.dumps(event))
        self._show(event)

    def committed(self, commit: Commit, progress: Progress) -> None:
        del progress
        self.add(EventName.COMMIT, is_ours=commit.is_ours, **asdict(commit.record))

    def crashed(self, replica: str, reason: str) -> None:
        self.add(EventName.CRASH, replica=replica, reason=reason)

    def to_bytes(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()
