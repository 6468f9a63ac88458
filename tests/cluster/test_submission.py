"""What is shipped to a cluster, under which id, and what its answers mean."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.factories import job, job_data
from tokenmill.cli import app
from tokenmill.cluster.submission import (
    JobState,
    metadata_of,
    numbered_id,
    pack_code,
    require_cluster_urls,
    submission_id,
    submissions_of,
    submitted_job,
)
from tokenmill.errors import ExitCode, UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job, portable_text
from typer.testing import CliRunner

SECRETS = {
    "AWS_ACCESS_KEY_ID": "decoy-1",
    "AWS_SECRET_ACCESS_KEY": "decoy-2",
    "AWS_SESSION_TOKEN": "decoy-3",
    "HF_TOKEN": "decoy-4",
    "RAY_AUTH_TOKEN": "decoy-5",
}
S3 = {"input.path": "s3://bucket/in", "output.path": "s3://bucket/out"}


def remote(**changes: Any) -> Job:
    """A job whose places are in S3."""
    return job(S3 | changes)


def test_no_credential_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the runtime environment nor a file holds what is set here."""
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


def test_the_code_stays_here_where_the_image_has_it(tmp_path: Path) -> None:
    """Only the job file is shipped then."""
    environment = pack_code(remote(), tmp_path, with_code=False)
    assert "py_modules" not in environment
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["job.yaml"]


def test_variables_of_the_job_are_filled_in_before_it_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded there, where none of them is set, is the job that was loaded here."""
    keys = job_data(
        S3 | {"output.path": "s3://${BUCKET}/out", "prompt.user": "${PRICE} {{ text }}"}
    )
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(keys))
    monkeypatch.setenv("BUCKET", "mine")
    loaded = load_job(tmp_path / "here.yaml")
    environment = pack_code(loaded, tmp_path, with_code=False)
    monkeypatch.delenv("BUCKET")
    shipped = load_job(Path(environment["working_dir"], "job.yaml"))
    assert shipped == loaded
    assert shipped.output.path == "s3://mine/out"


def test_a_variable_that_names_a_variable_is_refused() -> None:
    """It would be filled in with what is set on the cluster."""
    with pytest.raises(UserError, match=r"output\.path: \$\{OTHER\}"):
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
def test_a_place_that_is_another_one_there_is_refused(key: str, path: str) -> None:
    """A relative path, of which the message says what to write instead."""
    with pytest.raises(UserError, match=rf"^{key}: .* s3://"):
        require_cluster_urls(remote(**{key: path}))


@pytest.mark.parametrize("path", ["/mnt/out", "file:///mnt/out", "s3://bucket/out"])
def test_a_whole_path_is_a_place_of_the_cluster(path: str) -> None:
    """Of a disk that all nodes see, or in S3."""
    require_cluster_urls(remote(**{"output.path": path}))


def test_the_id_is_of_the_name_and_the_output() -> None:
    """Other settings do not change it; another name or output does."""
    first = submission_id(remote())
    assert submission_id(remote(**{"sampling.max_tokens": 7, "input.limit": 3})) == first
    assert submission_id(remote(**{"output.path": "s3://bucket/out/"})) == first
    assert submission_id(remote(name="others")) != first
    assert submission_id(remote(**{"output.path": "s3://bucket/other"})) != first
    assert len(submission_id(remote(name="x" * 500))) < 100


def details(**changes: Any) -> dict[str, Any]:
    """What the Job API tells of a job that is running."""
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


def test_the_submissions_of_a_job_are_told_from_others() -> None:
    """By the id with or without a number, and by nothing else."""
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


def test_what_the_cluster_tells_of_a_job_is_understood() -> None:
    """Its times in seconds, its state in our words; jobs of others are none of ours."""
    found = submitted_job(details())
    assert found is not None
    assert (found.state, found.state.is_final) == (JobState.RUNNING, False)
    assert (found.submitted_at, found.ended_at, found.exit_code) == (1_700_000_000.5, None, None)
    ended = submitted_job(details(status="FAILED", end_time=1_700_000_001_000, driver_exit_code=3))
    assert ended is not None
    assert (ended.state, ended.ended_at, ended.exit_code) == (JobState.FAILED, 1_700_000_001.0, 3)
    assert submitted_job(details(metadata=None)) is None
    assert submitted_job(details(submission_id=None)) is None


@contextmanager
def answering(**answers: Any) -> Iterator[str]:
    """What stands for a cluster: it answers these questions with JSON, and 404 to others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").split("/")[-1]
            self.send_response(200 if name in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(name)).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refused(tmp_path: Path, address: str, exit_code: ExitCode, mode: str = "token") -> str:
    """The one line with which `submit` ends."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_data(S3)))
    command = ["submit", str(tmp_path / "job.yaml"), "--address", address]
    done = CliRunner().invoke(app, command, env={"RAY_AUTH_MODE": mode})
    assert done.exit_code == exit_code, done.output
    (line,) = done.stderr.splitlines()
    return line


TOKENS = {"authentication_mode": {"authentication_mode": "token"}}
OPEN = {"authentication_mode": {"authentication_mode": "disabled"}}


def test_another_version_of_ray_is_refused(tmp_path: Path) -> None:
    """The code that is shipped is made for one."""
    with answering(version={"ray_version": "2.54.1"}, **TOKENS) as address:
        line = refused(tmp_path, address, ExitCode.USER_ERROR)
    assert "2.54.1" in line
    assert "--no-ship" in line


def test_a_cluster_that_asks_for_no_token_is_refused(tmp_path: Path) -> None:
    """As one that a run joins; who insists comes further."""
    with answering(version={"ray_version": "2.54.1"}, **OPEN) as address:
        line = refused(tmp_path, address, ExitCode.USER_ERROR)
        assert "RAY_AUTH_MODE=disabled" in line
        assert "2.54.1" in refused(tmp_path, address, ExitCode.USER_ERROR, mode="disabled")
    # Ray before 2.52.
    with answering(version={"ray_version": "2.40.0"}) as address:
        assert "asks for no token" in refused(tmp_path, address, ExitCode.USER_ERROR)


def test_what_is_no_job_api_is_told(tmp_path: Path) -> None:
    """Nothing at the address, another server, another scheme, no address: each in one line."""
    with answering() as address:
        assert "is not Ray's Job API" in refused(tmp_path, address, ExitCode.USER_ERROR)
    with answering(version=["?"]) as address:
        assert "is not Ray's Job API" in refused(tmp_path, address, ExitCode.USER_ERROR)
    assert "does not answer" in refused(tmp_path, address, ExitCode.FAILED)
    assert "http://HOST:8265" in refused(tmp_path, "ray://head:10001", ExitCode.USER_ERROR)
    done = CliRunner().invoke(app, ["jobs"], env={"RAY_API_SERVER_ADDRESS": None})
    assert done.exit_code == ExitCode.USER_ERROR
    assert "--address" in done.stderr
