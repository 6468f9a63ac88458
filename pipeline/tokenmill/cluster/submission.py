"""A job on its way to a cluster: what is shipped, under which id, and what became of it.

Knows what Ray's Job API takes and gives, and not how it is asked: that is `cluster`.
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

#: On the cluster, in the folder that is shipped. `exec`: a signal reaches the run, not a shell.
ENTRYPOINT = "exec python -m pipeline run job.yaml"
#: The metadata's key by which jobs of ours are known; its value is our version.
_OURS = "tokenmill"
# A run that is stopped writes its summary; Ray kills it after 3 s unless it is told otherwise.
_STOP_WAIT_S = 60
# Of a job's name in an id, which is a part of file names on the cluster.
_MOST_NAME_CHARACTERS = 60
# Of Ray's word on a state; behind it may stand the end of the log.
_MOST_MESSAGE_CHARACTERS = 300


class JobState(StrEnum):
    """What becomes of a submitted job."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Nothing more becomes of it."""
        return self not in {JobState.PENDING, JobState.RUNNING}


# In Ray's words.
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.FINISHED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.STOPPED,
}


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that a cluster has been given. Times are in seconds since 1970.

    `exit_code` is None until the run has ended by itself; `message` is Ray's word on the state.
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
    """The job of the Job API's details; None if it is none of ours."""
    metadata = details["metadata"] or {}
    if _OURS not in metadata or details["submission_id"] is None:
        return None
    ended = details["end_time"]
    return SubmittedJob(
        id=details["submission_id"],
        job=metadata["job"],
        output=metadata["output"],
        fingerprint=metadata["fingerprint"],
        state=_STATES[details["status"]],
        submitted_at=(details["start_time"] or 0) / 1000,
        ended_at=ended / 1000 if ended else None,
        exit_code=details["driver_exit_code"],
        message=" ".join((details["message"] or "").split())[:_MOST_MESSAGE_CHARACTERS],
    )


def metadata_of(job: Job) -> dict[str, str]:
    """What the cluster keeps of a job, for whoever asks for it."""
    return {
        _OURS: tokenmill.__version__,
        "job": job.name,
        "output": job.output.path,
        "fingerprint": job.fingerprint,
    }


def submission_id(job: Job) -> str:
    """The id of a job's first submission: the same for the same name and output."""
    output = job.output.path if is_remote(job.output.path) else disk_path(job.output.path)
    digest = hashlib.sha256(json.dumps([job.name, output.rstrip("/")]).encode()).hexdigest()
    return f"tokenmill-{job.name[:_MOST_NAME_CHARACTERS]}-{digest[:10]}"


def submissions_of(first_id: str, jobs: Iterable[SubmittedJob]) -> dict[int, SubmittedJob]:
    """The submissions of one job by their numbers, from 1: Ray takes an id only once."""
    form = re.compile(rf"{re.escape(first_id)}(?:-(\d+))?")
    matches = ((form.fullmatch(job.id), job) for job in jobs)
    return {int(match.group(1) or 1): job for match, job in matches if match}


def numbered_id(first_id: str, number: int) -> str:
    """The id of a job's submission of that number, from 1."""
    return first_id if number == 1 else f"{first_id}-{number}"


def require_cluster_urls(job: Job) -> None:
    """Raise `UserError` for a path that would mean another place on the cluster."""
    for key, path in _local_paths(job):
        if not os.path.isabs(path):
            raise UserError(
                f"{key}: {path} is another place on a cluster; write an s3:// address, or the "
                "whole path on a disk that all of its nodes see"
            )


def _local_paths(job: Job) -> Iterator[tuple[str, str]]:
    """The places of the job that are on a disk, by their keys."""
    places = {
        "input.path": job.input.path,
        "output.path": job.output.path,
        "output.publish": job.output.publish,
    }
    for key, path in places.items():
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
    """Put what is shipped into an empty folder; the runtime environment that names it.

    It holds no variable of this process: whoever may ask the Job API reads it.
    Raises `UserError` for a job that would be another one there.
    """
    require_cluster_urls(job)
    shipped = folder / "job"
    shipped.mkdir()
    (shipped / "job.yaml").write_text(portable_text(job), encoding="utf-8")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        # Who insists on a cluster without tokens here insists on it there.
        variables["RAY_AUTH_MODE"] = "disabled"
    environment: dict[str, Any] = {"working_dir": str(shipped), "env_vars": variables}
    if with_code:
        code = folder / "tokenmill"
        # The same code is the same package, which Ray keeps: without what Python writes beside it.
        shutil.copytree(
            Path(tokenmill.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__")
        )
        environment["py_modules"] = [str(code)]
    return environment
