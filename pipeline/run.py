"""One execution of a job against an output: plan or resume, run what is missing, verify, finish.

Ray and the engine are imported only when there is something to run.
"""

import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import __version__
from pipeline.columns import added_fields, output_schema
from pipeline.commit import Commit
from pipeline.engine import has_local_gpus, vllm_params
from pipeline.errors import ExitCode, OverBudget, RunFailed, TokenmillError, root_cause
from pipeline.heartbeat import Heartbeat
from pipeline.job import Job
from pipeline.meters import Meters
from pipeline.models import cache_folder
from pipeline.monitor import EventLog, Progress, Screen, counted
from pipeline.notify import notify
from pipeline.output import (
    SUMMARY_NAME,
    Opened,
    Totals,
    committed_keys,
    read_plan,
    run_folder,
    write_success,
)
from pipeline.plan import Unit
from pipeline.pool_state import PoolState
from pipeline.prepare import (
    Prepared,
    check_formats,
    check_job,
    finished_before,
    models_by_place,
    prepare,
)
from pipeline.publish import publish
from pipeline.rejects import example
from pipeline.store import Store, open_store
from pipeline.tools import resolve
from pipeline.traces import Traces, traced
from pipeline.trust import warnings
from pipeline.verify import Expected, Level, require_whole, verify

if TYPE_CHECKING:
    from pipeline.pool import Pool, Repair, RunSpec

# An engine that dies again and again without a unit getting through will not get better; but one
# row that kills is found only by 3 + log2(rows of its unit) deaths, and each replica may have one.
_MOST_DEATHS_BESIDES_SEARCH = 3
_MOST_DEATHS_OF_A_SEARCH = 3
# Rows that kill engines are rare; so many are a sign that the engine itself is sick.
_MOST_CONDEMNED = 8
_TICK_S = 1.0
# Ray Data's loop turns ten times a second, and more slowly on a busy machine.
_END_S = 10.0
_LEAVE_S = 10.0
# Of rejects, in the one line that says why a run was given up.
_MOST_CLASSES = 3
_MOST_CHARACTERS = 200


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
    reused: int
    lost_races: int
    engine_deaths: int
    seconds: float
    engine_seconds: float
    skipped_shards: tuple[str, ...]
    totals: Totals | None
    exit_code: int
    error: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


class Interface(Protocol):
    """What a run says to its user."""

    def say(self, line: str) -> None:
        """One line, now."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Something that happened in the run, as it stands in its `events.jsonl`."""

    def watch(self, log: Path) -> AbstractContextManager[Screen]:
        """Show progress while the context is open; all other output goes into `log`."""


def new_run_id() -> str:
    """Sortable by time, and unique: UTC time and six hexadecimal digits."""
    return time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)


def run_job(
    job: Job, address: str | None, interface: Interface, metrics_port: int | None = None
) -> Summary | None:
    """Bring a job's output to its end: None if it has been there before.

    At `metrics_port` of this machine Prometheus finds what a local run counts.
    Raises `UserError` for the user's mistakes and `RunFailed` for what a later run may survive;
    `KeyboardInterrupt` passes through. In each case what is committed stays.
    """
    check_job(job)
    has_gpus = address is not None or has_local_gpus()
    if not has_gpus and not os.environ.get("RAY_ADDRESS"):
        check_formats(job)
    job = resolve(job)
    store = open_store(job.output.path, job.output.endpoint_url)
    totals = finished_before(job, store)
    if totals is not None:
        interface.say(f"{store.url} is finished: {_counts(totals)}. Nothing to do.")
        return None
    prepared = prepare(job, store, has_gpus)
    _announce(prepared, interface)
    run = Run(prepared.opened, job, prepared.missing, interface)
    return run.to_its_end(address, metrics_port)


def _announce(prepared: Prepared, interface: Interface) -> None:
    plan, missing = prepared.opened.plan, prepared.missing
    interface.say(
        f"{prepared.opened.job.name}: {counted(plan.num_rows, 'row')} in "
        f"{counted(plan.num_shards, 'shard')}, {counted(len(plan.units), 'unit')}, "
        f"to {prepared.opened.store.url}"
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
    whole = f"{counted(totals.rows, 'row')} in {counted(totals.units, 'unit')}"
    return f"{whole}, {totals.rejected:,} rejected{filtered}"


class Run:
    """Some of an output's units on their way through a pool, and what comes of them.

    `job` says how they are answered; `repair` that only rejected rows are, in a job that may
    differ from the output's.
    """

    def __init__(
        self,
        opened: Opened,
        job: Job,
        units: tuple[Unit, ...],
        interface: Interface,
        repair: "Repair | None" = None,
    ) -> None:
        self._opened = opened
        self._job = job
        self._units = units
        self._interface = interface
        self._repair = repair
        self._run = new_run_id()
        self._log = cache_folder() / "logs" / f"{self._run}.log"
        self._events = EventLog(self._run, interface.event)
        self._progress = _initial_progress(opened.plan.units, units)
        self._events.add("start", tokenmill=__version__, missing=len(units))

    def to_its_end(self, address: str | None, metrics_port: int | None = None) -> Summary:
        """Run the units on the cluster at `address`, verify the output, sum it up."""
        try:
            if self._units:
                for line in warnings(models_by_place(self._job)):
                    self._interface.say(line)
                self._execute(address, metrics_port)
            return self._finish()
        except (KeyboardInterrupt, Exception) as error:
            self._stopped(error)
            raise

    def _execute(self, address: str | None, metrics_port: int | None) -> None:
        if address is not None and not self._job.model.is_fake:
            # Before a cluster starts machines for it. On this machine the replica finds the same
            # before it loads anything, and ten seconds of import are saved here.
            for params in self._job.params:
                vllm_params(params)
        beating = Heartbeat(self._opened.store, self._run)
        tracing = traced(self._run, self._opened.job.name, self._interface.say)
        with tracing as traces, self._interface.watch(self._log) as screen, beating:
            screen.update(self._progress, time.monotonic())
            # Ray is imported only by runs that have something to do.
            from pipeline.pool import Pool, RunSpec  # noqa: PLC0415

            pool = Pool(address, self._job, metrics_port)
            try:
                spec = RunSpec(
                    run=self._run,
                    job=self._job,
                    source=self._opened.source,
                    output=self._opened.store,
                    kept_schema=self._opened.kept_schema,
                    units=self._units,
                    repair=self._repair,
                )
                _follow(pool, spec, self._progress, screen, self._events, traces=traces)
            finally:
                pool.close()

    def _finish(self) -> Summary:
        """Verify the whole output, mark it as finished unless too many rows were rejected."""
        store = self._opened.store
        left = self._added_meanwhile()
        if left:
            self._interface.say(
                f"another run has added {counted(left, 'unit')} to the plan meanwhile, and is at "
                "work there; if it is not, the same command runs them"
            )
            return self._ended(None, ExitCode.FINISHED)
        totals = require_whole(verify(store, expected_of(self._opened), Level.FOOTERS))
        if over_budget(self._job, totals):
            return self._ended(totals, ExitCode.OVER_REJECT_BUDGET)
        if self._opened.job.output.publish is not None:
            self._publish(totals, self._opened.job.output.publish)
        return self._ended(totals, ExitCode.FINISHED)

    def _added_meanwhile(self) -> int:
        """How many units are missing that another driver's plan has on top of ours.

        The plan that stands is ours from here on.
        """
        store, before = self._opened.store, {unit.key for unit in self._opened.plan.units}
        plan = read_plan(store) or self._opened.plan
        self._opened = replace(self._opened, plan=plan)
        added = {unit.key for unit in plan.units} - before
        return len(added - committed_keys(store, plan)) if added else 0

    def _publish(self, totals: Totals, target: str) -> None:
        standing = publish(self._opened, totals, target)
        if standing.output != self._opened.store.url:
            self._interface.say(
                f"{target} names {standing.output}, of a later night ({standing.night}), and stays"
            )

    def _ended(self, totals: Totals | None, exit_code: ExitCode) -> Summary:
        """Leave the summary, mark a whole output as finished, tell whom the job names."""
        summary = self._summary(totals, exit_code)
        self._events.add("finish", exit_code=int(exit_code))
        self._write(summary)
        if totals is not None and exit_code == ExitCode.FINISHED:
            write_success(self._opened.store, totals)
        self._notify(summary)
        return summary

    def _notify(self, summary: Summary) -> None:
        if self._job.notify is not None:
            for line in notify(self._job.notify, summary.to_json()):
                self._interface.say(line)

    def _stopped(self, error: BaseException) -> None:
        """Leave a summary of a run that did not end well, and say what stays of it.

        A spot machine is gone in 30 s, whether the store answers or not.
        """
        reason = f"{type(error).__name__}: {root_cause(error)}"
        self._events.add("stop", reason=reason)
        by_signal = isinstance(error, KeyboardInterrupt)
        exit_code = ExitCode.STOPPED if by_signal else ExitCode.FAILED
        newly_counted: queue.SimpleQueue[str] = queue.SimpleQueue()

        def leave() -> None:
            # The store may be what failed; the reason for the stop matters more.
            with suppress(TokenmillError):
                plan = self._opened.plan
                # Counted anew: commits of the last moments have not reached the driver.
                done = len(committed_keys(self._opened.store, plan))
                newly_counted.put(f"{done:,} of {len(plan.units):,} units are committed and stay")
                summary = self._summary(None, exit_code, reason)
                self._write(summary)
                self._notify(summary)

        thread = threading.Thread(target=leave, name="leave", daemon=True)
        thread.start()
        thread.join(_LEAVE_S)
        stays = (
            "the units that are committed stay" if newly_counted.empty() else newly_counted.get()
        )
        self._interface.say(f"stopped: {stays}; the same command runs the rest")

    def _summary(
        self, totals: Totals | None, exit_code: ExitCode, error: str | None = None
    ) -> Summary:
        progress, now = self._progress, time.monotonic()
        return Summary(
            job=self._opened.job.name,
            run=self._run,
            tokenmill=__version__,
            output=self._opened.store.url,
            log=str(self._log),
            model=self._opened.job.model.source,
            units=progress.units,
            rows=progress.rows,
            rejected=progress.rejected,
            filtered=progress.filtered,
            input_tokens=progress.input_tokens,
            generated_tokens=progress.generated_tokens,
            reused=progress.reused,
            lost_races=progress.lost_races,
            engine_deaths=progress.engine_deaths,
            seconds=round(now - progress.started_at, 3),
            engine_seconds=round(progress.engine_seconds(progress.observed_at), 3),
            skipped_shards=tuple(bad.path for bad in self._opened.plan.skipped),
            totals=totals,
            exit_code=int(exit_code),
            error=error,
        )

    def _write(self, summary: Summary) -> None:
        folder = run_folder(summary.run)
        self._opened.store.replace(f"{folder}/events.jsonl", self._events.to_bytes())
        self._opened.store.replace(f"{folder}/{SUMMARY_NAME}", summary.to_json().encode())


def expected_of(opened: Opened) -> Expected:
    """What the output of a job must hold."""
    schema = output_schema(opened.kept_schema, added_fields(opened.job))
    return Expected(opened.plan, schema, opened.job.input.keep, opened.source)


def over_budget(job: Job, totals: Totals) -> bool:
    """Whether more rows were rejected than the job allows."""
    too_many = job.max_rejects is not None and totals.rejected > job.max_rejects
    return too_many or totals.reject_rate > job.max_reject_rate


def _initial_progress(planned: tuple[Unit, ...], units: tuple[Unit, ...]) -> Progress:
    rows = sum(unit.num_rows for unit in planned)
    return Progress(
        units_total=len(planned),
        rows_total=rows,
        units_before=len(planned) - len(units),
        rows_before=rows - sum(unit.num_rows for unit in units),
        started_at=time.monotonic(),
    )


def _follow(  # noqa: PLR0913 - a run, and whom to tell of it
    pool: "Pool",
    spec: "RunSpec",
    progress: Progress,
    screen: Screen,
    events: EventLog,
    *,
    traces: Traces,
) -> None:
    """Count the commits as they come, and look after the replicas about once a second."""
    rows_per_unit = max(unit.num_rows for unit in spec.units)
    patience = Patience(rows_per_unit, spec.job.model.most_replicas)
    meters = Meters(pool.recorder, spec.job.name, spec.run)
    next_tick_at = 0.0
    with _or_none_each_tick(pool, spec) as commits:
        for commit in commits:
            if commit is not None:
                progress.add(commit)
                meters.add(commit)
                events.add_commit(commit)
                traces.add(commit)
                patience.renew(progress.engine_deaths)
                refuse_lost_cause(spec.job, progress, spec.output)
            now = time.monotonic()
            if now >= next_tick_at:
                next_tick_at = now + _TICK_S
                state = pool.state()
                _observe(state, now, progress, events)
                meters.observe(progress)
                screen.update(progress, now)
                patience.observe(state)
    _observe(pool.state(), time.monotonic(), progress, events)
    meters.observe(progress)
    screen.update(progress, time.monotonic())


def _observe(state: PoolState, now: float, progress: Progress, events: EventLog) -> None:
    if state.deaths > progress.engine_deaths:
        events.add("death", replica=state.last_dead, reason=state.last_death)
    progress.observe(state, now)


class Patience:
    """How many deaths of engines are borne before a run is given up."""

    def __init__(self, rows_per_unit: int, replicas: int) -> None:
        search = _MOST_DEATHS_OF_A_SEARCH + rows_per_unit.bit_length()
        self._allowance = _MOST_DEATHS_BESIDES_SEARCH + replicas * search
        self._deaths_before = 0
        self._condemned = 0

    def renew(self, deaths: int) -> None:
        """A unit got through: the engines work."""
        self._deaths_before = deaths

    def observe(self, state: PoolState) -> None:
        """Raise `RunFailed` when it is enough."""
        if self._condemned < state.condemned <= _MOST_CONDEMNED:
            self._condemned = state.condemned
            self.renew(state.deaths)
        deaths = state.deaths - self._deaths_before
        if deaths >= self._allowance:
            raise RunFailed(
                f"engines died {deaths} times without a unit getting through, the last time of "
                f"{state.last_death}"
            )


def refuse_lost_cause(job: Job, progress: Progress, output: Store) -> None:
    """Raise `OverBudget` as soon as the run is sure to end with more rejects than are allowed."""
    most_rows = progress.rows_total - progress.filtered
    most = job.most_rejects(most_rows)
    if progress.rejected > most and progress.rows_done < progress.rows_total:
        classes = "; ".join(
            f"{count:,} {name}{_as_example(output, progress.first_rejects[name], name)}"
            for name, count in progress.rejects.most_common(_MOST_CLASSES)
        )
        raise OverBudget(
            f"{progress.rejected:,} rejects are more than the {most:,} that max_reject_rate and "
            f"max_rejects allow of {most_rows:,} rows: {classes}. tokenmill rejects shows them; "
            "mend the job or the input, or raise the budget, and run again"
        )


def _as_example(output: Store, unit: str, reject_class: str) -> str:
    """One of the unit's rows of the class, to follow the number of all; empty if there is none."""
    # The store may fail by now; the reason for the stop matters more.
    with suppress(TokenmillError, FileNotFoundError):
        row = example(output, unit, reject_class)
        if row is not None:
            return f", as {' '.join(row.split())[:_MOST_CHARACTERS]}"
    return ""


@contextmanager
def _or_none_each_tick(pool: "Pool", spec: "RunSpec") -> Iterator[Iterator[Commit | None]]:
    """The commits as they come, and None after each second without one.

    Iterated in a thread of its own, so that the main thread stays free for signals and drawing. It
    has ended when the context has: Ray ends a process in which a thread uses it while it shuts
    down.
    """
    arrived: queue.SimpleQueue[Commit | Exception | None] = queue.SimpleQueue()

    def iterate() -> None:
        try:
            for commit in pool.commits(spec):
                arrived.put(commit)
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=iterate, name="commits", daemon=True)
    thread.start()
    try:
        yield _until_none(arrived)
    finally:
        pool.stop()
        thread.join(_END_S)


def _until_none(
    arrived: "queue.SimpleQueue[Commit | Exception | None]",
) -> Iterator[Commit | None]:
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
