"""One execution of a job: plan or resume, run the missing units, verify, finish.

The executor imports Ray and the engine only when there is something to run.
"""

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace

from tokenmill import __version__
from tokenmill.errors import ExitCode, TokenmillError, root_cause
from tokenmill.formatting import plural
from tokenmill.job.job import Job
from tokenmill.models.cache import log_file
from tokenmill.models.code_safety import trust_warnings
from tokenmill.observe.events import EventLog, EventName
from tokenmill.observe.listener import RunListener
from tokenmill.observe.metrics import RunMetrics
from tokenmill.observe.screen import Interface
from tokenmill.observe.traces import traces_of
from tokenmill.output.counts import Counts
from tokenmill.output.heartbeat import Heartbeat
from tokenmill.output.output import OpenedOutput, committed_keys
from tokenmill.output.plan_file import read_plan
from tokenmill.output.publish import publish
from tokenmill.output.runs import SUMMARY_NAME, run_folder
from tokenmill.output.success import write_success
from tokenmill.output.verify import Level, expected_output, require_whole, verify
from tokenmill.plan.plan import Unit
from tokenmill.run.checks import check_job, check_params, check_without_gpu, models_by_key
from tokenmill.run.follow import follow, initial_progress
from tokenmill.run.limits import CrashLimit, RejectBudget, over_budget
from tokenmill.run.notify import notify
from tokenmill.run.planning import PreparedRun, finished_before, prepare
from tokenmill.run.summary import Summary, new_run_id
from tokenmill.run.warnings import EmptyAnswers
from tokenmill.stages.executor import Executor, RepairSpec, RunSpec
from tokenmill.stages.load import resolve
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

# A spot instance is killed 30 s after its notice, whether the store answers or not.
_SAVE_SUMMARY_S = 10.0


def run_job(
    job: Job,
    executor: Executor,
    interface: Interface,
    listeners: Sequence[RunListener] = (),
    *,
    output: Store | None = None,
) -> Summary | None:
    """Run a job, or the part that its output lacks; None if the output is finished already.

    `listeners` are called after the run's own. `output` replaces the store that the job names.

    Raises `UserError` for mistakes of the user and `RunFailed` for failures that a later run may
    survive; `KeyboardInterrupt` passes through. In each case the committed units are kept.
    """
    check_job(job)
    check_params(job)
    if executor.is_local and not executor.has_gpus:
        check_without_gpu(job)
    job = resolve(job)
    store = output or open_store(job.output.path, job.output.endpoint_url)
    totals = finished_before(job, store)
    if totals is not None:
        interface.say(f"{store.url} is finished: {_counts(totals)}. Nothing to do.")
        return None
    prepared = prepare(job, store, executor.has_gpus)
    _announce(prepared, interface)
    run = Run(prepared.opened, job, prepared.in_order(), interface)
    return run.execute(executor, listeners)


def _announce(prepared: PreparedRun, interface: Interface) -> None:
    plan, missing = prepared.opened.plan, prepared.missing
    interface.say(
        f"{prepared.opened.job.name}: {plural(plan.num_rows, 'row')} in "
        f"{plural(plan.num_shards, 'shard')}, {plural(len(plan.units), 'unit')}, "
        f"to {prepared.opened.store.url}"
    )
    for note in prepared.notes:
        interface.say(note)
    for bad in plan.skipped:
        interface.say(f"Skipped {bad.path}: {bad.reason}")
    if prepared.new_shards:
        shards = plural(prepared.new_shards, "new shard")
        are = "is" if prepared.new_shards == 1 else "are"
        interface.say(
            f"{shards} {are} not in the plan and left out. Set input.on_new_shard: add to include "
            "them, or use another output."
        )
    if prepared.committed:
        rows = sum(unit.num_rows for unit in missing)
        interface.say(
            f"Resuming: {len(prepared.committed):,} of {len(plan.units):,} units are saved; "
            f"{plural(len(missing), 'unit')} with {plural(rows, 'row')} to do."
        )


def _exit_code(cause: BaseException) -> ExitCode:
    """The exit code of a run that this error has ended."""
    if isinstance(cause, TokenmillError):
        return cause.exit_code
    return ExitCode.STOPPED if isinstance(cause, KeyboardInterrupt) else ExitCode.FAILED


def _counts(totals: Counts) -> str:
    filtered = f", {totals.filtered:,} filtered out" if totals.filtered else ""
    size = f"{plural(totals.rows, 'row')} in {plural(totals.units, 'unit')}"
    return f"{size}, {totals.rejected:,} rejected{filtered}"


class Run:
    """Runs some of an output's units and finishes the output.

    `job` says how rows are answered. With `repair` only rejected rows are answered, by a job that
    may differ from the output's.
    """

    def __init__(
        self,
        opened: OpenedOutput,
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
        self._run_id = new_run_id()
        self._log = log_file(f"{self._run_id}.log")
        self._events = EventLog(self._run_id, interface.event)
        self._empty_answers = EmptyAnswers()
        num_rows = sum(unit.num_rows for unit in units) if repair is None else repair.num_rows
        self._progress = initial_progress(opened.plan.units, len(units), num_rows)
        self._events.add(EventName.START, tokenmill=__version__, missing=len(units))

    def execute(self, executor: Executor, listeners: Sequence[RunListener] = ()) -> Summary:
        """Run the units, verify the output and write the summary. Raises as `run_job`."""
        try:
            if self._units:
                for line in [*trust_warnings(models_by_key(self._job)), *executor.warnings()]:
                    self._interface.say(line)
                self._run_units(executor, listeners)
            return self._finish()
        except (KeyboardInterrupt, Exception) as error:
            self._report_stop(error)
            raise

    def _run_units(self, executor: Executor, listeners: Sequence[RunListener]) -> None:
        traces = traces_of(self._run_id, self._opened.job.name, self._interface.say)
        observers = [self._events, traces, self._empty_answers, *listeners]
        self._progress.start_stage = executor.start_stage
        error: BaseException | None = None
        try:
            with (
                self._interface.watch(self._log) as screen,
                Heartbeat(self._opened.store, self._run_id),
            ):
                observers.append(screen)
                for observer in observers:
                    observer.started(self._progress)
                with closing(executor.start(self._job)) as execution:
                    observers.append(
                        RunMetrics(execution.recorder, self._opened.job.name, self._run_id)
                    )
                    follow(execution, self._spec, self._progress, [*observers, *self._limits])
        except BaseException as caught:
            error = caught
            raise
        finally:
            for observer in observers:
                observer.ended(error)

    @property
    def _limits(self) -> tuple[RunListener, ...]:
        rows_per_unit = max(unit.num_rows for unit in self._units)
        return (
            CrashLimit(rows_per_unit, self._job.model.max_replicas, self._log),
            RejectBudget(self._job, self._opened.store),
        )

    @property
    def _spec(self) -> RunSpec:
        return RunSpec(
            run=self._run_id,
            job=self._job,
            source=self._opened.source,
            output=self._opened.store,
            kept_schema=self._opened.kept_schema,
            units=self._units,
            repair=self._repair,
        )

    def _finish(self) -> Summary:
        """Verify the whole output, and mark it as finished unless too many rows were rejected."""
        store = self._opened.store
        num_added = self._units_of_other_runs()
        if num_added:
            self._interface.say(
                f"Another run has added {plural(num_added, 'unit')} to the plan and is processing "
                "them. If it has stopped, run the same command to continue."
            )
            return self._end(None, ExitCode.FINISHED)
        totals = require_whole(verify(store, expected_output(self._opened), Level.FOOTERS))
        if over_budget(self._job, totals):
            return self._end(totals, ExitCode.OVER_REJECT_BUDGET)
        if self._opened.job.output.publish is not None:
            self._publish(totals, self._opened.job.output.publish)
        return self._end(totals, ExitCode.FINISHED)

    def _units_of_other_runs(self) -> int:
        """The number of missing units that another driver has added to the plan since the start.

        From here on this run uses the new plan.
        """
        store, before = self._opened.store, {unit.key for unit in self._opened.plan.units}
        plan = read_plan(store) or self._opened.plan
        self._opened = replace(self._opened, plan=plan)
        added = {unit.key for unit in plan.units} - before
        return len(added - committed_keys(store, plan)) if added else 0

    def _publish(self, totals: Counts, target: str) -> None:
        pointer = publish(self._opened, totals, target)
        if pointer.output != self._opened.store.url:
            self._interface.say(
                f"{target} already points to a newer output ({pointer.version_date}) and was not "
                f"changed: {pointer.output}"
            )

    def _end(self, totals: Counts | None, exit_code: ExitCode) -> Summary:
        """Write the summary, mark a complete output as finished, send notifications."""
        summary = self._summary(totals, exit_code)
        self._events.add(EventName.FINISH, exit_code=int(exit_code))
        self._write(summary)
        if totals is not None and exit_code == ExitCode.FINISHED:
            write_success(self._opened.store, totals)
        self._notify(summary)
        return summary

    def _notify(self, summary: Summary) -> None:
        if self._job.notify is not None:
            for line in notify(self._job.notify, summary.to_json()):
                self._interface.say(line)

    def _report_stop(self, error: BaseException) -> None:
        """Write the summary of a run that was stopped or failed, and say what is saved."""
        cause = root_cause(error)
        reason = f"{type(error).__name__}: {cause}"
        self._events.add(EventName.STOP, reason=reason)
        exit_code = _exit_code(cause)
        counts: queue.SimpleQueue[str] = queue.SimpleQueue()

        def save() -> None:
            # The store may be what has failed, and its error must not hide the first one.
            with suppress(TokenmillError):
                plan = self._opened.plan
                # Listed again: the last commits may not have reached the driver.
                num_committed = len(committed_keys(self._opened.store, plan))
                counts.put(f"{num_committed:,} of {len(plan.units):,} units are saved.")
                summary = self._summary(None, exit_code, reason)
                self._write(summary)
                self._notify(summary)

        thread = threading.Thread(target=save, name="save-summary", daemon=True)
        thread.start()
        thread.join(_SAVE_SUMMARY_S)
        saved = "All committed units are saved." if counts.empty() else counts.get()
        self._interface.say(f"Stopped. {saved} Run the same command to continue.")

    def _summary(
        self, totals: Counts | None, exit_code: ExitCode, error: str | None = None
    ) -> Summary:
        progress, counts, now = self._progress, self._progress.counts, time.monotonic()
        return Summary(
            job=self._opened.job.name,
            run=self._run_id,
            tokenmill=__version__,
            output=self._opened.store.url,
            log=str(self._log),
            model=self._opened.job.model.source,
            units=counts.units,
            rows=counts.input_rows,
            rejected=counts.rejected,
            filtered=counts.filtered,
            input_tokens=counts.input_tokens,
            generated_tokens=counts.generated_tokens,
            reused=progress.reused,
            lost_races=progress.lost_races,
            # The name in summary.json, which programs read.
            engine_deaths=progress.engine_crashes,
            seconds=round(now - progress.started_at, 3),
            engine_seconds=round(progress.engine_seconds(progress.observed_at), 3),
            skipped_shards=tuple(bad.path for bad in self._opened.plan.skipped),
            warnings=tuple(self._empty_answers.warnings(self._job)),
            totals=totals,
            exit_code=int(exit_code),
            error=error,
        )

    def _write(self, summary: Summary) -> None:
        folder = run_folder(summary.run)
        self._opened.store.replace(f"{folder}/events.jsonl", self._events.to_bytes())
        self._opened.store.replace(f"{folder}/{SUMMARY_NAME}", summary.to_json().encode())
