"""Answer rejected rows again, in their places: each unit's object is exchanged in one step."""

from collections.abc import Sequence

from pipeline.columns import added_fields
from pipeline.errors import UserError
from pipeline.job import Job, differing_fields
from pipeline.monitor import counted
from pipeline.output import Opened, open_output, read_job
from pipeline.prepare import check_job
from pipeline.rejects import Selection, rejected_rows
from pipeline.run import Interface, Run, Summary


def retry_rejects(
    path: str,
    selection: Selection,
    overrides: Sequence[str],
    address: str | None,
    interface: Interface,
) -> Summary | None:
    """Run the selected rows of an output again, in its job with overrides; None if there are none.

    Raises as `run_job`. What changed is recorded in the objects' metadata.
    """
    from pipeline.pool import Repair  # noqa: PLC0415 - Ray, which a mistake must not cost

    opened = open_output(path)
    job = read_job(opened.store, overrides)
    check_job(job)
    changes = _changes(opened, job)
    rows = {
        unit.key: tuple(table.column("source_row").to_pylist())
        for unit, table in rejected_rows(opened, selection)
    }
    if not rows:
        interface.say(f"{opened.store.url}: no such rows. Nothing to do.")
        return None
    units = tuple(unit for unit in opened.plan.units if unit.key in rows)
    num_rows = sum(map(len, rows.values()))
    interface.say(
        f"{job.name}: {counted(num_rows, 'row')} in {counted(len(units), 'unit')} again, "
        f"in {opened.store.url}"
    )
    return Run(opened, job, units, interface, Repair(rows, changes)).to_its_end(address)


def _changes(opened: Opened, job: Job) -> dict[str, object]:
    """The fields in which the job differs from the output's. Raises `UserError` for its columns."""
    names = differing_fields(opened.job.answer_fields, job.answer_fields)
    same_columns = added_fields(job) == added_fields(opened.job)
    if not same_columns or any(name.startswith("input.") for name in names):
        raise UserError(
            f"--set: a retry can change neither the input nor the output's columns "
            f"({', '.join(names)}); run another job to another output"
        )
    return {name: job.answer_fields.get(name) for name in names}
