"""Jobs on a real Ray cluster with a head and two workers, submitted through its Job API."""

import http.client
import json
import shutil
import signal
from collections import defaultdict
from collections.abc import ItemsView
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.command import ROOT, start_tokenmill, tokenmill
from helpers.inprocess import job_over
from helpers.ray_cluster import RayCluster
from helpers.s3_server import S3Server
from helpers.scraping import eventually, samples_of, scraped
from tokenmill.commands.schema import schema_of
from tokenmill.errors import ExitCode

pytestmark = pytest.mark.integration

#: Credentials of the client, which must not reach the cluster.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "decoy-key",
    "AWS_SECRET_ACCESS_KEY": "decoy-secret",
    "HF_TOKEN": "decoy-token",
}
SENT_VERSION = "0.0.0+sent"


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> Any:
    """A bucket with a corpus of two shards."""
    s3_server.create_bucket("cluster")
    for number in range(2):
        buffer = pa.BufferOutputStream()
        rows = [{"id": number * 8 + row, "text": f"text {row}"} for row in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        body = buffer.getvalue().to_pybytes()
        s3_server.client.put_object(Bucket="cluster", Key=f"in/{number}.parquet", Body=body)
    yield "s3://cluster"
    s3_server.delete_bucket("cluster")


@pytest.fixture
def env(ray_cluster: RayCluster, tmp_path: Path) -> dict[str, str]:
    """The environment of a client whose tokenmill is a copy with another version."""
    copy = tmp_path / "code"
    shutil.copytree(ROOT / "pipeline" / "tokenmill", copy / "tokenmill")
    (copy / "tokenmill" / "__init__.py").write_text(
        f'"""A copy."""\n\n__version__ = "{SENT_VERSION}"\n'
    )
    address = {"RAY_API_SERVER_ADDRESS": ray_cluster.address, "PYTHONPATH": str(copy)}
    # Without PYTHONSAFEPATH, `python -m` looks into the current folder first.
    return {**ray_cluster.environment, **SECRETS, **address, "PYTHONSAFEPATH": "1"}


def write_job(folder: Path, bucket: str, name: str, **changes: Any) -> Path:
    """A job for the bucket's corpus, with an output of the same name."""
    keys = job_over(Path(), f"{bucket}/{name}", name=name, input={"path": f"{bucket}/in"})
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**keys, **changes}))
    return path


def jobs_response(ray_cluster: RayCluster) -> str:
    token = ray_cluster.environment["RAY_AUTH_TOKEN"]
    host = ray_cluster.address.removeprefix("http://")
    with closing(http.client.HTTPConnection(host)) as connection:
        connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().read().decode()


def counted_by_ray(ray_cluster: RayCluster, run: str) -> ItemsView[str, float]:
    """A run's counters by name, summed over labels and over the nodes' endpoints."""
    counters: dict[str, float] = defaultdict(float)
    for group in json.loads(ray_cluster.discovery.read_text()):
        for address in group["targets"]:
            for sample in samples_of(scraped(address)):
                if sample.kind == "counter" and sample.labels.get("run") == run:
                    name = sample.name.removeprefix("ray_tokenmill_").removesuffix("_total")
                    counters[name] += sample.value
    return counters.items()


def test_a_job_runs_on_the_cluster_as_on_this_machine(
    ray_cluster: RayCluster,
    env: dict[str, str],
    bucket: str,
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    """The code and the job are sent, the exit code comes back, and no credential is sent.

    The metrics at the cluster's nodes agree with the run's summary.
    """
    job = write_job(tmp_path, bucket, "quick")
    done = tokenmill("submit", job, "--follow", env=env)
    assert done.returncode == ExitCode.FINISHED, done.stdout + done.stderr
    assert "16 = 16 answered + 0 rejected" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.endswith(": submitted")
    listed = s3_server.client.list_objects_v2(Bucket="cluster", Prefix="quick/")["Contents"]
    keys = [item["Key"] for item in listed]
    assert len([key for key in keys if key.startswith("quick/data/")]) == 8
    (summary,) = [key for key in keys if key.endswith("summary.json")]
    body = s3_server.client.get_object(Bucket="cluster", Key=summary)["Body"].read()
    facts = json.loads(body)
    assert facts["tokenmill"] == SENT_VERSION
    numbers = {
        "units": 8,
        "rows": 16,
        "prompt_tokens": facts["input_tokens"],
        "generation_tokens": facts["generated_tokens"],
    }
    eventually(lambda: counted_by_ray(ray_cluster, facts["run"]) >= numbers.items())
    response = jobs_response(ray_cluster)
    assert SENT_VERSION in response
    assert "decoy" not in response

    failed = tokenmill("submit", job, "--follow", "--input", f"{bucket}/none", env=env)
    assert failed.returncode == ExitCode.USER_ERROR
    assert "error: " in failed.stdout


def test_a_running_job_is_found_followed_and_stopped(
    env: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    """It is not submitted twice while it runs; after its end it is submitted again."""
    slow = {"source": "fake", "engine": {"step_s": 5}}
    job = write_job(tmp_path, bucket, "slow", model=slow)
    first = tokenmill("submit", job, env=env)
    assert first.returncode == ExitCode.FINISHED, first.stderr
    name = first.stdout.strip()

    follower = start_tokenmill("submit", job, "--follow", env=env)
    assert follower.stdout is not None
    lines = []
    while "Running entrypoint" not in "".join(lines):
        lines.append(follower.stdout.readline())
        assert lines[-1], lines
    follower.send_signal(signal.SIGINT)
    printed = "".join([*lines, follower.communicate(timeout=60)[0]])
    assert follower.returncode == ExitCode.STOPPED, printed
    assert f"{name}: already submitted" in printed
    assert f"tokenmill stop {name}" in printed

    other = tokenmill("submit", job, "--set", "sampling.max_tokens=3", env=env)
    assert other.returncode == ExitCode.USER_ERROR
    assert f"tokenmill stop {name}" in other.stderr

    listed = tokenmill("jobs", "--json", env=env)
    jobs = json.loads(listed.stdout)
    jsonschema.validate(jobs, schema_of("jobs"), jsonschema.Draft202012Validator)
    (listed_job,) = [job for job in jobs if job["id"] == name]
    assert (listed_job["job"], listed_job["state"]) == ("slow", "running")
    assert name in tokenmill("jobs", env=env).stdout

    stopped = tokenmill("stop", name, env=env)
    assert (stopped.returncode, stopped.stdout) == (ExitCode.FINISHED, f"{name}: stopped\n")
    second = tokenmill("submit", job, env=env)
    assert second.stdout.strip() == f"{name}-2", second.stderr


def test_a_wrong_token_is_refused(env: dict[str, str]) -> None:
    """The one line names the variable that holds the token."""
    done = tokenmill("jobs", env={**env, "RAY_AUTH_TOKEN": "another"})
    assert done.returncode == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "refuses the token" in line
    assert "RAY_AUTH_TOKEN" in line
