"""What a previous run measured: the length of answers and the speed of its engines."""

from dataclasses import dataclass

from tokenmill.errors import UserError
from tokenmill.estimate.throughput_table import Speed
from tokenmill.job.job import Job, differing_fields
from tokenmill.output.output import open_output
from tokenmill.output.runs import list_runs
from tokenmill.output.status import StatusReader
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

# Shorter runs give no reliable speed.
_MIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """Means over an output's rows, rejects included.

    `speed` is that of one replica, or null if no run took long enough. `differs` names the fields
    in which its job differs from the estimated one, without those of its input and output.
    """

    output: str
    rows: int
    input_tokens_per_row: float
    output_tokens_per_row: float
    speed: Speed | None
    differs: tuple[str, ...]


def read_previous_run(path: str, job: Job) -> PreviousRun:
    """Read the output at a path. Raises `UserError` if nothing is committed in it yet."""
    opened = open_output(open_store(path))
    status = StatusReader(opened).read()
    rows = status.rows_done - status.filtered
    if rows <= 0:
        raise UserError(f"--from {path}: no rows are committed; name an output that has some")
    differing = differing_fields(opened.plan.answer_fields, job.answer_fields)
    return PreviousRun(
        output=opened.store.url,
        rows=rows,
        input_tokens_per_row=status.input_tokens / rows,
        output_tokens_per_row=status.generated_tokens / rows,
        speed=_speed(opened.store, opened.job.model.max_replicas),
        differs=tuple(name for name in differing if not name.startswith(("input.", "output."))),
    )


def _speed(store: Store, replicas: int) -> Speed | None:
    """One speed for input and output tokens: a run does not show how long each of them took."""
    summaries = [run.summary for run in list_runs(store) if run.summary is not None]
    runs = [summary for summary in summaries if summary["engine_seconds"] >= _MIN_SECONDS]
    tokens = sum(run["input_tokens"] + run["generated_tokens"] for run in runs)
    if not tokens:
        return None
    rate = round(tokens / replicas / sum(run["engine_seconds"] for run in runs), 1)
    source = f"{store.url}: {rate:,.0f} tokens/s per replica, input and output together"
    return Speed(rate, rate, source)
