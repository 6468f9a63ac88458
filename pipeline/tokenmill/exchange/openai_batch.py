"""Runs a batch file as an ordinary job: its requests as Parquet, a run, two files of results.

    WORK/requests/requests.parquet   the requests, written once; holds the file's checksum
    WORK/output                      the output of the run, which resumes like any other

The result files are written last, from the output. Until then the same command resumes, wherever
it was stopped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenmill.config.strict_yaml import dump_yaml
from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange.export import STDOUT, answer_files, check_separate
from tokenmill.exchange.openai_answers import answered_line, body_builder, refused_line
from tokenmill.exchange.openai_bodies import Endpoint, RefusedLine
from tokenmill.exchange.openai_requests import SCHEMAS, BatchRequest, JobNeeds, RequestReader
from tokenmill.job.job import Job
from tokenmill.job.loader import stored_job
from tokenmill.observe.screen import Interface
from tokenmill.output.json_lines import write_line
from tokenmill.output.output import OpenedOutput, all_batches, committed_objects, open_output
from tokenmill.output.record import UnitRecord
from tokenmill.output.schema import task_columns
from tokenmill.output.success import read_success
from tokenmill.output.verify import expected_output
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import Executor
from tokenmill.storage.base import Store, name_taken
from tokenmill.storage.open import open_object, open_store

_REQUESTS_KEY = "requests/requests.parquet"
_METADATA_KEY = "tokenmill_batch"
# What is held in memory at a time.
_MAX_REQUESTS = 2048
_MAX_BYTES = 2**22
#: Opens the file at a path or URL for reading.
FileOpener = Callable[[str], AbstractContextManager[IO[bytes]]]
_Lines = Iterator[tuple[int, BatchRequest | RefusedLine]]
_Rows = Iterator[tuple[UnitRecord, Mapping[str, Any]]]


@contextmanager
def open_file(url: str) -> Iterator[IO[bytes]]:
    """Open a file for reading. Raises `UserError` if it does not exist."""
    store, key = open_object(url)
    try:
        opened = store.open(key)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file; check the path") from error
    with opened as file:
        yield file


@dataclass(frozen=True, slots=True)
class Batch:
    """The files of a batch, as paths or s3:// URLs.

    Errors are written to `errors`, or to `answers` if that is None. `work` is a folder or prefix
    for intermediate files. `open_requests` opens the requests each time they are read.
    """

    requests: str
    answers: str
    errors: str | None
    work: str
    open_requests: FileOpener = open_file


@dataclass(frozen=True, slots=True)
class Outcome:
    """The number of lines written, and the summary of the run; None if nothing had to be run."""

    answered: int
    failed: int
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class _Conversion:
    """What is stored with the converted requests: the checksum of their file, and their needs.

    `needs` is None if no line can be run.
    """

    sha256: str
    needs: JobNeeds | None

    def to_json(self) -> str:
        needs = None if self.needs is None else asdict(self.needs)
        return json.dumps({"sha256": self.sha256, "wanted": needs})

    @classmethod
    def from_json(cls, text: bytes) -> "_Conversion":
        stored = json.loads(text)
        needs = stored["wanted"]
        if needs is not None:
            needs = JobNeeds(**{**needs, "endpoint": Endpoint(needs["endpoint"])})
        return cls(stored["sha256"], needs)


def run_batch(
    batch: Batch, model: str, overrides: Sequence[str], executor: Executor, interface: Interface
) -> Outcome | None:
    """Run all requests of a batch file; None if its result files already exist.

    Raises as `run_job` does; then the same call resumes. If more rows were rejected than
    `overrides` allow, the summary says so and no result file is written.
    """
    if STDOUT in (batch.answers, batch.errors):
        raise UserError("--output and --errors must be files, which a rerun can find; name them")
    if batch.errors is not None:
        check_separate(batch.answers, batch.errors)
    work = open_store(batch.work)
    conversion = _stored_conversion(batch, work)
    if _exists(batch.answers):
        if conversion is None or not _is_run(work, conversion):
            raise name_taken(batch.answers)
        interface.say(f"{batch.answers} is finished. Nothing to do.")
        return None
    if batch.errors is not None and _exists(batch.errors):
        raise name_taken(batch.errors)
    if conversion is None:
        conversion = _convert(batch, work)
    if conversion.needs is None:
        return _write_results(batch, conversion, None, None)
    job = _job(work, conversion.needs, model, overrides)
    summary = run_job(job, executor, interface)
    if summary is not None and summary.exit_code != ExitCode.FINISHED:
        return Outcome(0, 0, summary)
    opened = open_output(open_store(job.output.path))
    return _write_results(batch, conversion, opened, summary)


def _is_run(work: Store, conversion: _Conversion) -> bool:
    """Whether the run of the requests is finished."""
    return conversion.needs is None or read_success(open_store(f"{work.url}/output")) is not None


def _exists(url: str) -> bool:
    store, key = open_object(url)
    try:
        store.info(key)
    except FileNotFoundError:
        return os.path.isdir(url)
    return True


def _stored_conversion(batch: Batch, work: Store) -> _Conversion | None:
    """The conversion by an earlier call. Raises `UserError` if it was of another file."""
    try:
        with work.open(_REQUESTS_KEY) as file:
            metadata = pq.read_metadata(file).metadata or {}
        conversion = _Conversion.from_json(metadata[_METADATA_KEY.encode()])
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{work.url}/{_REQUESTS_KEY} was not written by tokenmill; choose another --work"
        ) from error
    digest = hashlib.sha256()
    with batch.open_requests(batch.requests) as file:
        while data := file.read(_MAX_BYTES):
            digest.update(data)
    _require_same_file(batch, conversion, digest.hexdigest())
    return conversion


def _require_same_file(batch: Batch, conversion: _Conversion, sha256: str) -> None:
    if sha256 != conversion.sha256:
        raise UserError(
            f"{batch.work} belongs to another batch file, or {batch.requests} has changed since; "
            "choose another --work, or remove it"
        )


def _parse(file: IO[bytes], digest: Any) -> _Lines:
    """Each line's number with its request, or with its error; blank lines are skipped."""
    reader = RequestReader()
    for number, data in enumerate(_split(file, digest), start=1):
        if not data.strip():
            continue
        try:
            yield number, reader.read(number, data)
        except RefusedLine as error:
            yield number, error


def _split(file: IO[bytes], digest: Any) -> Iterator[bytes]:
    """The lines of a file. Its own `readline` would ask S3 for single bytes."""
    rest = b""
    while data := file.read(_MAX_BYTES):
        digest.update(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


def _convert(batch: Batch, work: Store) -> _Conversion:
    """Write the run's input: whole, or not at all."""
    digest = hashlib.sha256()
    needs: JobNeeds | None = None
    with batch.open_requests(batch.requests) as file, work.open_new(_REQUESTS_KEY) as target:
        lines = _parse(file, digest)
        requests = (line for _, line in lines if isinstance(line, BatchRequest))
        first = next(requests, None)
        schema = SCHEMAS[Endpoint.CHAT if first is None else first.endpoint]
        all_requests = chain(() if first is None else (first,), requests)
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            while chunk := list(islice(all_requests, _MAX_REQUESTS)):
                for request in chunk:
                    needs = JobNeeds.of(request).merged(needs)
                rows = [row for request in chunk for row in request.rows]
                writer.write_table(pa.Table.from_pylist(rows, schema))
            conversion = _Conversion(digest.hexdigest(), needs)
            writer.add_key_value_metadata({_METADATA_KEY: conversion.to_json()})
    return conversion


def _job(work: Store, needs: JobNeeds, model: str, overrides: Sequence[str]) -> Job:
    keys: Mapping[str, Any] = {
        "name": "import-batch",
        "input": {"path": f"{work.url}/requests", "keep": ["line", "custom_id"]},
        "model": {"source": model},
        "output": {"path": f"{work.url}/output"},
        # Rejects are lines of the error file.
        "max_reject_rate": 1.0,
        **needs.job_keys,
    }
    return stored_job(dump_yaml(dict(keys)), "import-batch", overrides)


def _write_results(
    batch: Batch, conversion: _Conversion, opened: OpenedOutput | None, summary: Summary | None
) -> Outcome:
    """Write the result files: a line for each request, in the order of the requests."""
    answered, failed = 0, 0
    digest = hashlib.sha256()
    with (
        batch.open_requests(batch.requests) as file,
        answer_files(batch.answers, batch.errors) as (answers, errors),
    ):
        for line in _results(_parse(file, digest), opened):
            if line["error"] is None:
                answered += 1
                write_line(line, answers)
            else:
                failed += 1
                write_line(line, errors)
        _require_same_file(batch, conversion, digest.hexdigest())
        if not answered + failed:
            raise UserError(f"{batch.requests} holds no requests")
    return Outcome(answered, failed, summary)


def _results(lines: _Lines, opened: OpenedOutput | None) -> Iterator[dict[str, Any]]:
    """The result of each line. The output's rows are in the order of the requests."""
    rows: _Rows = iter(()) if opened is None else _output_rows(opened)
    build_body = None if opened is None else body_builder(opened.job)
    columns = {} if opened is None else task_columns(opened.job)[0]
    for number, line in lines:
        if isinstance(line, RefusedLine):
            yield refused_line(number, line)
            continue
        answers = list(islice(rows, len(line.rows)))
        if build_body is None or {row["line"] for _, row in answers} != {number}:
            raise UserError(f"line {number} has no row in the output; choose another --work")
        yield answered_line(line, answers, build_body, columns)


def _output_rows(opened: OpenedOutput) -> _Rows:
    committed = committed_objects(opened.store, opened.plan)
    units = (committed[unit.key] for unit in opened.plan.units)
    for record, batch in all_batches(opened, units, expected_output(opened).schema.names):
        for row in batch.to_pylist():
            yield record, row
