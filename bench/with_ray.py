"""What a row costs through Ray: CPU time of all processes, Ray's included, of each row more.

An engine that answers at once; a run of one unit is taken off one of many.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenmill.job.job import Job

from bench.measure import Figure, at_least
from bench.watched import Sample, watch

# Enough that what a start takes, which is never twice the same, counts little.
_MANY_ROWS = 200_000

MakeJob = Callable[[Path, int], Job]


def figures(make_job: MakeJob, unit_rows: int, plain: float, chat: float) -> Iterator[Figure]:
    """Beside the microseconds of a row without Ray: of this job, and of a chat."""
    few = _last_sample(make_job, unit_rows)
    many = _last_sample(make_job, unit_rows + _MANY_ROWS)
    roles = {
        role: 1e6 * (seconds - few.cpu_s.get(role, 0)) / _MANY_ROWS
        for role, seconds in many.cpu_s.items()
    }
    whole = sum(roles.values())
    yield at_least(8_000, "1 kB, no tokenizer, with Ray", 1e6 / whole, "rows a second of a core")
    for role, spent in roles.items():
        yield Figure(f"  {role}", spent, "µs a row")
    # A job has the engine that answers at once or a tokenizer.
    both = 1e6 / (chat + whole - plain)
    yield at_least(1_000, "190 tokens, chat, and Ray's share", both, "rows a second of a core")
    wall_s = many.at - (many.ready_at or many.at)
    yield Figure("1 kB, no tokenizer, with Ray, by the clock", many.committed / wall_s, "rows/s")


def _last_sample(make_job: MakeJob, num_rows: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        job_file = Path(folder) / "job.yaml"
        # JSON is YAML.
        job_file.write_text(make_job(Path(folder), num_rows).model_dump_json(exclude_unset=True))
        return watch(job_file)[-1]
