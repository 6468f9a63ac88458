"""What a run's replicas say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenmill.engine.base import EngineUsage


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """How busy an engine is, and what it has done since it started.

    `num_held` counts the requests that are not in the engine yet, of rows under way;
    `engine_seconds` is the time that its steps took.
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
    """What the replicas last said of themselves, by name, and how many engines have died.

    `last_dead` names the replica whose engine died last, `last_death` says of what.
    `condemned` counts the rows that were found to kill engines; `ready_s` are the seconds since a
    replica was first ready.
    """

    loads: Mapping[str, ReplicaLoad] = field(default_factory=dict)
    deaths: int = 0
    last_death: str = ""
    condemned: int = 0
    ready_s: float = 0.0
    last_dead: str = ""
