"""A run's events as JSON: what happens, for programs."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tokenmill.observe.listener import RunListener
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit


def progress_event(progress: Progress, now: float) -> dict[str, Any]:
    """What the live screen shows, as numbers; `remaining_s` is None before there is a pace."""
    read, written = progress.rates(now)
    loads = progress.pool.loads.values()
    return {
        **event_of("progress"),
        "units_done": progress.units_done,
        "units": progress.units_total,
        "rows_answered": progress.rows_answered,
        "rows": progress.rows_total,
        "rejects": dict(progress.counts.rejects),
        "input_tokens_per_s": round(read, 1),
        "output_tokens_per_s": round(written, 1),
        "replicas": len(loads),
        "requests_running": sum(load.num_running for load in loads),
        "engine_deaths": progress.engine_deaths,
        "remaining_s": progress.remaining_s(now),
    }


def event_of(name: str) -> dict[str, Any]:
    """What each event begins with: its time and its name."""
    return {"time": round(time.time(), 3), "event": name}


class EventLog(RunListener):
    """A run's events as JSON lines; each has a time (Unix seconds), a name and the run.

    `tell` gets each as it happens.
    """

    def __init__(self, run: str, tell: Callable[[Mapping[str, Any]], None]) -> None:
        self._run = run
        self._tell = tell
        self._lines: list[str] = []

    def add(self, name: str, **facts: Any) -> None:
        event = {**event_of(name), "run": self._run, **facts}
        self._lines.append(json.dumps(event))
        self._tell(event)

    def committed(self, commit: Commit, progress: Progress) -> None:
        del progress
        self.add("commit", is_ours=commit.is_ours, **asdict(commit.record))

    def crashed(self, replica: str, reason: str) -> None:
        self.add("death", replica=replica, reason=reason)

    def to_bytes(self) -> bytes:
        return "".join(f"{line}\n" for line in self._lines).encode()
