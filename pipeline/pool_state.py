"""What a run's replicas say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, and what it has done since it started."""

    num_running: int
    num_units: int
    input_tokens: int
    generated_tokens: int
    answered_rows: int = 0


@dataclass(frozen=True, slots=True)
class PoolState:
    """What the replicas last said of themselves, by name, and how many engines have died.

    `last_dead` names the replica whose engine died last, `last_death` says of what.
    `condemned` counts the rows that were found to kill engines; `ready_s` are the seconds since a
    replica was first ready.
    """

    loads: Mapping[str, Load] = field(default_factory=dict)
    deaths: int = 0
    last_death: str = ""
    condemned: int = 0
    ready_s: float = 0.0
    last_dead: str = ""
