"""A batch file from end to end: each line gets an answer or an error, even after a stop."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest
from helpers.inprocess import DriverCrashed, Quiet, ScriptedExecutor
from helpers.openai_lines import line
from helpers.stores import refusal
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange.openai_batch import Batch, Outcome, open_file, run_batch
from tokenmill.stages.executor import Executor, RunSpec
from tokenmill.stages.in_process import InProcessExecution, InProcessExecutor
from tokenmill.storage.open import open_store
from typer.testing import CliRunner

#: Small units, so that a run has several of them.
UNITS = ["units.rows=2"]


def chats(count: int) -> list[bytes]:
    return [
        line(
            custom_id=f"c{number}",
            messages=[{"role": "user", "content": f"Question {number}"}],
            max_tokens=4,
        )
        for number in range(count)
    ]


def batch_of(folder: Path, lines: list[bytes], errors: str | None = "errors.jsonl") -> Batch:
    (folder / "requests.jsonl").write_bytes(b"\n".join(lines))
    paths = [str(folder / name) for name in ("requests.jsonl", "answers.jsonl")]
    error_path = None if errors is None else str(folder / errors)
    return Batch(*paths, error_path, str(folder / "work"))


def run(
    batch: Batch, *overrides: str, model: str = "fake", executor: Executor | None = None
) -> Outcome | None:
    return run_batch(batch, model, [*UNITS, *overrides], executor or InProcessExecutor(), Quiet())


def written(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(text) for text in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("answers", "errors", "part"),
    [
        ("same.jsonl", "./same.jsonl", "--errors"),
        ("-", None, "--output"),
        ("a.jsonl", "-", "--errors"),
    ],
)
def test_result_files_that_cannot_be_written_are_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, errors: str | None, part: str
) -> None:
    """Nothing is converted or answered."""
    monkeypatch.chdir(tmp_path)
    batch = replace(batch_of(tmp_path, chats(2)), answers=answers, errors=errors)
    assert part in refusal(UserError, lambda: run(batch))
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


def test_each_line_gets_an_answer_or_an_error(tmp_path: Path) -> None:
    """Answers are in the order of the lines, errors name their line, blank lines are skipped."""
    lines = chats(5)
    lines[1:1] = [b"no json", b"", line(custom_id="bad", n=3)]
    lines.append(line(custom_id="empty", messages=[{"role": "user", "content": "x" * 30_000}]))
    batch = batch_of(tmp_path, lines)
    outcome = run(batch)
    assert outcome is not None
    assert (outcome.answered, outcome.failed) == (5, 3)
    answers, errors = written(batch.answers), written(batch.errors)
    assert [answer["custom_id"] for answer in answers] == [f"c{number}" for number in range(5)]
    assert all(answer["error"] is None for answer in answers)
    body = answers[0]["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "fake")
    assert body["usage"]["completion_tokens"] <= 4
    assert [
        (error["custom_id"], error["error"]["line"], error["error"]["code"]) for error in errors
    ] == [
        (None, 2, "invalid_json"),
        ("bad", 4, "unsupported_parameter"),
        ("empty", 9, "prompt_too_long"),
    ]
    assert len({answer["id"] for answer in [*answers, *errors]}) == 8


def test_each_line_has_its_own_parameters(tmp_path: Path) -> None:
    """In one run, each request has its own length, schema, seed and log-probabilities."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    lines = [
        line(custom_id="plain"),
        line(custom_id="json", response_format=form),
        line(custom_id="short", max_tokens=1),
        line(custom_id="tokens", logprobs=True, top_logprobs=2, seed=1),
        line(custom_id="chosen", logprobs=True, seed=1),
    ]
    batch = batch_of(tmp_path, lines, errors=None)
    run(batch)
    choices = {
        answer["custom_id"]: answer["response"]["body"]["choices"][0]
        for answer in written(batch.answers)
    }
    assert json.loads(choices["json"]["message"]["content"]) == {"x": 0}
    assert choices["short"]["finish_reason"] == "length"
    assert choices["plain"]["logprobs"] is None
    tokens = choices["tokens"]["logprobs"]["content"]
    assert {len(token["top_logprobs"]) for token in tokens} == {2}
    (first, *_) = choices["chosen"]["logprobs"]["content"]
    assert first["top_logprobs"] == []
    assert bytes(first["bytes"]).decode() == first["token"]


def test_completions_and_embeddings(tmp_path: Path) -> None:
    """Completions return texts. Embeddings return a vector per text, or one error for all."""
    for name in ("completions", "embeddings"):
        (tmp_path / name).mkdir()
    batch = batch_of(
        tmp_path / "completions", [line("/v1/completions", prompt="Once", max_tokens=2)]
    )
    run(batch)
    (answer,) = written(batch.answers)
    assert answer["response"]["body"]["object"] == "text_completion"
    assert isinstance(answer["response"]["body"]["choices"][0]["text"], str)
    lines = [
        line("/v1/embeddings", str(number), input=texts, dimensions=3)
        for number, texts in enumerate([["a", "b", "c"], "d", ["e", ""]])
    ]
    batch = batch_of(tmp_path / "embeddings", lines)
    run(batch)
    several, one = written(batch.answers)
    data = several["response"]["body"]["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2]
    assert {len(entry["embedding"]) for entry in data} == {3}
    assert several["response"]["body"]["usage"]["prompt_tokens"] == 3
    assert len(one["response"]["body"]["data"]) == 1
    (error,) = written(batch.errors)
    assert (error["custom_id"], error["error"]["code"]) == ("2", "empty_input")
    assert "body." in error["error"]["message"] and "{%" not in error["error"]["message"]


@dataclass
class InterruptedOpener:
    """Opens the requests of a batch; Ctrl-C comes in the middle of one of the reads."""

    interrupt_at: int
    num_opened: int = 0

    @contextmanager
    def __call__(self, url: str) -> Iterator[IO[bytes]]:
        self.num_opened += 1
        with open_file(url) as file:
            yield Interrupted(file.read()) if self.num_opened == self.interrupt_at else file


class Interrupted(io.BytesIO):
    """A file that returns its first line, and is interrupted at the second."""

    def read(self, size: int | None = -1) -> bytes:
        del size
        if self.tell():
            raise KeyboardInterrupt
        return self.readline()


@pytest.mark.parametrize(
    ("interrupt_at", "names"), [(1, {"requests.jsonl"}), (2, {"requests.jsonl", "work"})]
)
def test_the_same_command_resumes_after_an_interrupt(
    tmp_path: Path, interrupt_at: int, names: set[str]
) -> None:
    """Interrupted while requests are converted or answers written, it leaves no partial file."""
    batch = batch_of(tmp_path, [*chats(3), b"no json"])
    opener = InterruptedOpener(interrupt_at)
    with pytest.raises(KeyboardInterrupt):
        run(replace(batch, open_requests=opener))
    assert opener.num_opened == interrupt_at
    assert names <= {path.name for path in tmp_path.iterdir()} <= {"requests.jsonl", "work"}
    resumed = run(batch)
    assert resumed is not None and (resumed.answered, resumed.failed) == (3, 1)
    assert [answer["custom_id"] for answer in written(batch.answers)] == ["c0", "c1", "c2"]
    assert [error["error"]["line"] for error in written(batch.errors)] == [4]
    assert run(batch) is None


def test_a_stopped_run_is_resumed(tmp_path: Path) -> None:
    """Units committed before a stop are not run again; answers are written after the last one."""
    batch = batch_of(tmp_path, chats(5))

    def interrupted(execution: InProcessExecution, spec: RunSpec) -> Iterator[Any]:
        yield next(execution.commits(spec))
        raise DriverCrashed

    with pytest.raises(DriverCrashed):
        run(batch, executor=ScriptedExecutor(interrupted))
    assert not Path(batch.answers).exists()
    outcome = run(batch)
    assert outcome is not None and outcome.summary is not None
    assert (outcome.answered, outcome.summary.rows) == (5, 3)
    assert run(batch) is None


@pytest.mark.integration
def test_all_files_can_be_in_s3(tmp_path: Path, s3_bucket: str) -> None:
    """With requests, work and answers in a bucket the answers are the same as on a disk."""
    local = batch_of(tmp_path, [*chats(3), b"no json"])
    run(local)
    root = f"s3://{s3_bucket}/batch"
    open_store(root).put_if_absent("requests.jsonl", Path(local.requests).read_bytes())
    names = [
        f"{root}/{name}" for name in ("requests.jsonl", "answers.jsonl", "errors.jsonl", "work")
    ]
    remote = Batch(*names)
    run(remote)
    assert run(remote) is None
    store = open_store(root)
    texts = [
        [line["response"]["body"]["choices"] for line in map(json.loads, data.splitlines())]
        for data in (Path(local.answers).read_bytes(), store.read("answers.jsonl"))
    ]
    assert texts[0] == texts[1]
    assert store.read("errors.jsonl") == Path(str(local.errors)).read_bytes()


def test_existing_files_are_never_overwritten(tmp_path: Path) -> None:
    """Foreign files, and the work of another batch file or model, are errors and stay."""
    batch = batch_of(tmp_path, chats(2))
    Path(batch.answers).write_text("mine")
    assert "answers.jsonl" in refusal(UserError, lambda: run(batch))
    assert Path(batch.answers).read_text() == "mine"
    Path(batch.answers).unlink()
    run(batch)
    Path(batch.answers).unlink()
    assert "errors.jsonl" in refusal(UserError, lambda: run(batch))
    Path(str(batch.errors)).unlink()
    message = refusal(UserError, lambda: run(batch, "model.engine.output_tokens=3"))
    assert "model.engine" in message
    batch = batch_of(tmp_path, chats(3))
    assert "has changed" in refusal(UserError, lambda: run(batch))


def test_a_reject_limit_is_respected(tmp_path: Path) -> None:
    """A run over the limit writes no answer file; the same command with a higher limit does."""
    lines = [
        *chats(1),
        line(custom_id="long", messages=[{"role": "user", "content": "x" * 30_000}]),
    ]
    batch = batch_of(tmp_path, lines)
    outcome = run(batch, "max_rejects=0")
    assert outcome is not None and outcome.summary is not None
    assert outcome.summary.exit_code == ExitCode.OVER_REJECT_BUDGET
    assert not Path(batch.answers).exists()
    outcome = run(batch)
    assert outcome is not None and (outcome.answered, outcome.failed) == (1, 1)


def test_the_command_prints_what_it_wrote(tmp_path: Path) -> None:
    """By default work files are next to the answers; a file without requests is an error."""
    batch = batch_of(tmp_path, [b"no json"], errors=None)
    words = ["import-batch", batch.requests, "--model", "fake", "--output", batch.answers]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert done.stdout.splitlines() == [f"{batch.answers}: 0 answers", f"{batch.answers}: 1 error"]
    assert Path(f"{batch.answers}.work").is_dir()
    assert CliRunner().invoke(app, words).exit_code == ExitCode.FINISHED
    empty = batch_of(tmp_path, [b""])
    words = ["import-batch", empty.requests, "--model", "fake", "--output", str(tmp_path / "new")]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, done.stderr) == (
        ExitCode.USER_ERROR,
        f"error: {empty.requests} holds no requests\n",
    )
    assert not (tmp_path / "new").exists()
