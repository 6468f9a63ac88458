"""A batch file answered by an ordinary run: its requests as Parquet, a job, the two answer files.

    WORK/requests/requests.parquet   the requests, made once; bears the file's checksum
    WORK/output                      the output of the run, which is resumed as any other is

The answer files are written last, from the output and the lines beside it, so that the same command
goes on wherever it was stopped.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange.export import answer_files
from tokenmill.exchange.openai_answers import answered_line, body_of, refused_line
from tokenmill.exchange.openai_requests import (
    SCHEMAS,
    BatchRequest,
    Endpoint,
    RefusedLine,
    RequestReader,
    Wanted,
    wanted_by,
)
from tokenmill.job.job import Job
from tokenmill.job.loader import stored_job
from tokenmill.observe.screen import Interface
from tokenmill.output.json_lines import write_line
from tokenmill.output.output import OpenedOutput, batches_with_record, open_output
from tokenmill.output.record import UnitRecord
from tokenmill.output.success import read_success
from tokenmill.output.verify import expected_output
from tokenmill.run.run import run_job
from tokenmill.run.summary import Summary
from tokenmill.stages.executor import Executor
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_object, open_store

_REQUESTS = "requests/requests.parquet"
_METADATA_KEY = "tokenmill_batch"
# In memory at a time.
_MOST_ROWS = 2048
_MOST_BYTES = 2**22
_Requests = Iterator[tuple[int, BatchRequest | RefusedLine]]
_Rows = Iterator[tuple[UnitRecord, Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Batch:
    """What is answered and where to: paths or s3:// URLs. Errors go to the answers without a file.

    `work` is a folder or prefix for what is between.
    """

    requests: str
    answers: str
    errors: str | None
    work: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The lines that were written, and the run's summary; None if it had nothing to do."""

    answered: int
    failed: int
    summary: Summary | None


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the Parquet of the requests says of itself; `wanted` is None where no line is asked."""

    sha256: str
    wanted: Wanted | None


def run_batch(
    batch: Batch, model: str, overrides: Sequence[str], executor: Executor, interface: Interface
) -> Outcome | None:
    """Answer all requests of a batch file: None if the files are there already.

    Raises as `run_job` does; then the same call goes on where it stopped. Without answer files the
    summary says that more rows were rejected than `overrides` allow.
    """
    work = open_store(batch.work)
    facts = _standing(batch, work)
    if _exists(batch.answers):
        if facts is None or not _is_run(work, facts):
            raise UserError(f"{batch.answers} is there already; remove it or name another file")
        interface.say(f"{batch.answers} is finished. Nothing to do.")
        return None
    if batch.errors is not None and _exists(batch.errors):
        raise UserError(f"{batch.errors} is there already; remove it or name another file")
    if facts is None:
        facts = _convert(batch, work)
    if facts.wanted is None:
        return _write(batch, facts, None, None)
    job = _job(work, facts.wanted, model, overrides)
    summary = run_job(job, executor, interface)
    if summary is not None and summary.exit_code != ExitCode.FINISHED:
        return Outcome(0, 0, summary)
    return _write(batch, facts, open_output(open_store(job.output.path)), summary)


def _is_run(work: Store, facts: _Facts) -> bool:
    """Whether all that is asked has been run to its end."""
    return facts.wanted is None or read_success(open_store(f"{work.url}/output")) is not None


def _exists(url: str) -> bool:
    store, key = open_object(url)
    try:
        store.info(key)
    except FileNotFoundError:
        return os.path.isdir(url)
    return True


def _standing(batch: Batch, work: Store) -> _Facts | None:
    """What was made of the batch before. Raises `UserError` if it was of another file."""
    try:
        with work.open(_REQUESTS) as file:
            metadata = pq.read_metadata(file).metadata or {}
        stored = json.loads(metadata[_METADATA_KEY.encode()])
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(f"{work.url}/{_REQUESTS} is not ours; name another --work") from error
    wanted = stored["wanted"]
    if wanted is not None:
        wanted = Wanted(**{**wanted, "endpoint": Endpoint(wanted["endpoint"])})
    digest = hashlib.sha256()
    with _opened(batch.requests) as file:
        while data := file.read(_MOST_BYTES):
            digest.update(data)
    facts = _Facts(stored["sha256"], wanted)
    _refuse_other(batch, facts, digest)
    return facts


def _refuse_other(batch: Batch, facts: _Facts, digest: Any) -> None:
    if digest.hexdigest() != facts.sha256:
        raise UserError(
            f"{batch.work} holds the work on another file, or {batch.requests} has changed; "
            "name another --work, or remove it"
        )


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    store, key = open_object(url)
    try:
        opened = store.open(key)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file; mend the path") from error
    with opened as file:
        yield file


def _requests(file: IO[bytes], digest: Any) -> _Requests:
    """The requests of a file, or why a line is none, with its number; blank lines are none."""
    reader = RequestReader()
    for number, data in enumerate(_split(file, digest), start=1):
        if not data.strip():
            continue
        try:
            yield number, reader.read(number, data)
        except RefusedLine as error:
            yield number, error


def _split(file: IO[bytes], digest: Any) -> Iterator[bytes]:
    """The lines of a file; of one in S3 each `readline` would ask for single bytes."""
    rest = b""
    while data := file.read(_MOST_BYTES):
        digest.update(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


def _convert(batch: Batch, work: Store) -> _Facts:
    """Make the run's input, whole or not at all."""
    digest = hashlib.sha256()
    wanted: Wanted | None = None
    with _opened(batch.requests) as file, work.open_new(_REQUESTS) as target:
        lines = _requests(file, digest)
        first = next((line for _, line in lines if isinstance(line, BatchRequest)), None)
        endpoint = Endpoint.CHAT if first is None else first.endpoint
        schema = SCHEMAS[endpoint]
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            if first is not None:
                wanted = wanted_by(first, None)
                writer.write_table(pa.Table.from_pylist(list(first.rows), schema))
            while chunk := list(islice(lines, _MOST_ROWS)):
                requests = [line for _, line in chunk if isinstance(line, BatchRequest)]
                for request in requests:
                    wanted = wanted_by(request, wanted)
                rows = [row for request in requests for row in request.rows]
                writer.write_table(pa.Table.from_pylist(rows, schema))
            facts = _Facts(digest.hexdigest(), wanted)
            writer.add_key_value_metadata({_METADATA_KEY: json.dumps(asdict(facts))})
    return facts


def _job(work: Store, wanted: Wanted, model: str, overrides: Sequence[str]) -> Job:
    keys: Mapping[str, Any] = {
        "name": "import-batch",
        "input": {"path": f"{work.url}/requests", "keep": ["line", "custom_id"]},
        "model": {"source": model},
        "output": {"path": f"{work.url}/output"},
        # What gets no answer has its place in the error file.
        "max_reject_rate": 1.0,
        **wanted.job_keys,
    }
    return stored_job(yaml.safe_dump(keys), "import-batch", overrides)


def _write(
    batch: Batch, facts: _Facts, opened: OpenedOutput | None, summary: Summary | None
) -> Outcome:
    """The answer files, a line for each of the requests and in their order."""
    counts = {True: 0, False: 0}
    digest = hashlib.sha256()
    with (
        _opened(batch.requests) as file,
        answer_files(batch.answers, batch.errors) as (answered, failed),
    ):
        for line in _lines(_requests(file, digest), opened):
            is_answered = line["error"] is None
            counts[is_answered] += 1
            write_line(line, answered if is_answered else failed)
        _refuse_other(batch, facts, digest)
        if not sum(counts.values()):
            raise UserError(f"{batch.requests} holds no requests")
    return Outcome(counts[True], counts[False], summary)


def _lines(requests: _Requests, opened: OpenedOutput | None) -> Iterator[dict[str, Any]]:
    """What came of each request; those that were asked have their rows in the output, in order."""
    rows: _Rows = iter(()) if opened is None else _rows(opened)
    body = None if opened is None else body_of(opened.job.steps)
    for number, request in requests:
        if isinstance(request, RefusedLine):
            yield refused_line(number, request)
            continue
        own = list(islice(rows, len(request.rows)))
        if body is None or {row["line"] for _, row in own} != {number}:
            raise UserError(f"line {number} has no row in the output; name another --work")
        yield answered_line(request, own, body)


def _rows(opened: OpenedOutput) -> _Rows:
    names = expected_output(opened).schema.names
    for unit in opened.plan.units:
        for record, batch in batches_with_record(opened.store, unit, names):
            for row in batch.to_pylist():
                yield record, row
