"""What the replicas of a run report about themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenmill.engine.base import EngineUsage


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy a replica is, and what its engine has done since it started.

    `num_running` counts the requests in the engine, `num_held` those of begun rows that are not in
    it yet. `engine_seconds` is the time spent in the engine's steps.
    """

    num_running: int
    num_units: int
    input_tokens: int
    generated_tokens: int
    answered_rows: int = 0
    num_held: int = 0
    usage: EngineUsage = field(default_factory=EngineUsage)
    engine_seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PoolState:
    """The replicas' last reports, by replica name, and what is known about engine crashes.

    `crashes` counts the engines that crashed. `crash_reason` and `crashed_replica` describe the
    last crash, and `crashed_rows` counts the rows on which engines crashed for that reason
    (`CrashHistory`). `poison_rows` counts the rows that were found to crash engines. `ready_s` is
    the time in seconds since the first replica became ready. `num_loading` counts the replicas that
    load a model, and `load_crashes` those that were killed while loading since one became ready.
    """

    loads: Mapping[str, ReplicaLoad] = field(default_factory=dict)
    crashes: int = 0
    crash_reason: str = ""
    poison_rows: int = 0
    ready_s: float = 0.0
    crashed_replica: str = ""
    crashed_rows: int = 0
    num_loading: int = 0
    load_crashes: int = 0
