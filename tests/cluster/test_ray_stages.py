"""What Ray Data sends to worker processes with each unit."""

import pickle
from dataclasses import replace
from pathlib import Path

from helpers.inprocess import job_over, write_corpus
from tokenmill.cluster.ray_stages import PickledSpec, unpickled
from tokenmill.job.job import Job
from tokenmill.run.planning import prepare
from tokenmill.stages.executor import RunSpec
from tokenmill.storage.local import LocalStore


def _spec(folder: Path, num_rows: int) -> RunSpec:
    corpus = write_corpus(folder / "corpus", {"a.parquet": ["text"] * num_rows})
    job = Job.model_validate(job_over(corpus, folder / "out", units={"rows": 1}))
    opened = prepare(job, LocalStore(str(folder / "out")), has_gpus=False).opened
    plan = opened.plan
    return RunSpec("run", job, opened.source, opened.store, opened.kept_schema, plan.units)


def test_the_arguments_of_a_stage_do_not_grow_with_the_plan(tmp_path: Path) -> None:
    """The plan is in a buffer of its own, which processes share, and arrives complete."""
    sizes = set()
    for num_rows in (1, 500):
        spec = replace(_spec(tmp_path / str(num_rows), num_rows), run=f"{num_rows:03}")
        shared: list[pickle.PickleBuffer] = []
        arguments = pickle.dumps(PickledSpec.of(spec), protocol=5, buffer_callback=shared.append)
        sizes.add(len(arguments))
        arrived = pickle.loads(arguments, buffers=shared)  # noqa: S301 - made here
        assert unpickled(arrived).units == spec.units
    assert len(sizes) == 1


def test_a_process_unpickles_a_plan_once(tmp_path: Path) -> None:
    """Another unit's copy of the spec gives the same object; another run's gives that run's."""
    spec = _spec(tmp_path, 2)
    first, second = PickledSpec.of(spec), PickledSpec.of(spec)
    assert unpickled(first) is unpickled(second)
    assert unpickled(PickledSpec.of(replace(spec, run="other"))).run == "other"
