"""What is sent to a cluster, under which id, and how its answers are read."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.factories import job, job_data
from ray.job_submission import JobStatus
from tokenmill.cluster.submission import (
    ENTRYPOINT,
    JobState,
    metadata_of,
    numbered_id,
    pack_code,
    require_cluster_urls,
    submission_id,
    submissions_of,
    submitted_job,
)
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job, portable_text

SECRETS = {
    "AWS_ACCESS_KEY_ID": "decoy-1",
    "AWS_SECRET_ACCESS_KEY": "decoy-2",
    "AWS_SESSION_TOKEN": "decoy-3",
    "HF_TOKEN": "decoy-4",
    "RAY_AUTH_TOKEN": "decoy-5",
}
S3 = {"input.path": "s3://bucket/in", "output.path": "s3://bucket/out"}


def remote(**changes: Any) -> Job:
    """A job whose input and output are in S3."""
    return job(S3 | changes)


def test_no_credential_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the runtime environment nor a file holds a credential of this process."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    environment = pack_code(remote(), tmp_path, with_code=True)
    assert environment["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert set(environment) == {"working_dir", "py_modules", "env_vars"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert all(b"decoy" not in path.read_bytes() for path in files)
    assert not [path for path in files if path.suffix == ".pyc"]


def test_without_code_only_the_job_file_is_sent(tmp_path: Path) -> None:
    """The image on the cluster has its own tokenmill."""
    environment = pack_code(remote(), tmp_path, with_code=False)
    assert "py_modules" not in environment
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["job.yaml"]


def test_variables_are_resolved_before_the_job_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster, where the variables are not set, loads the same job as this machine."""
    keys = job_data(
        S3 | {"output.path": "s3://${BUCKET}/out", "prompt.user": "${PRICE} {{ text }}"}
    )
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.setenv("BUCKET", "mine")
    loaded = load_job(tmp_path / "here.yaml")
    environment = pack_code(loaded, tmp_path, with_code=False)
    monkeypatch.delenv("BUCKET")
    sent = load_job(Path(environment["working_dir"], "job.yaml"))
    assert sent == loaded
    assert sent.output.path == "s3://mine/out"


def test_a_variable_whose_value_is_a_variable_is_refused() -> None:
    """The cluster would replace it with its own value."""
    with pytest.raises(UserError, match=r"output\.path: .* \$\{OTHER\}"):
        portable_text(remote(**{"output.path": "s3://bucket/${OTHER}"}))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("input.path", "corpus/*.parquet"),
        ("output.path", "~/out"),
        ("output.path", "file://out"),
        ("output.publish", "current.json"),
        ("model.source", "./model"),
    ],
)
def test_a_relative_path_is_refused(key: str, path: str) -> None:
    """On the cluster it is another folder; the message says what to write instead."""
    with pytest.raises(UserError, match=rf"^{key}: .* s3://"):
        require_cluster_urls(remote(**{key: path}))


@pytest.mark.parametrize("path", ["/mnt/out", "file:///mnt/out", "s3://bucket/out"])
def test_an_absolute_path_is_accepted(path: str) -> None:
    """It may be on a disk that all nodes share, or in S3."""
    require_cluster_urls(remote(**{"output.path": path}))


def test_the_id_depends_on_the_name_and_the_output() -> None:
    """Other settings do not change it."""
    first = submission_id(remote())
    assert submission_id(remote(**{"sampling.max_tokens": 7, "input.limit": 3})) == first
    assert submission_id(remote(**{"output.path": "s3://bucket/out/"})) == first
    assert submission_id(remote(name="others")) != first
    assert submission_id(remote(**{"output.path": "s3://bucket/other"})) != first
    assert len(submission_id(remote(name="x" * 500))) < 100


def details(**changes: Any) -> dict[str, Any]:
    """The Job API's details of a running job."""
    return {
        "type": "SUBMISSION",
        "submission_id": submission_id(remote()),
        "status": "RUNNING",
        "message": None,
        "start_time": 1_700_000_000_500,
        "end_time": 0,
        "metadata": metadata_of(remote()),
        "driver_exit_code": None,
        **changes,
    }


def test_the_submissions_of_a_job_are_found_by_id() -> None:
    """An id with or without a number belongs to the job, and no other id does."""
    first = submission_id(remote())
    ids = [first, numbered_id(first, 2), numbered_id(first, 10), f"{first}x", f"other-{first}"]
    jobs = [submitted_job(details(submission_id=name)) for name in ids]
    assert {
        number: job.id for number, job in submissions_of(first, filter(None, jobs)).items()
    } == {
        1: ids[0],
        2: ids[1],
        10: ids[2],
    }


def test_the_entrypoint_runs_the_code_that_is_sent(tmp_path: Path) -> None:
    """The module of `python -m` is the package in the runtime environment."""
    environment = pack_code(remote(), tmp_path, with_code=True)
    _, python, flag, module, *arguments = shlex.split(ENTRYPOINT)
    assert (python, flag, arguments) == ("python", "-m", ["run", "job.yaml"])
    (package,) = environment["py_modules"]
    assert Path(package).name == module
    assert Path(package, "__main__.py").is_file()


@pytest.mark.parametrize("running", ["RUNNING", JobStatus.RUNNING])
def test_the_details_of_a_job_are_read(running: str) -> None:
    """Times are in seconds and states in tokenmill's words; jobs of others are left out."""
    job = submitted_job(details(status=running))
    assert job is not None
    assert (job.state, job.state.is_final) == (JobState.RUNNING, False)
    assert (job.submitted_at, job.ended_at, job.exit_code) == (1_700_000_000.5, None, None)
    ended = submitted_job(details(status="FAILED", end_time=1_700_000_001_000, driver_exit_code=3))
    assert ended is not None
    assert (ended.state, ended.ended_at, ended.exit_code) == (JobState.FAILED, 1_700_000_001.0, 3)
    assert submitted_job(details(metadata=None)) is None
    assert submitted_job(details(submission_id=None)) is None
