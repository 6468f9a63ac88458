"""A job that is submitted to a cluster: what is sent, under which id, and what Ray reports of it.

Knows what Ray's Job API accepts and returns; the calls are in `jobs_api`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import tokenmill
from tokenmill.config.model_source import ModelSource
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import portable_text
from tokenmill.storage.open import disk_path, is_remote

#: Runs on the cluster, in the folder that is submitted. `exec`: a signal must reach the run.
ENTRYPOINT = f"exec python -m {tokenmill.__name__} run job.yaml"
#: The metadata key that marks tokenmill's jobs; its value is tokenmill's version.
_MARK = "tokenmill"
# A stopped run needs time to write its summary; Ray's default before it kills is 3 s.
_STOP_WAIT_S = 60
# Longest part of a job's name in a submission id, which becomes part of file names on the cluster.
_MAX_NAME_CHARACTERS = 60
# Longest part of Ray's message about a state, which may quote the end of the log.
_MAX_MESSAGE_CHARACTERS = 300


class JobState(StrEnum):
    """The state of a submitted job."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether the state cannot change any more."""
        return self not in {JobState.PENDING, JobState.RUNNING}


# By Ray's names; its own `JobStatus` is a string too.
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.FINISHED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job on a cluster. Times are in seconds since 1970.

    `exit_code` is the run's, and None unless it has ended by itself; `message` is Ray's text on the
    state.
    """

    id: str
    job: str
    output: str
    fingerprint: str
    state: JobState
    submitted_at: float
    ended_at: float | None
    exit_code: int | None
    message: str


def submitted_job(details: Mapping[str, Any]) -> SubmittedJob | None:
    """The job with these details from the Job API; None if tokenmill has not submitted it."""
    metadata = details["metadata"] or {}
    if _MARK not in metadata or details["submission_id"] is None:
        return None
    end_ms = details["end_time"]
    return SubmittedJob(
        id=details["submission_id"],
        job=metadata["job"],
        output=metadata["output"],
        fingerprint=metadata["fingerprint"],
        state=_STATES[details["status"]],
        submitted_at=(details["start_time"] or 0) / 1000,
        ended_at=end_ms / 1000 if end_ms else None,
        exit_code=details["driver_exit_code"],
        message=" ".join((details["message"] or "").split())[:_MAX_MESSAGE_CHARACTERS],
    )


def metadata_of(job: Job) -> dict[str, str]:
    """What the cluster keeps with a job, for `submitted_job`."""
    return {
        _MARK: tokenmill.__version__,
        "job": job.name,
        "output": job.output.path,
        "fingerprint": job.fingerprint,
    }


def submission_id(job: Job) -> str:
    """The id of a job's first submission: the same for the same name and output."""
    output = job.output.path if is_remote(job.output.path) else disk_path(job.output.path)
    digest = hashlib.sha256(json.dumps([job.name, output.rstrip("/")]).encode()).hexdigest()
    return f"tokenmill-{job.name[:_MAX_NAME_CHARACTERS]}-{digest[:10]}"


def submissions_of(first_id: str, jobs: Iterable[SubmittedJob]) -> dict[int, SubmittedJob]:
    """The submissions of one job by number, from 1; Ray accepts each id only once."""
    pattern = re.compile(rf"{re.escape(first_id)}(?:-(\d+))?")
    matches = ((pattern.fullmatch(job.id), job) for job in jobs)
    return {int(match.group(1) or 1): job for match, job in matches if match}


def numbered_id(first_id: str, number: int) -> str:
    """The id of the submission of a job with this number, from 1."""
    return first_id if number == 1 else f"{first_id}-{number}"


def require_cluster_urls(job: Job) -> None:
    """Raise `UserError` for a path that the cluster would look up in another folder."""
    for key, path in _local_paths(job):
        if not os.path.isabs(path):
            raise UserError(
                f"{key}: {path} is a relative path, which has another meaning on a cluster; write "
                "an s3:// URL, or an absolute path on a disk that all of its nodes can read"
            )


def _local_paths(job: Job) -> Iterator[tuple[str, str]]:
    """The paths in the job that are on a disk, with their keys."""
    paths = {
        "input.path": job.input.path,
        "output.path": job.output.path,
        "output.publish": job.output.publish,
    }
    for key, path in paths.items():
        if path is not None and not is_remote(path):
            yield key, disk_path(path)
    models: dict[str, ModelSource] = {"model.source": job.model}
    models |= {f"{key}.source": side.source for key, side in job.auxiliary_models.items()}
    for name, source in job.model.adapters.items():
        models[f"model.adapters.{name}"] = ModelSource(source=source)
    for key, model in models.items():
        if model.is_path and not is_remote(model.source):
            yield key, model.source


def pack_code(job: Job, folder: Path, *, with_code: bool) -> dict[str, Any]:
    """Put what is submitted into an empty folder; returns the runtime environment that names it.

    The environment holds no variable of this process, because every client of the Job API can read
    it. Raises `UserError` for a job that would mean something else on the cluster.
    """
    require_cluster_urls(job)
    job_folder = folder / "job"
    job_folder.mkdir()
    (job_folder / "job.yaml").write_text(portable_text(job), encoding="utf-8")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        # The user accepts a cluster without tokens; the run on the cluster must accept it too.
        variables["RAY_AUTH_MODE"] = "disabled"
    environment: dict[str, Any] = {"working_dir": str(job_folder), "env_vars": variables}
    if with_code:
        code = folder / tokenmill.__name__
        # Ray caches a package by its content, so leave out what Python writes into it.
        shutil.copytree(
            Path(tokenmill.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__")
        )
        environment["py_modules"] = [str(code)]
    return environment
