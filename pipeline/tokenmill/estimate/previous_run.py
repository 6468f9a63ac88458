"""What a former run tells of one to come: how long answers are, and how fast they were made."""

from dataclasses import dataclass

from tokenmill.errors import UserError
from tokenmill.estimate.throughput_table import Speed
from tokenmill.job.job import Job, differing_fields
from tokenmill.output.output import open_output, runs_of
from tokenmill.output.status import Watch
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

# Of a run that was over in a moment no pace follows.
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """Means over an output's rows, rejects included.

    `speed` is that of one replica; None where no run took long enough. `differs` names the fields
    of the job in which it was another, but for where its input is.
    """

    output: str
    rows: int
    input_tokens_per_row: float
    output_tokens_per_row: float
    speed: Speed | None
    differs: tuple[str, ...]


def read_previous_run(path: str, job: Job) -> PreviousRun:
    """What the output at a path tells. Raises `UserError` where nothing is committed yet."""
    opened = open_output(open_store(path))
    status = Watch(opened).look()
    rows = status.rows_done - status.filtered
    if rows <= 0:
        raise UserError(f"--from {path}: no row is answered there yet; name an output with some")
    differing = differing_fields(opened.plan.answer_fields, job.answer_fields)
    return PreviousRun(
        output=opened.store.url,
        rows=rows,
        input_tokens_per_row=status.input_tokens / rows,
        output_tokens_per_row=status.generated_tokens / rows,
        speed=_speed(opened.store, opened.job.model.max_replicas),
        differs=tuple(name for name in differing if not name.startswith("input.")),
    )


def _speed(store: Store, replicas: int) -> Speed | None:
    """Tokens in and out together: one run does not tell which of them took the time."""
    summaries = [run.summary for run in runs_of(store) if run.summary is not None]
    runs = [each for each in summaries if each["engine_seconds"] >= _LEAST_S]
    tokens = sum(run["input_tokens"] + run["generated_tokens"] for run in runs)
    if not tokens:
        return None
    pace = round(tokens / replicas / sum(run["engine_seconds"] for run in runs), 1)
    return Speed(pace, pace, f"{store.url}: {pace:,.0f} tokens/s a replica, in and out together")
