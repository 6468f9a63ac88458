"""The cost of a resume and of running a finished job: requests to the store, and imports."""

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.command import ROOT
from helpers.inprocess import drive, job_over, write_corpus
from helpers.stores import StubS3, contents
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.run.planning import prepare
from tokenmill.storage.local import LocalStore
from yaml import safe_dump


@pytest.mark.parametrize("num_units", [10, 1_000, 2_500])
def test_a_resume_reads_one_listing_page_per_thousand_units(
    stub_s3: StubS3, tmp_path: Path, num_units: int
) -> None:
    """The listing alone says what is done; no single object is asked for."""
    corpus = write_corpus(tmp_path, {"a.parquet": [f"text {n}" for n in range(num_units)]})
    job = Job.model_validate(job_over(corpus, stub_s3.store.url, units={"rows": 1}))
    units = prepare(job, stub_s3.store, has_gpus=False).opened.plan.units
    assert len(units) == num_units
    for unit in units[1:]:
        stub_s3.objects[f"/bucket/out/{unit.key}"] = b""
    stub_s3.requests.clear()
    prepared = prepare(job, stub_s3.store, has_gpus=False)
    assert prepared.missing == units[:1]
    requests = Counter(stub_s3.requests)
    assert requests["LIST"] == math.ceil(num_units / 1_000)
    # The plan and the job.
    assert requests["GET"] + requests["HEAD"] <= 4
    assert requests["PUT"] == 0


def test_a_finished_job_is_recognized_by_two_objects(stub_s3: StubS3, tmp_path: Path) -> None:
    """Its next run reads the plan and the success marker; it lists and writes nothing."""
    job = Job.model_validate(job_over(write_corpus(tmp_path), stub_s3.store.url))
    drive(job, stub_s3.store)
    before = dict(stub_s3.objects)
    stub_s3.requests.clear()
    assert drive(job, stub_s3.store) is None
    assert set(stub_s3.requests) <= {"GET", "HEAD"}
    assert len(stub_s3.requests) <= 4
    assert stub_s3.objects == before


_WITHOUT = """
import sys
for name in ("ray", "vllm", "torch", "transformers"):
    sys.modules[name] = None  # An import of it fails.
from tokenmill.cli import main
main()
"""


def test_a_finished_job_needs_neither_ray_nor_an_engine(tmp_path: Path) -> None:
    """The command exits with 0 although neither can be imported, and changes nothing."""
    keys = job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    store = LocalStore(str(tmp_path / "out"))
    drive(Job.model_validate(keys), store)
    before = contents(store)
    job = tmp_path / "job.yaml"
    job.write_text(safe_dump(keys))
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, "run", job],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    assert "is finished: 8 rows in 5 units, 3 rejected. Nothing to do." in done.stderr
    assert contents(store) == before
