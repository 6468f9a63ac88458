"""Answer rejected rows again: each unit's object is replaced in one conditional write."""

from collections.abc import Iterator, Sequence

from tokenmill.errors import UserError
from tokenmill.formatting import plural
from tokenmill.job.job import TASK_DEFAULTS, Job, differing_fields
from tokenmill.observe.screen import Interface
from tokenmill.output.output import OpenedOutput, committed_keys, open_output
from tokenmill.output.plan_file import read_job
from tokenmill.output.rejects import Selection, rejected_rows
from tokenmill.output.schema import added_fields
from tokenmill.row_columns import SOURCE_ROW
from tokenmill.run.checks import check_job, check_params
from tokenmill.run.run import Run
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import Executor, RepairSpec
from tokenmill.storage.base import Store


def retry_rejects(
    output: Store,
    selection: Selection,
    overrides: Sequence[str],
    executor: Executor,
    interface: Interface,
) -> Summary | None:
    """Answer the selected rows of an output again, by its job with overrides; None if none match.

    The metadata of the objects record what was changed. Raises as `run_job`, and `UserError` for an
    output with missing units.
    """
    opened = open_output(output)
    _require_complete(opened)
    job = read_job(opened.store, overrides)
    check_job(job)
    changes = _changes(opened, job)
    rows = {
        unit.key: tuple(table.column(SOURCE_ROW).to_pylist())
        for unit, table in rejected_rows(opened, selection)
    }
    if not rows:
        interface.say(f"{opened.store.url}: no rejected rows match. Nothing to do.")
        return None
    check_params(job)
    for line in _without_effect(job, overrides):
        interface.say(line)
    units = tuple(unit for unit in opened.plan.units if unit.key in rows)
    repair = RepairSpec(rows, changes)
    interface.say(
        f"{job.name}: retrying {plural(repair.num_rows, 'row')} in {plural(len(units), 'unit')} of "
        f"{opened.store.url}"
    )
    return Run(opened, job, units, interface, repair).execute(executor)


def _without_effect(job: Job, overrides: Sequence[str]) -> Iterator[str]:
    """A line for each override of a key of the job that a task replaces by its own."""
    keys = [override.partition("=")[0] for override in overrides]
    sections = job.tasks or (() if job.task is None else (job.task,))
    for key in keys:
        default = key.partition(".")[0]
        for section in sections if default in TASK_DEFAULTS else ():
            own_key = f"task.{key}" if job.tasks is None else f"tasks.{section.name}.{key}"
            if getattr(section, default) is not None and own_key not in keys:
                yield (
                    f"--set {key} does not change the task {section.name or section.kind}, which "
                    f"has its own {default}; set {own_key} as well"
                )


def _require_complete(opened: OpenedOutput) -> None:
    """Raise `UserError` if units are missing: a retry does not run them, so it could not finish."""
    num_units = len(opened.plan.units)
    num_missing = num_units - len(committed_keys(opened.store, opened.plan))
    if num_missing:
        raise UserError(
            f"{opened.store.url}: {num_missing:,} of {plural(num_units, 'unit')} are not answered "
            "yet, and retry only repairs finished ones. Run the job again first (tokenmill run; "
            "if it stops at the reject limit, raise the limit), then retry"
        )


def _changes(opened: OpenedOutput, job: Job) -> dict[str, object]:
    """The fields in which the job differs from the output's.

    Raises `UserError` if they change the input or the output's columns.
    """
    names = differing_fields(opened.job.answer_fields, job.answer_fields)
    same_columns = added_fields(job) == added_fields(opened.job)
    if not same_columns or any(name.startswith("input.") for name in names):
        raise UserError(
            f"--set: a retry cannot change the input or the output's columns "
            f"({', '.join(names)}); run the job to another output instead"
        )
    return {name: job.answer_fields.get(name) for name in names}
