"""Ray's Job API at an address: submit a job, follow it, list jobs, stop one.

This module calls Ray's client; what is submitted and what comes back is in `submission`. The
cluster is asked over HTTP only, with the token that Ray's own tools use.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from tokenmill.cluster.auth_check import check_job_api, require_closed
from tokenmill.cluster.ray_patches import RayPatches, server_version
from tokenmill.cluster.ray_version import check_ray_version
from tokenmill.cluster.submission import (
    ENTRYPOINT,
    SubmittedJob,
    metadata_of,
    numbered_id,
    pack_code,
    submission_id,
    submissions_of,
    submitted_job,
)
from tokenmill.errors import RunFailed, UserError
from tokenmill.job.job import Job

# Seconds to connect, and of silence within an answer.
_TIMEOUT_S = (10.0, 60.0)
# How long a restarting head, or a lost network, is tolerated while a job is followed.
_RECONNECT_S = 120.0
_POLL_INTERVAL_S = 0.5
# Silence in a followed log after which the job's state is looked up.
_LOG_SILENCE_S = 300.0
_MAX_MESSAGE_CHARACTERS = 300
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


class Cluster:
    """The Job API of a cluster that is proven to require a token.

    All methods raise `UserError` if the user has to act, and `RunFailed` if a later call may
    succeed.
    """

    def __init__(self, address: str) -> None:
        check_ray_version(ray.__version__)
        self.address = address.rstrip("/")
        try:
            with _only_address(self.address), self._errors_explained():
                self._client: Any = JobSubmissionClient(self.address, headers=_token_headers())
        except RunFailed as error:
            if isinstance(error.__cause__, RuntimeError):
                raise self._not_a_job_api() from error
            raise
        require_closed(self.address, lambda: check_job_api(self.address))

    def jobs(self) -> list[SubmittedJob]:
        """The jobs that tokenmill has submitted, oldest first."""
        with self._errors_explained():
            jobs = [submitted_job(vars(details)) for details in self._client.list_jobs()]
        return sorted((job for job in jobs if job), key=lambda job: job.submitted_at)

    def job(self, job_id: str) -> SubmittedJob:
        """One of `jobs`, by its id."""
        for job in self.jobs():
            if job.id == job_id:
                return job
        raise UserError(
            f"{job_id}: tokenmill has submitted no such job to {self.address}; "
            "`tokenmill jobs` lists them"
        )

    def submit(self, job: Job, *, with_code: bool) -> tuple[SubmittedJob, bool]:
        """Submit a job, unless it was submitted before and has not ended.

        Returns the submitted job, and whether this call has submitted it.
        """
        if with_code:
            self._require_same_ray()
        first_id = submission_id(job)
        while True:
            submissions = submissions_of(first_id, self.jobs())
            last = submissions[max(submissions)] if submissions else None
            if last is not None and not last.state.is_final:
                self._require_same(last, job)
                return last, False
            job_id = numbered_id(first_id, max(submissions, default=0) + 1)
            if self._submitted(job_id, job, with_code=with_code):
                return self.job(job_id), True

    def follow(self, job_id: str, show: Callable[[str], None]) -> SubmittedJob:
        """Pass the run's log to `show`, from its beginning and as it grows, until the run ends."""
        num_shown = 0
        reached_at = time.monotonic()
        while True:
            try:
                with _quietly():
                    num_shown = asyncio.run(self._tail(job_id, num_shown, show))
                job = self.job(job_id)
                if job.state.is_final:
                    return job
                reached_at = time.monotonic()
            except RunFailed:
                if time.monotonic() - reached_at > _RECONNECT_S:
                    raise
            # The job has not started yet, or the connection was lost.
            time.sleep(_POLL_INTERVAL_S)

    def stop(self, job_id: str) -> SubmittedJob:
        """Stop the run, and wait until it has stopped; a run that has ended stays as it is."""
        job = self.job(job_id)
        if job.state.is_final:
            return job
        with self._errors_explained():
            self._client.stop_job(job_id)
        while not job.state.is_final:
            time.sleep(_POLL_INTERVAL_S)
            job = self.job(job_id)
        return job

    def _submitted(self, job_id: str, job: Job, *, with_code: bool) -> bool:
        """Submit under this id; False if the id was taken in the meantime."""
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            environment = pack_code(job, Path(folder), with_code=with_code)
            try:
                with self._errors_explained():
                    self._client.submit_job(
                        entrypoint=ENTRYPOINT,
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata=metadata_of(job),
                    )
            except RunFailed as error:
                if "already exists" in str(error.__cause__):
                    return False
                raise
        return True

    def _require_same_ray(self) -> None:
        """Raise `UserError` if the code that is shipped is made for another version of Ray."""
        version = server_version(self._client)
        if version != ray.__version__:
            raise UserError(
                f"Ray at {self.address} is {version or 'of an unknown version'}, but this "
                f"tokenmill runs with {ray.__version__}; install the same version there, or use "
                "--no-ship with an image that has its own tokenmill"
            )

    def _require_same(self, submitted: SubmittedJob, job: Job) -> None:
        if submitted.fingerprint != job.fingerprint:
            raise UserError(
                f"{submitted.id} is {submitted.state} with other settings for {submitted.output}; "
                f"wait until it ends, or stop it: tokenmill stop {submitted.id} --address "
                f"{self.address}"
            )

    async def _tail(self, job_id: str, num_shown: int, show: Callable[[str], None]) -> int:
        """Show the log after its first `num_shown` characters; returns how many are shown now."""
        log = self._client.tail_job_logs(job_id)
        num_read = 0
        while True:
            try:
                text = await asyncio.wait_for(anext(log, None), _LOG_SILENCE_S)
            except (RuntimeError, TimeoutError, aiohttp.ClientError):
                # The caller looks up whether the job still exists.
                return num_shown
            if text is None:
                return num_shown
            show(text[max(0, num_shown - num_read) :])
            num_read += len(text)
            num_shown = max(num_shown, num_read)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Report errors of Ray's client in one line, and hide what it logs."""
        try:
            with _quietly(), RayPatches() as patches:
                patches.limit_waiting(_TIMEOUT_S)
                yield
        except AuthenticationError as error:
            is_refused = str(error).startswith("Authentication failed")
            problem = "refuses the token" if is_refused else "requires a token, and none is set"
            raise UserError(
                f"Ray at {self.address} {problem}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to "
                "the file that holds it"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise self._not_a_job_api() from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:_MAX_MESSAGE_CHARACTERS]
            raise RunFailed(f"Ray's Job API at {self.address}: {reason}") from error
        except OSError as error:
            raise RunFailed(
                f"Ray's Job API does not answer at {self.address}; check that the cluster is up, "
                "and that this is the port of its dashboard (8265 by default)"
            ) from error

    def _not_a_job_api(self) -> UserError:
        return UserError(
            f"the server at {self.address} is not Ray's Job API, which is on the port of the "
            "dashboard (8265 by default)"
        )


def _token_headers() -> dict[str, str]:
    """A header with the token, as Ray's own tools find it.

    Ray's client sends a token by itself only if RAY_AUTH_MODE is set. Raises `UserError` if the
    file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN") or _token_in_file()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token_in_file() -> str:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return Path(path or Path.home() / ".ray" / "auth_token").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if path is None:
            return ""
        raise UserError(f"RAY_AUTH_TOKEN_PATH={path}: cannot be read: {error}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide what Ray's client logs from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Make Ray's client use this address instead of that in its environment variable."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before
