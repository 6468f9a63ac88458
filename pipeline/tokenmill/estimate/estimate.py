"""Estimate a run before it starts: tokens, time, GPU-hours, cost, and rows that would be rejected.

Tokens are counted on a sample of rows. Time and cost follow from a table of speeds, or from the
speed of a previous run.
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
from tokenmill.run.checks import models_by_key
from tokenmill.run.planning import plan_ahead
from tokenmill.stages.backend import backend_of

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class OutputTokens:
    """The tokens that the engine will generate.

    `most` is the limit that `max_tokens` sets for each row's first requests. `estimate` follows
    from the mean of a previous run if there is one (`is_measured`); otherwise it equals `most`.
    """

    estimate: int
    most: int
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a run.

    `rows`, `units`, `shards` and `bytes` describe the input before `input.where`; everything else
    refers to the `passing_rows`. Tokens are those of each row's first requests. `not_counted` names
    the other ones; if there are any, a previous run's tokens per row count instead.
    `seconds_per_replica` is null if no speed is known, `gpu_hours` without a GPU,
    and `cost` without a GPU or a price.
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
    not_counted: tuple[str, ...]
    notes: tuple[str, ...]


def estimate(
    job: Job,
    num_rows: int = 500,
    seed: int = 0,
    previous: str | None = None,
    device: str | None = None,
) -> Estimate:
    """Estimate a job's run from a random sample of about `num_rows` rows.

    `previous` is the output of a previous run, which provides the length of answers and the speed.
    `device` is a device of the throughput table; by default it is this machine's CPU, if it has no
    GPU. Raises `UserError`.
    """
    if device is not None and device not in DEVICES:
        raise UserError(f"--on {device}: unknown device; choose one of {', '.join(DEVICES)}")
    opened, input_notes = plan_ahead(job)
    job, plan = opened.job, opened.plan
    _require_models(job)
    previous_run = None if previous is None else read_previous_run(previous, job)
    sample = take_sample(opened, num_rows, seed)
    rows = sample.passing
    input_tokens = _input_tokens(sample, rows, previous_run)
    output_tokens = _output_tokens(sample, rows, previous_run)
    speed = _speed(job, previous_run, device)
    seconds = (
        None if speed is None else speed.seconds(input_tokens.estimate, output_tokens.estimate)
    )
    gpu_hours = _gpu_hours(job, seconds, previous_run, device)
    price, replicas = job.model.price_per_gpu_hour, job.model.max_replicas
    rejects = sample.count(lambda row: row.reject is not None)
    return Estimate(
        job=job.name,
        input=plan.input_url,
        shards=plan.num_shards,
        rows=plan.num_rows,
        units=len(plan.units),
        bytes=sum({unit.shard: unit.size for unit in plan.units}.values()),
        confidence=CONFIDENCE,
        sampled_rows=len(sample.rows),
        sampled_units=len(sample.units),
        seed=seed,
        passing_rows=rows,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rejects=rejects,
        rejects_by_class=_rejects_by_class(sample),
        truncated=sample.count(lambda row: row.is_truncated),
        divided=sample.count(lambda row: row.is_divided),
        speed=speed,
        replicas=replicas,
        seconds_per_replica=None if seconds is None else round(seconds / replicas, 1),
        gpu_hours=None if gpu_hours is None else round(gpu_hours, 4),
        price_per_gpu_hour=price,
        cost=None if gpu_hours is None or price is None else round(gpu_hours * price, 2),
        previous=previous_run,
        prompts=sample.prompts,
        not_counted=sample.not_counted,
        notes=(*input_notes, *_over_budget(job, rejects, rows)),
    )


def _over_budget(job: Job, rejects: Interval, rows: Interval) -> Iterator[str]:
    """A warning if the run would exceed the reject limit."""
    limit = job.reject_limit(rows.estimate)
    if rejects.estimate > limit:
        yield (
            f"The run would end with exit code 3: about {rejects.estimate:,} rows would be "
            f"rejected, and max_reject_rate and max_rejects allow {limit:,}."
        )


def _require_models(job: Job) -> None:
    for model in models_by_key(job).values():
        if not backend_of(model).is_fetched:
            raise UserError(
                f"{model.source} is not on this machine, and its tokenizer is needed to count "
                f"tokens; run: tokenmill models fetch {model.source}"
            )


def _rejects_by_class(sample: RowSample) -> dict[str, Interval]:
    classes = Counter(row.reject for row in sample.rows if row.reject is not None)
    return {name: sample.count(partial(_is_of_class, name)) for name, _ in classes.most_common()}


def _is_of_class(name: str, row: SampledRow) -> bool:
    return row.reject == name


def _input_tokens(sample: RowSample, rows: Interval, previous_run: PreviousRun | None) -> Interval:
    """The tokens counted on the sample or, if it lacks requests, the mean of the previous run."""
    counted = sample.sum(lambda row: row.input_tokens)
    if previous_run is None or not sample.not_counted:
        return counted
    measured = round(previous_run.input_tokens_per_row * rows.estimate)
    return counted.shifted(max(0, measured - counted.estimate))


def _output_tokens(
    sample: RowSample, rows: Interval, previous_run: PreviousRun | None
) -> OutputTokens:
    limit = sample.sum(lambda row: row.max_output_tokens).estimate
    if previous_run is None:
        return OutputTokens(limit, limit, is_measured=False)
    mean = previous_run.output_tokens_per_row
    return OutputTokens(round(mean * rows.estimate), limit, is_measured=True)


def _speed(job: Job, previous_run: PreviousRun | None, device: str | None) -> Speed | None:
    """The speed of one replica: as measured, or else from the table by the model's size."""
    if previous_run is not None and previous_run.speed is not None:
        return previous_run.speed
    if device is None and has_local_gpus():
        # The table has an entry per model of GPU, and it is unknown which one this is.
        return None
    folder = backend_of(job.model).folder
    return None if folder is None else speed_of(device or CPU, count_parameters(folder))


def _gpu_hours(
    job: Job, seconds: float | None, previous_run: PreviousRun | None, device: str | None
) -> float | None:
    """GPU-hours of all replicas together; None if the speed is a CPU's.

    A previous run does not record its hardware. If the job states a price per GPU-hour, the run is
    assumed to have used GPUs.
    """
    if device is None:
        was_measured = previous_run is not None and previous_run.speed is not None
        on_gpus = has_local_gpus() or (was_measured and job.model.price_per_gpu_hour is not None)
    else:
        on_gpus = device != CPU
    if seconds is None or not on_gpus:
        return None
    return seconds / _SECONDS_PER_HOUR * job.model.gpus_per_replica
