"""The interface between a run and what executes its units.

`cluster.ray_executor` runs units on Ray, `stages.in_process` in this process. A run knows only the
two protocols below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from tokenmill.input.reader import Source
from tokenmill.job.job import Job
from tokenmill.observe.metrics import Recorder
from tokenmill.output.commit import Commit
from tokenmill.plan.plan import Unit
from tokenmill.scheduling.load import PoolState
from tokenmill.storage.base import Store


@dataclass(frozen=True, slots=True)
class RepairSpec:
    """Answer only some rows of the units again, and replace them in the existing objects.

    `rows` maps a unit's key to the rows' positions in the shard. `changes` holds the fields in
    which the job differs from the output's, with their new values.
    """

    rows: Mapping[str, tuple[int, ...]]
    changes: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        """The number of rows to answer again."""
        return sum(map(len, self.rows.values()))


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that the stages of a run need, as plain data."""

    run: str
    job: Job
    source: Source
    output: Store
    kept_schema: pa.Schema
    units: tuple[Unit, ...]
    repair: RepairSpec | None = None


class Execution(Protocol):
    """A started executor, ready to run the units of one run."""

    recorder: Recorder

    def commits(self, spec: RunSpec) -> Iterator[Commit]:
        """Run the units; yield each commit as it happens, in no particular order.

        Raises the `TokenmillError` of the stage that failed first.
        """

    def state(self) -> PoolState:
        """The last reports of the replicas."""

    def stop(self) -> None:
        """Make `commits`, which another thread iterates over, end soon, possibly with an error."""

    def close(self) -> None:
        """Release everything. No object is written after this returns."""


class Executor(Protocol):
    """Executes the units of a run. Nothing is started before `start`."""

    @property
    def is_local(self) -> bool:
        """Whether the replicas run on this machine."""

    @property
    def has_gpus(self) -> bool:
        """Whether replicas may have GPUs, as far as is known before the start."""

    @property
    def start_stage(self) -> str:
        """What `start` does, for the screen."""

    def warnings(self) -> Sequence[str]:
        """What the user should know before a start, one line each.

        Raises `UserError` for software that cannot work.
        """

    def start(self, job: Job) -> Execution:
        """Start what runs the job's units; the caller closes it.

        Raises `UserError` for settings that cannot work and `RunFailed` for a cluster that does not
        answer.
        """
