"""A run is stopped while its store does not answer."""

import signal
from pathlib import Path

import pytest
from helpers.s3_server import S3Server
from tokenmill.errors import ExitCode

from faults import driver, world
from faults.proxy import Asked, Fault, FaultyS3
from faults.rounds import GRACE_S

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


class SilentAfterCommit:
    """No request is answered once a unit is committed."""

    is_silent = False

    def fault_of(self, asked: Asked) -> Fault | None:
        fault = Fault.HANG if self.is_silent else None
        self.is_silent = self.is_silent or (asked.method == "PUT" and "/data/" in asked.path)
        return fault


def test_a_stop_does_not_wait_for_a_store(
    proxy: FaultyS3, s3_server: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    """A machine that is taken away in 30 s has the exit code and the message of a stop by then."""
    world.write_corpus(tmp_path / "corpus", shards=1, poison=False)
    job = world.write_job(tmp_path / "job.yaml")
    proxy.weather = weather = SilentAfterCommit()
    arguments = ["run", job, "--input", tmp_path / "corpus", "--output", f"s3://{s3_bucket}/out"]
    environment = {**s3_server.environment, "AWS_ENDPOINT_URL": proxy.endpoint_url}
    process = driver.start(arguments, environment, tmp_path, "")
    while not weather.is_silent:
        process.join(0.1)
        assert process.is_alive(), driver.said(tmp_path, process)
    driver.signal_if_alive(process, signal.SIGTERM)
    process.join(GRACE_S)
    assert process.exitcode == ExitCode.STOPPED, driver.said(tmp_path, process)
    assert "stopped: the units that are committed stay" in driver.said(tmp_path, process)
