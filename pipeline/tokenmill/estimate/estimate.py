"""What a run will take, before it: tokens, time, GPU-hours, cost, and the rows that will not do.

Tokens are counted on a sample of rows; the rest follows from a table of speeds, or from what a
former run measured.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from tokenmill.errors import UserError
from tokenmill.estimate.previous_run import PreviousRun, read_previous_run
from tokenmill.estimate.row_sample import RowSample, SampledRow, ShownPrompt, take_sample
from tokenmill.estimate.statistics import CONFIDENCE, Interval
from tokenmill.estimate.throughput_table import CPU, DEVICES, Speed, speed_of
from tokenmill.hardware import has_local_gpus
from tokenmill.job.job import Job
from tokenmill.models.config import count_parameters
from tokenmill.models.fetch import local_path
from tokenmill.run.checks import models_by_key
from tokenmill.run.planning import plan_ahead


@dataclass(frozen=True, slots=True)
class OutputTokens:
    """What the engine will write.

    `most` is what max_tokens allows; `estimate` follows from a former run's mean where there is
    one (`is_measured`), and is `most` otherwise.
    """

    estimate: int
    most: int
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A run's figures before it; JSON holds all of them.

    `rows`, `units`, `shards` and `bytes` are those of the input, before `input.where`;
    `passing_rows` are those that pass it, and all else is of them. Tokens are those of each row's
    first requests: `notes` says what comes on top. `gpu_hours` and `cost` are None where no GPU or
    no price is known, `seconds_per_replica` where no speed is.
    """

    job: str
    input: str
    shards: int
    rows: int
    units: int
    bytes: int
    confidence: float
    sampled_rows: int
    sampled_units: int
    seed: int
    passing_rows: Interval
    input_tokens: Interval
    output_tokens: OutputTokens
    rejects: Interval
    rejects_by_class: Mapping[str, Interval]
    truncated: Interval
    divided: Interval
    speed: Speed | None
    replicas: int
    seconds_per_replica: float | None
    gpu_hours: float | None
    price_per_gpu_hour: float | None
    cost: float | None
    previous: PreviousRun | None
    prompts: tuple[ShownPrompt, ...]
    notes: tuple[str, ...]


def estimate(
    job: Job,
    num_rows: int = 500,
    seed: int = 0,
    previous: str | None = None,
    device: str | None = None,
) -> Estimate:
    """What a job will take, from so many of its rows, drawn by the seed.

    `previous` is the output of a former run that tells of answers' lengths and of the pace;
    `device` is one of the throughput table, by default this machine's. Raises `UserError`.
    """
    if device is not None and device not in DEVICES:
        raise UserError(f"--on {device}: no figures of it; there are: {', '.join(DEVICES)}")
    ahead = plan_ahead(job)
    _require_models(ahead.job)
    before = None if previous is None else read_previous_run(previous, ahead.job)
    sample = take_sample(ahead, num_rows, seed)
    rows = sample.passing
    tokens = sample.sum(lambda row: row.input_tokens)
    written = _output_tokens(sample, rows, before)
    speed = _speed(ahead.job, before, device)
    model = ahead.job.model
    seconds = None if speed is None else speed.seconds(tokens.estimate, written.estimate)
    gpu_hours = _gpu_hours(ahead.job, seconds, before, device)
    price = model.price_per_gpu_hour
    rejects = sample.count(lambda row: row.reject is not None)
    return Estimate(
        job=ahead.job.name,
        input=ahead.plan.input_url,
        shards=ahead.plan.num_shards,
        rows=ahead.plan.num_rows,
        units=len(ahead.plan.units),
        bytes=sum({unit.shard: unit.size for unit in ahead.plan.units}.values()),
        confidence=CONFIDENCE,
        sampled_rows=len(sample.rows),
        sampled_units=len(sample.units),
        seed=seed,
        passing_rows=rows,
        input_tokens=tokens,
        output_tokens=written,
        rejects=rejects,
        rejects_by_class=_rejects(sample),
        truncated=sample.count(lambda row: row.is_truncated),
        divided=sample.count(lambda row: row.is_divided),
        speed=speed,
        replicas=model.max_replicas,
        seconds_per_replica=None if seconds is None else round(seconds / model.max_replicas, 1),
        gpu_hours=None if gpu_hours is None else round(gpu_hours, 4),
        price_per_gpu_hour=price,
        cost=None if gpu_hours is None or price is None else round(gpu_hours * price, 2),
        previous=before,
        prompts=sample.prompts,
        notes=(*sample.notes, *_over_budget(ahead.job, rejects, rows)),
    )


def _over_budget(job: Job, rejects: Interval, rows: Interval) -> Iterator[str]:
    """That the run is likely to end with exit code 3, said while it costs nothing."""
    most = job.reject_limit(rows.estimate)
    if rejects.estimate > most:
        yield (
            f"{rejects.estimate:,} rejects are more than the {most:,} that max_reject_rate and "
            "max_rejects allow: the run would end with exit code 3"
        )


def _require_models(job: Job) -> None:
    for model in models_by_key(job).values():
        if not model.is_fake and local_path(model) is None:
            raise UserError(
                f"{model.source} is not on this machine, and its tokenizer counts the tokens; "
                f"run: tokenmill models fetch {model.source}"
            )


def _rejects(sample: RowSample) -> dict[str, Interval]:
    seen = Counter(row.reject for row in sample.rows if row.reject is not None)
    return {name: sample.count(partial(_is_of, name)) for name, _ in seen.most_common()}


def _is_of(name: str, row: SampledRow) -> bool:
    return row.reject == name


def _output_tokens(sample: RowSample, rows: Interval, before: PreviousRun | None) -> OutputTokens:
    most = sample.sum(lambda row: row.most_output_tokens).estimate
    if before is None:
        return OutputTokens(most, most, is_measured=False)
    return OutputTokens(round(before.output_tokens_per_row * rows.estimate), most, is_measured=True)


def _speed(job: Job, before: PreviousRun | None, device: str | None) -> Speed | None:
    """One replica's: as it was measured, or the table's for the model's size."""
    if before is not None and before.speed is not None:
        return before.speed
    if device is None and has_local_gpus():
        # Which GPUs is not known here.
        return None
    folder = None if job.model.is_fake else local_path(job.model)
    return None if folder is None else speed_of(device or CPU, count_parameters(folder))


def _gpu_hours(
    job: Job, seconds: float | None, before: PreviousRun | None, device: str | None
) -> float | None:
    """Of all replicas together; None where the figures are a CPU's.

    A former run does not say what it ran on: who states a price of GPUs pays for them.
    """
    if device is None:
        was_measured = before is not None and before.speed is not None
        on_gpus = has_local_gpus() or (was_measured and job.model.price_per_gpu_hour is not None)
    else:
        on_gpus = device != CPU
    if seconds is None or not on_gpus:
        return None
    return seconds / 3600 * job.model.gpus_per_replica
