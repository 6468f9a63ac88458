"""What goes with each unit to the processes of its stages."""

import pickle
from dataclasses import replace
from pathlib import Path

from helpers.inprocess import job_over, write_corpus
from tokenmill.cluster.ray_execution import ShippedSpec, received
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


def test_a_units_luggage_does_not_grow_with_the_plan(tmp_path: Path) -> None:
    """The plan lies beside it, in memory that processes share, whole."""
    sizes = set()
    for num_rows in (1, 500):
        spec = replace(_spec(tmp_path / str(num_rows), num_rows), run=f"{num_rows:03}")
        beside: list[pickle.PickleBuffer] = []
        luggage = pickle.dumps(ShippedSpec.of(spec), protocol=5, buffer_callback=beside.append)
        sizes.add(len(luggage))
        there = pickle.loads(luggage, buffers=beside)  # noqa: S301 - made here
        assert received(there).units == spec.units
    assert len(sizes) == 1


def test_a_process_unpickles_a_plan_once(tmp_path: Path) -> None:
    """Of another unit's copy it takes the spec that it has; of another run it takes that run's."""
    spec = _spec(tmp_path, 2)
    first, second = ShippedSpec.of(spec), ShippedSpec.of(spec)
    assert received(first) is received(second)
    assert received(ShippedSpec.of(replace(spec, run="other"))).run == "other"
