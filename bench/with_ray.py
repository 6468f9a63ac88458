"""Measure the cost of a row with Ray: the CPU time of all processes for each additional row.

The engine answers immediately. The CPU time of a run of one unit is subtracted from that of a long
run, so that the start does not count.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenmill.job.job import Job

from bench.measure import Figure, at_least
from bench.watched import Sample, watch

# Enough rows that the variation of the start does not matter.
_MANY_ROWS = 200_000

MakeJob = Callable[[Path, int], Job]


def figures(make_job: MakeJob, unit_rows: int, plain: float, chat: float) -> Iterator[Figure]:
    """Yield the figures; `plain` and `chat` are the microseconds per row without Ray."""
    few = _last_sample(make_job, unit_rows)
    many = _last_sample(make_job, unit_rows + _MANY_ROWS)
    roles = {
        role: 1e6 * (seconds - few.cpu_s.get(role, 0)) / _MANY_ROWS
        for role, seconds in many.cpu_s.items()
    }
    whole = sum(roles.values())
    yield at_least(8_000, "1 kB, no tokenizer, with Ray", 1e6 / whole, "rows/s per core")
    for role, spent in roles.items():
        yield Figure(f"  {role}", spent, "µs per row")
    # No job has both the immediate engine and a real tokenizer, so this is calculated.
    both = 1e6 / (chat + whole - plain)
    yield at_least(1_000, "190 tokens, chat, plus Ray's share", both, "rows/s per core")
    wall_s = many.at - (many.ready_at or many.at)
    yield Figure("1 kB, no tokenizer, with Ray, wall time", many.committed / wall_s, "rows/s")


def _last_sample(make_job: MakeJob, num_rows: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.yaml"
        # JSON is YAML.
        job_file.write_text(make_job(Path(folder), num_rows).model_dump_json(exclude_unset=True))
        return watch(job_file)[-1]
