"""Ray's Job API at an address: submit a job, follow it, list jobs, stop one.

The door to Ray's client of it; what is shipped and what comes back is in `submission`. A cluster
is asked over HTTP alone, with the token that Ray's client finds (RAY_AUTH_TOKEN and its kin).
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

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

# Seconds to connect, and of silence within an answer; Ray's client would wait for ever.
_TIMEOUT_S = (10.0, 60.0)
# A head that is started again, or a network that is gone for a while.
_PATIENCE_S = 120.0
_LOOK_S = 0.5
# Of a log that is followed, before it is asked whether the job is still there.
_SILENCE_S = 300.0
_MOST_MESSAGE_CHARACTERS = 300
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which gives up waiting for an answer."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, timeout=_TIMEOUT_S, **options)

    def get(self, path: str) -> Any:
        """The JSON that the API answers with. Raises `LookupError` for a path that it lacks."""
        answer = self._do_request("GET", path)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise LookupError(path)
        answer.raise_for_status()
        return answer.json()

    def wants_token(self) -> bool:
        """Whether nobody is let in without one."""
        try:
            return bool(self.get("/api/authentication_mode")["authentication_mode"] == "token")
        except LookupError:
            # Ray before 2.52, which has none.
            return False


class Cluster:
    """A cluster that answers, and that wants a token.

    All methods raise `UserError` where the user can mend it, `RunFailed` where waiting may.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        try:
            with _one_address(self.address), self._told():
                # As Ray does it: a token that there is, is used.
                maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
                self._client = _Client(self.address)
                self.ray_version: str = self._client.get("/api/version")["ray_version"]
                wants_token = self._client.wants_token()
        except RunFailed as error:
            if isinstance(error.__cause__, RuntimeError):
                raise self._foreign() from error
            raise
        if not wants_token and os.environ.get("RAY_AUTH_MODE") != "disabled":
            raise UserError(
                f"Ray at {self.address} runs the code of anyone who reaches it: it asks for no "
                "token; start it with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled here to "
                "use it all the same"
            )

    def jobs(self) -> list[SubmittedJob]:
        """The jobs that were submitted by us, the first one first."""
        with self._told():
            found = [submitted_job(details) for details in self._client.get("/api/jobs/")]
        return sorted((job for job in found if job), key=lambda job: job.submitted_at)

    def job(self, job_id: str) -> SubmittedJob:
        """One of `jobs`."""
        for job in self.jobs():
            if job.id == job_id:
                return job
        raise UserError(
            f"{job_id}: tokenmill has submitted no such job to {self.address}; "
            "`tokenmill jobs` lists those that there are"
        )

    def submit(self, job: Job, *, with_code: bool) -> tuple[SubmittedJob, bool]:
        """Submit the job unless it is there and has not ended; whether this call submitted it."""
        if with_code and self.ray_version != ray.__version__:
            raise UserError(
                f"Ray at {self.address} is {self.ray_version}, and this tokenmill is made for "
                f"{ray.__version__}; install the same there, or use --no-ship with an image that "
                "has a tokenmill of its own"
            )
        first_id = submission_id(job)
        while True:
            known = submissions_of(first_id, self.jobs())
            last = known[max(known)] if known else None
            if last is not None and not last.state.is_final:
                self._require_same(last, job)
                return last, False
            name = numbered_id(first_id, max(known, default=0) + 1)
            if self._submitted(name, job, with_code=with_code):
                return self.job(name), True

    def follow(self, job_id: str, tell: Callable[[str], None]) -> SubmittedJob:
        """Tell the run's log from its beginning, as it grows, until the run has ended."""
        told = 0
        seen_at = time.monotonic()
        while True:
            try:
                with _quietly():
                    told = asyncio.run(self._tail(job_id, told, tell))
                found = self.job(job_id)
                if found.state.is_final:
                    return found
                seen_at = time.monotonic()
            except RunFailed:
                if time.monotonic() - seen_at > _PATIENCE_S:
                    raise
            # The job waits for its start, or the connection was lost.
            time.sleep(_LOOK_S)

    def stop(self, job_id: str) -> SubmittedJob:
        """Have the run stop, and wait until it has; one that has ended stays as it is."""
        found = self.job(job_id)
        if found.state.is_final:
            return found
        with self._told():
            self._client.stop_job(job_id)
        while not found.state.is_final:
            time.sleep(_LOOK_S)
            found = self.job(job_id)
        return found

    def _submitted(self, job_id: str, job: Job, *, with_code: bool) -> bool:
        """Submit under this id; False if another has taken it meanwhile."""
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            environment = pack_code(job, Path(folder), with_code=with_code)
            try:
                with self._told():
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

    def _require_same(self, found: SubmittedJob, job: Job) -> None:
        if found.fingerprint != job.fingerprint:
            raise UserError(
                f"{found.id} is {found.state} with other settings for {found.output}; wait for its "
                f"end, or stop it: tokenmill stop {found.id} --address {self.address}"
            )

    async def _tail(self, job_id: str, told: int, tell: Callable[[str], None]) -> int:
        """Tell what the log holds beyond the first `told` characters; how many there are then."""
        log = self._client.tail_job_logs(job_id)
        at = 0
        while True:
            try:
                text = await asyncio.wait_for(anext(log, None), _SILENCE_S)
            except (RuntimeError, TimeoutError, aiohttp.ClientError):
                # Whether the job is still there is asked next.
                return told
            if text is None:
                return told
            tell(text[max(0, told - at) :])
            at += len(text)
            told = max(told, at)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell in one line what goes wrong, and keep Ray's own words about it away."""
        try:
            with _quietly():
                yield
        except AuthenticationError as error:
            refused = str(error).startswith("Authentication failed")
            raise UserError(
                f"Ray at {self.address} "
                + ("refuses the token" if refused else "asks for a token, and none is here")
                + "; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise self._foreign() from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:_MOST_MESSAGE_CHARACTERS]
            raise RunFailed(f"Ray's Job API at {self.address}: {reason}") from error
        except OSError as error:
            raise RunFailed(
                f"Ray's Job API does not answer at {self.address}; is the cluster up, and is this "
                "the port of its dashboard, by default 8265?"
            ) from error

    def _foreign(self) -> UserError:
        return UserError(
            f"what answers at {self.address} is not Ray's Job API, which is at the dashboard's "
            "port, by default 8265"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what Ray's client logs away from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _one_address(address: str) -> Iterator[None]:
    """Have Ray's client take this address, and not one of its variables."""
    before = os.environ.get(_ADDRESS_VARIABLE)
    os.environ[_ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS_VARIABLE]
        else:
            os.environ[_ADDRESS_VARIABLE] = before
