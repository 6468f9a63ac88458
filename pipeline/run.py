"""One execution of a job against an output: plan or resume, run what is missing, verify, finish.

Ray and the engine are imported only when there is something to run.
"""

import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from pipeline import __version__
from pipeline.columns import output_schema
from pipeline.commit import Commit
from pipeline.engine import check_argument_names, vllm_params
from pipeline.errors import ExitCode, RunFailed, TokenmillError, UserError, root_cause
from pipeline.fake import fake_settings
from pipeline.job import Job, Units
from pipeline.models import cache_folder, check_source
from pipeline.monitor import EventLog, Progress, Screen
from pipeline.output import (
    Totals,
    committed_keys,
    has_results,
    missing_units,
    publish_plan,
    read_plan,
    read_success,
    refuse_foreign_files,
    refuse_other_job,
    replace_plan,
    verify,
    write_success,
)
from pipeline.plan import Plan, Unit, UnitSize, first_rows, plan_units
from pipeline.shards import Listing, list_input, read_footers, refuse_output_inside
from pipeline.source import Source, changed_shard
from pipeline.store import Store, open_store
from pipeline.tasks.row import answer_fields, input_columns
from pipeline.tools import resolve
from pipeline.where import where_columns, where_expression

if TYPE_CHECKING:
    from pipeline.pool import Pool, RunSpec

# About a minute of one replica: 300 tokens a second on two cores, some 20,000 on a large GPU.
_UNIT_TOKENS_CPU = 16_384
_UNIT_TOKENS_GPU = 1_000_000
# A template's words and the chat's marks around a row's text.
_CHARACTERS_PER_TOKEN = 4
# An engine that dies again and again without a unit getting through will not get better.
_MOST_DEATHS_WITHOUT_COMMIT = 3
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to: its own counts, and the whole output's `totals` once it is finished."""

    job: str
    run: str
    tokenmill: str
    output: str
    log: str
    model: str
    units: int
    rows: int
    rejected: int
    filtered: int
    input_tokens: int
    generated_tokens: int
    lost_races: int
    engine_deaths: int
    seconds: float
    engine_seconds: float
    skipped_shards: tuple[str, ...]
    totals: Totals | None
    exit_code: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


class Interface(Protocol):
    """What a run says to its user."""

    def say(self, line: str) -> None:
        """One line, now."""

    def watch(self, log: Path) -> AbstractContextManager[Screen]:
        """Show progress while the context is open; all other output goes into `log`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job checked against its input and output: what is planned and what is committed."""

    job: Job
    store: Store
    plan: Plan
    source: Source
    committed: frozenset[str]
    new_shards: int

    @property
    def missing(self) -> tuple[Unit, ...]:
        """The units that are left to run."""
        return missing_units(self.plan, self.committed)


def new_run_id() -> str:
    """Sortable by time, and unique: UTC time and six hexadecimal digits."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)


def check_job(job: Job) -> None:
    """What can be refused without the input, the output, Ray or an engine. Raises `UserError`."""
    names = output_schema(pa.schema([]), answer_fields(job.steps)).names
    taken = sorted(set(names).intersection(job.input.keep))
    if taken:
        raise UserError(
            f"input.keep: {taken[0]} is the name of an output column; rename the input's column"
        )
    if len(set(job.input.keep)) != len(job.input.keep):
        raise UserError("input.keep: a column stands twice")
    input_columns(job.steps)
    side_models = {place: side.source for place, side in job.side_models.items()}
    models = {"model": job.model, **side_models}
    for place, model in models.items():
        check_source(model)
        if model.is_fake:
            fake_settings(model.engine, place)
    real = {f"{at}.engine": model.engine for at, model in models.items() if not model.is_fake}
    if real:
        check_argument_names(
            real,
            {f"{step.place}sampling": step.sampling for step in job.steps if step.sampling}
            | {
                f"{step.place}retries.sampling": step.retries.sampling
                for step in job.steps
                if step.retries
            },
        )


def finished_before(job: Job, store: Store) -> Totals | None:
    """The totals of an output that this very job has finished; None if there is work to do."""
    plan = read_plan(store)
    totals = None if plan is None else read_success(store)
    if plan is not None and totals is not None:
        refuse_other_job(store, plan, job)
    return totals


def prepare(job: Job, store: Store, has_gpus: bool) -> Prepared:
    """Find the output's plan, or make it; hold it against input and output. Raises `UserError`."""
    listing = list_input(job.input.path, job.input.endpoint_url)
    refuse_output_inside(listing, store.url)
    plan = read_plan(store)
    if plan is None:
        refuse_foreign_files(store)
        plan = publish_plan(store, _make_plan(job, listing, has_gpus), job)
    elif plan.fingerprint != job.fingerprint:
        plan = _replan(job, store, plan, _make_plan(job, listing, has_gpus))
    return Prepared(
        job=job,
        store=store,
        plan=plan,
        source=Source(listing.store, plan.schema, job.input.where),
        committed=committed_keys(store, plan),
        new_shards=_compare_shards(listing, plan, job),
    )


def _replan(job: Job, store: Store, standing: Plan, plan: Plan) -> Plan:
    """The plan for a job that was changed after a first try; refused once there are results."""
    if has_results(store):
        refuse_other_job(store, standing, job)
    return replace_plan(store, plan, job)


def _make_plan(job: Job, listing: Listing, has_gpus: bool) -> Plan:
    read = input_columns(job.steps)
    footers = read_footers(listing, _needed_columns(job, read), frozenset(read))
    if footers.bad and job.input.on_bad_shard == "stop":
        bad = footers.bad[0]
        raise UserError(
            f"{listing.store.url}/{bad.path}: {bad.reason}; mend or remove it, or set "
            f"input.on_bad_shard: skip ({len(footers.bad):,} of {len(listing.objects):,} shards "
            "cannot be used)"
        )
    if job.input.where is not None:
        where_expression(job.input.where, footers.schema)
    limit = job.input.limit
    shards = footers.shards if limit is None else first_rows(footers.shards, limit)
    return Plan(
        input_url=listing.store.url,
        fingerprint=job.fingerprint,
        answer_fields=job.answer_fields,
        schema=footers.schema,
        units=plan_units(shards, _unit_size(job.units, has_gpus), _overhead_tokens(job)),
        skipped=footers.bad,
    )


def _needed_columns(job: Job, read: Mapping[str, str]) -> dict[str, str]:
    """Each column that the job needs, and the place that names it; `read` are its tasks'."""
    columns = dict(read)
    if job.input.where is not None:
        columns |= dict.fromkeys(sorted(where_columns(job.input.where)), "input.where")
    return columns | dict.fromkeys(job.input.keep, "input.keep")


def _unit_size(units: Units | None, has_gpus: bool) -> UnitSize:
    if units is None:
        return UnitSize(tokens=_UNIT_TOKENS_GPU if has_gpus else _UNIT_TOKENS_CPU)
    return UnitSize(rows=units.rows, tokens=units.tokens)


def _overhead_tokens(job: Job) -> int:
    """What each row costs beyond its text: the template's own words and the longest answer."""
    templates = [text for step in job.steps for text in step.templates.values()]
    words = sum(len(template) for template in templates) // _CHARACTERS_PER_TOKEN
    return words + sum(params.max_tokens or 0 for params in job.params)


def _compare_shards(listing: Listing, plan: Plan, job: Job) -> int:
    """The number of shards that are not in the plan; raises `UserError` for one that changed."""
    now = {item.key: (item.size, item.version) for item in listing.objects}
    planned = {unit.shard: (unit.size, unit.version) for unit in plan.units}
    for shard, before in planned.items():
        if now.get(shard) != before:
            what = "has changed" if shard in now else "is gone"
            raise UserError(changed_shard(listing.store, shard, what))
    known = planned.keys() | {bad.path for bad in plan.skipped}
    return 0 if job.input.limit is not None else len(now.keys() - known)


def run_job(job: Job, address: str | None, interface: Interface) -> Summary | None:
    """Bring a job's output to its end: None if it has been there before.

    Raises `UserError` for the user's mistakes and `RunFailed` for what a later run may survive;
    `KeyboardInterrupt` passes through. In each case what is committed stays.
    """
    check_job(job)
    job = resolve(job)
    store = open_store(job.output.path, job.output.endpoint_url)
    totals = finished_before(job, store)
    if totals is not None:
        interface.say(f"{store.url} is finished: {_counts(totals)}. Nothing to do.")
        return None
    prepared = prepare(job, store, has_gpus=address is not None or _has_local_gpus())
    _announce(prepared, interface)
    run = _Run(prepared, new_run_id(), interface)
    try:
        if prepared.missing:
            run.execute(address)
        return run.finish()
    except (KeyboardInterrupt, Exception) as error:
        run.stopped(error)
        raise


def _announce(prepared: Prepared, interface: Interface) -> None:
    plan, missing = prepared.plan, prepared.missing
    shards = len({unit.shard for unit in plan.units})
    interface.say(
        f"{prepared.job.name}: {plan.num_rows:,} rows in {shards:,} shards, "
        f"{len(plan.units):,} units, to {prepared.store.url}"
    )
    for bad in plan.skipped:
        interface.say(f"skipped {bad.path}: {bad.reason}")
    if prepared.new_shards:
        interface.say(
            f"{prepared.new_shards:,} shards are newer than the plan and are left out; "
            "run them to another output"
        )
    if prepared.committed:
        rows = sum(unit.num_rows for unit in missing)
        interface.say(
            f"resuming: {len(prepared.committed):,} units are committed, {len(missing):,} units "
            f"with {rows:,} rows are left"
        )


def _counts(totals: Totals) -> str:
    filtered = f", {totals.filtered:,} filtered out" if totals.filtered else ""
    return f"{totals.rows:,} rows in {totals.units:,} units, {totals.rejected:,} rejected{filtered}"


class _Run:
    """One run's way from the missing units to its summary."""

    def __init__(self, prepared: Prepared, run: str, interface: Interface) -> None:
        self._prepared = prepared
        self._run = run
        self._interface = interface
        self._log = cache_folder() / "logs" / f"{run}.log"
        self._events = EventLog()
        self._progress = _initial_progress(prepared)
        self._events.add("start", run=run, tokenmill=__version__, missing=len(prepared.missing))

    def execute(self, address: str | None) -> None:
        """Run the missing units to their end."""
        job = self._prepared.job
        if address is not None and not job.model.is_fake:
            # Before a cluster starts machines for it. On this machine the replica finds the same
            # before it loads anything, and ten seconds of import are saved here.
            for params in job.params:
                vllm_params(params)
        with self._interface.watch(self._log) as screen:
            screen.update(self._progress, time.monotonic())
            # Ray is imported only by runs that have something to do.
            from pipeline.pool import Pool, RunSpec  # noqa: PLC0415

            pool = Pool(address, job)
            try:
                schema = self._prepared.plan.schema
                spec = RunSpec(
                    run=self._run,
                    job=job,
                    source=self._prepared.source,
                    output=self._prepared.store,
                    kept_schema=pa.schema([schema.field(name) for name in job.input.keep]),
                    units=self._prepared.missing,
                )
                _follow(pool, spec, self._progress, screen, self._events)
            finally:
                pool.close()

    def finish(self) -> Summary:
        """Verify the whole output, mark it as finished unless too many rows were rejected."""
        store = self._prepared.store
        totals = verify(store, self._prepared.plan)
        within_budget = not over_budget(self._prepared.job, totals)
        exit_code = ExitCode.FINISHED if within_budget else ExitCode.OVER_REJECT_BUDGET
        summary = self._summary(totals, exit_code)
        self._events.add("finish", exit_code=int(exit_code))
        self._write(summary)
        if within_budget:
            write_success(store, totals)
        return summary

    def stopped(self, error: BaseException) -> None:
        """Leave a summary of a run that did not end well, and say what stays of it."""
        self._events.add("stop", reason=f"{type(error).__name__}: {root_cause(error)}")
        # The store may be what failed; the reason for the stop matters more.
        with suppress(TokenmillError):
            plan = self._prepared.plan
            # Counted anew: commits of the last moments have not reached the driver.
            done = len(committed_keys(self._prepared.store, plan))
            self._interface.say(
                f"stopped: {done:,} of {len(plan.units):,} units are committed and stay; "
                "the same command runs the rest"
            )
            self._write(self._summary(None, ExitCode.FAILED))

    def _summary(self, totals: Totals | None, exit_code: ExitCode) -> Summary:
        progress, now = self._progress, time.monotonic()
        return Summary(
            job=self._prepared.job.name,
            run=self._run,
            tokenmill=__version__,
            output=self._prepared.store.url,
            log=str(self._log),
            model=self._prepared.job.model.source,
            units=progress.units,
            rows=progress.rows,
            rejected=progress.rejected,
            filtered=progress.filtered,
            input_tokens=progress.input_tokens,
            generated_tokens=progress.generated_tokens,
            lost_races=progress.lost_races,
            engine_deaths=progress.engine_deaths,
            seconds=round(now - progress.started_at, 3),
            engine_seconds=round(progress.engine_seconds(progress.observed_at), 3),
            skipped_shards=tuple(bad.path for bad in self._prepared.plan.skipped),
            totals=totals,
            exit_code=int(exit_code),
        )

    def _write(self, summary: Summary) -> None:
        folder = f"_tokenmill/runs/{summary.run}"
        self._prepared.store.replace(f"{folder}/events.jsonl", self._events.to_bytes())
        self._prepared.store.replace(f"{folder}/summary.json", summary.to_json().encode())


def over_budget(job: Job, totals: Totals) -> bool:
    """Whether more rows were rejected than the job allows."""
    too_many = job.max_rejects is not None and totals.rejected > job.max_rejects
    return too_many or totals.reject_rate > job.max_reject_rate


def _has_local_gpus() -> bool:
    return Path("/dev/nvidiactl").exists()


def _initial_progress(prepared: Prepared) -> Progress:
    missing_rows = sum(unit.num_rows for unit in prepared.missing)
    return Progress(
        units_total=len(prepared.plan.units),
        rows_total=prepared.plan.num_rows,
        units_before=len(prepared.committed),
        rows_before=prepared.plan.num_rows - missing_rows,
        started_at=time.monotonic(),
    )


def _follow(
    pool: "Pool", spec: "RunSpec", progress: Progress, screen: Screen, events: EventLog
) -> None:
    """Count the commits as they come, and look after the replicas about once a second."""
    most_deaths = _MOST_DEATHS_WITHOUT_COMMIT
    next_tick_at = 0.0
    for commit in _or_none_each_tick(lambda: pool.commits(spec)):
        if commit is not None:
            progress.add(commit)
            events.add_commit(commit)
            most_deaths = progress.engine_deaths + _MOST_DEATHS_WITHOUT_COMMIT
        now = time.monotonic()
        if now >= next_tick_at:
            next_tick_at = now + _TICK_S
            state = pool.state()
            progress.observe(state, now)
            screen.update(progress, now)
            if state.deaths >= most_deaths:
                raise RunFailed(
                    f"the engine died {_MOST_DEATHS_WITHOUT_COMMIT} times without a unit "
                    f"getting through, the last time of {state.last_death}"
                )
    progress.observe(pool.state(), time.monotonic())
    screen.update(progress, time.monotonic())


def _or_none_each_tick(commits: Callable[[], Iterator[Commit]]) -> Iterator[Commit | None]:
    """The commits as they come, and None after each second without one.

    Iterated in a thread of its own, so that the main thread stays free for signals and drawing.
    """
    arrived: queue.SimpleQueue[Commit | Exception | None] = queue.SimpleQueue()

    def iterate() -> None:
        try:
            for commit in commits():
                arrived.put(commit)
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            arrived.put(error)
        else:
            arrived.put(None)

    threading.Thread(target=iterate, name="commits", daemon=True).start()
    while True:
        try:
            item = arrived.get(timeout=_TICK_S)
        except queue.Empty:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item
