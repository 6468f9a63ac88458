"""One execution of a job against an output: plan or resume, run what is missing, verify, finish.

Ray and the engine are imported only when there is something to run.
"""

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace

from tokenmill import __version__
from tokenmill.engine.vllm_params import vllm_params
from tokenmill.errors import ExitCode, TokenmillError, root_cause
from tokenmill.formatting import plural
from tokenmill.job.job import Job
from tokenmill.models.cache import cache_folder
from tokenmill.models.code_safety import trust_warnings
from tokenmill.observe.events import EventLog
from tokenmill.observe.listener import RunListener
from tokenmill.observe.metrics import RunMetrics
from tokenmill.observe.screen import Interface
from tokenmill.observe.traces import traces_of
from tokenmill.output.heartbeat import Heartbeat
from tokenmill.output.output import Opened, committed_keys
from tokenmill.output.plan_file import SUMMARY_NAME, read_plan, run_folder
from tokenmill.output.publish import publish
from tokenmill.output.totals import Totals, write_success
from tokenmill.output.verify import Level, expected_of, require_whole, verify
from tokenmill.plan.plan import Unit
from tokenmill.run.checks import check_formats, check_job, models_by_key
from tokenmill.run.follow import follow, initial_progress
from tokenmill.run.limits import CrashLimit, RejectBudget, over_budget
from tokenmill.run.notify import notify
from tokenmill.run.planning import PreparedRun, finished_before, prepare
from tokenmill.run.summary import Summary, new_run_id
from tokenmill.stages.executor import Executor, RepairSpec, RunSpec
from tokenmill.stages.load import resolve
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

_LEAVE_S = 10.0


def run_job(
    job: Job,
    executor: Executor,
    interface: Interface,
    listeners: Sequence[RunListener] = (),
    *,
    output: Store | None = None,
) -> Summary | None:
    """Run a job, or what its output lacks; None if the output is finished already.

    `listeners` are told what happens in the run, after its own. `output` is the output's store, if
    it is not the one that the job names.

    Raises `UserError` for the user's mistakes and `RunFailed` for failures that a later run may
    survive; `KeyboardInterrupt` passes through. Committed units are kept in each case.
    """
    check_job(job)
    if executor.is_local and not executor.has_gpus:
        check_formats(job)
    job = resolve(job)
    store = output or open_store(job.output.path, job.output.endpoint_url)
    totals = finished_before(job, store)
    if totals is not None:
        interface.say(f"{store.url} is finished: {_counts(totals)}. Nothing to do.")
        return None
    prepared = prepare(job, store, executor.has_gpus)
    _announce(prepared, interface)
    run = Run(prepared.opened, job, prepared.missing, interface)
    return run.to_its_end(executor, listeners)


def _announce(prepared: PreparedRun, interface: Interface) -> None:
    plan, missing = prepared.opened.plan, prepared.missing
    interface.say(
        f"{prepared.opened.job.name}: {plural(plan.num_rows, 'row')} in "
        f"{plural(plan.num_shards, 'shard')}, {plural(len(plan.units), 'unit')}, "
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
    whole = f"{plural(totals.rows, 'row')} in {plural(totals.units, 'unit')}"
    return f"{whole}, {totals.rejected:,} rejected{filtered}"


class Run:
    """Runs some of an output's units and finishes the output.

    `job` says how they are answered. With `repair` only rejected rows are, by a job that may differ
    from the output's.
    """

    def __init__(
        self,
        opened: Opened,
        job: Job,
        units: tuple[Unit, ...],
        interface: Interface,
        repair: RepairSpec | None = None,
    ) -> None:
        self._opened = opened
        self._job = job
        self._units = units
        self._interface = interface
        self._repair = repair
        self._run = new_run_id()
        self._log = cache_folder() / "logs" / f"{self._run}.log"
        self._events = EventLog(self._run, interface.event)
        self._progress = initial_progress(opened.plan.units, units)
        self._events.add("start", tokenmill=__version__, missing=len(units))

    def to_its_end(self, executor: Executor, listeners: Sequence[RunListener] = ()) -> Summary:
        """Run the units, verify the output, sum it up. Raises as `run_job`."""
        try:
            if self._units:
                for line in trust_warnings(models_by_key(self._job)):
                    self._interface.say(line)
                self._execute(executor, listeners)
            return self._finish()
        except (KeyboardInterrupt, Exception) as error:
            self._stopped(error)
            raise

    def _execute(self, executor: Executor, others: Sequence[RunListener]) -> None:
        if not executor.is_local and not self._job.model.is_fake:
            # Before a cluster starts machines for it. On this machine the replica finds the same
            # before it loads anything, and ten seconds of import are saved here.
            for params in self._job.params:
                vllm_params(params)
        traces = traces_of(self._run, self._opened.job.name, self._interface.say)
        listeners = [self._events, traces, *others]
        error: BaseException | None = None
        try:
            with (
                self._interface.watch(self._log) as screen,
                Heartbeat(self._opened.store, self._run),
            ):
                listeners.append(screen)
                for listener in listeners:
                    listener.started(self._progress)
                with closing(executor.start(self._job)) as execution:
                    listeners.append(
                        RunMetrics(execution.recorder, self._opened.job.name, self._run)
                    )
                    follow(execution, self._spec, self._progress, [*listeners, *self._limits])
        except BaseException as stopped_by:
            error = stopped_by
            raise
        finally:
            for listener in listeners:
                listener.ended(error)

    @property
    def _limits(self) -> tuple[RunListener, ...]:
        rows_per_unit = max(unit.num_rows for unit in self._units)
        return (
            CrashLimit(rows_per_unit, self._job.model.max_replicas),
            RejectBudget(self._job, self._opened.store),
        )

    @property
    def _spec(self) -> RunSpec:
        return RunSpec(
            run=self._run,
            job=self._job,
            source=self._opened.source,
            output=self._opened.store,
            kept_schema=self._opened.kept_schema,
            units=self._units,
            repair=self._repair,
        )

    def _finish(self) -> Summary:
        """Verify the whole output, mark it as finished unless too many rows were rejected."""
        store = self._opened.store
        left = self._added_meanwhile()
        if left:
            self._interface.say(
                f"another run has added {plural(left, 'unit')} to the plan meanwhile, and is at "
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
