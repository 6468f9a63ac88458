"""The folders of runs below `_tokenmill/runs/`: each run's summary, events and heartbeat."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.storage.base import Store

RUNS_FOLDER = "_tokenmill/runs"
#: Name of the object in a run's folder that is written when the run ends, however it ends.
SUMMARY_NAME = "summary.json"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run that wrote to the output.

    `summary` is None if the run is still running or was killed.
    """

    run: str
    summary: Mapping[str, Any] | None


def run_folder(run: str) -> str:
    """The key of a run's folder."""
    return f"{RUNS_FOLDER}/{run}"


def list_runs(store: Store) -> tuple[RunFacts, ...]:
    """The runs that wrote to an output, oldest first."""
    keys = {item.key for item in store.list(RUNS_FOLDER)}
    return tuple(RunFacts(name, _summary(store, name, keys)) for name in _names(keys))


def count_runs(store: Store) -> int:
    """The number of runs that wrote to an output, from one listing."""
    return len(_names(item.key for item in store.list(RUNS_FOLDER)))


def _names(keys: Iterable[str]) -> list[str]:
    return sorted({key.removeprefix(f"{RUNS_FOLDER}/").split("/")[0] for key in keys})


def _summary(store: Store, run: str, keys: set[str]) -> Mapping[str, Any] | None:
    key = f"{run_folder(run)}/{SUMMARY_NAME}"
    if key not in keys:
        return None
    summary: Mapping[str, Any] = json.loads(store.read(key))
    return summary
