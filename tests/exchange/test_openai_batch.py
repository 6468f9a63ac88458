"""A batch file from end to end: an answer or an error for each line, whatever stops the run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import DriverDied, Quiet, ScriptedExecutor
from helpers.openai_lines import line
from helpers.stores import refusal
from tokenmill.cli import app
from tokenmill.errors import ExitCode, UserError
from tokenmill.exchange import openai_batch
from tokenmill.exchange.openai_batch import Batch, Outcome, run_batch
from tokenmill.stages.executor import Executor, RunSpec
from tokenmill.stages.in_process import InProcessExecution, InProcessExecutor
from tokenmill.storage.open import open_store
from typer.testing import CliRunner

#: Small units, so that a run has several.
UNITS = ["units.rows=2"]


def chats(count: int) -> list[bytes]:
    return [
        line(
            custom_id=f"c{at}",
            messages=[{"role": "user", "content": f"Question {at}"}],
            max_tokens=4,
        )
        for at in range(count)
    ]


def batch_of(folder: Path, lines: list[bytes], errors: str | None = "errors.jsonl") -> Batch:
    (folder / "requests.jsonl").write_bytes(b"\n".join(lines))
    own = None if errors is None else str(folder / errors)
    names = [str(folder / name) for name in ("requests.jsonl", "answers.jsonl")]
    return Batch(*names, own, str(folder / "work"))


def run(
    batch: Batch, *overrides: str, model: str = "fake", executor: Executor | None = None
) -> Outcome | None:
    here = executor or InProcessExecutor()
    return run_batch(batch, model, [*UNITS, *overrides], here, Quiet())


def written(path: str | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(text) for text in Path(path).read_text(encoding="utf-8").splitlines()]


def test_each_line_has_its_answer_or_its_error(tmp_path: Path) -> None:
    """Answers stand in the order of the lines, errors name theirs, blank lines are nothing."""
    lines = chats(5)
    lines[1:1] = [b"no json", b"", line(custom_id="bad", n=3)]
    lines.append(line(custom_id="empty", messages=[{"role": "user", "content": "x" * 30_000}]))
    batch = batch_of(tmp_path, lines)
    outcome = run(batch)
    assert outcome is not None
    assert (outcome.answered, outcome.failed) == (5, 3)
    answers, errors = written(batch.answers), written(batch.errors)
    assert [answer["custom_id"] for answer in answers] == [f"c{at}" for at in range(5)]
    assert all(answer["error"] is None for answer in answers)
    body = answers[0]["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "fake")
    assert body["usage"]["completion_tokens"] <= 4
    found = [
        (error["custom_id"], error["error"]["line"], error["error"]["code"]) for error in errors
    ]
    assert found == [
        (None, 2, "invalid_json"),
        ("bad", 4, "unsupported_parameter"),
        ("empty", 9, "prompt_too_long"),
    ]
    assert len({answer["id"] for answer in [*answers, *errors]}) == 8


def test_a_line_has_what_it_asks_for(tmp_path: Path) -> None:
    """Stops, lengths, schemas and log-probabilities are the line's own, in one run."""
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
    tops = [len(each["top_logprobs"]) for each in choices["tokens"]["logprobs"]["content"]]
    assert set(tops) == {2}
    (first, *_) = choices["chosen"]["logprobs"]["content"]
    assert first["top_logprobs"] == []
    assert bytes(first["bytes"]).decode() == first["token"]


def test_other_urls(tmp_path: Path) -> None:
    """Completions have texts; embeddings a vector for each input, and one error for all."""
    texts, vectors = tmp_path / "texts", tmp_path / "vectors"
    texts.mkdir()
    vectors.mkdir()
    batch = batch_of(texts, [line("/v1/completions", prompt="Once", max_tokens=2)])
    run(batch)
    (answer,) = written(batch.answers)
    assert answer["response"]["body"]["object"] == "text_completion"
    assert isinstance(answer["response"]["body"]["choices"][0]["text"], str)
    lines = [
        line("/v1/embeddings", str(at), input=given, dimensions=3)
        for at, given in enumerate([["a", "b", "c"], "d", ["e", ""]])
    ]
    batch = batch_of(vectors, lines)
    run(batch)
    several, one = written(batch.answers)
    data = several["response"]["body"]["data"]
    assert [entry["index"] for entry in data] == [0, 1, 2]
    assert {len(entry["embedding"]) for entry in data} == {3}
    assert several["response"]["body"]["usage"]["prompt_tokens"] == 3
    assert len(one["response"]["body"]["data"]) == 1
    (error,) = written(batch.errors)
    assert (error["custom_id"], error["error"]["code"]) == ("2", "empty_input")


@pytest.mark.parametrize("place", ["wanted_by", "answered_line"])
def test_the_same_command_goes_on_after_a_stop(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two lines, read or written, it leaves nothing half; the next call ends."""
    batch = batch_of(tmp_path, [*chats(3), b"no json"])
    own, calls = getattr(openai_batch, place), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(openai_batch, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(batch)
    monkeypatch.setattr(openai_batch, place, own)
    names = {"requests.jsonl", *(["work"] if place == "answered_line" else [])}
    assert names <= {path.name for path in tmp_path.iterdir()} <= {"requests.jsonl", "work"}
    done = run(batch)
    assert done is not None and (done.answered, done.failed) == (3, 1)
    assert [answer["custom_id"] for answer in written(batch.answers)] == ["c0", "c1", "c2"]
    assert [error["error"]["line"] for error in written(batch.errors)] == [4]
    assert run(batch) is None


def test_a_stopped_run_is_resumed(tmp_path: Path) -> None:
    """What was committed before a stop is not asked again, and no answer file is there before."""
    batch = batch_of(tmp_path, chats(5))

    def interrupted(execution: InProcessExecution, spec: RunSpec) -> Iterator[Any]:
        yield next(execution.commits(spec))
        raise DriverDied

    with pytest.raises(DriverDied):
        run(batch, executor=ScriptedExecutor(interrupted))
    assert not Path(batch.answers).exists()
    outcome = run(batch)
    assert outcome is not None and outcome.summary is not None
    assert (outcome.answered, outcome.summary.rows) == (5, 3)
    assert run(batch) is None


@pytest.mark.integration
def test_all_of_it_may_stand_in_s3(tmp_path: Path, s3_bucket: str) -> None:
    """Requests, work and answers in a bucket: the same answers as on a disk, and none twice."""
    here = batch_of(tmp_path, [*chats(3), b"no json"])
    run(here)
    root = f"s3://{s3_bucket}/batch"
    open_store(root).put_if_absent("requests.jsonl", Path(here.requests).read_bytes())
    names = [
        f"{root}/{name}" for name in ("requests.jsonl", "answers.jsonl", "errors.jsonl", "work")
    ]
    there = Batch(*names)
    run(there)
    assert run(there) is None
    store = open_store(root)
    texts = [
        [line["response"]["body"]["choices"] for line in map(json.loads, data.splitlines())]
        for data in (Path(here.answers).read_bytes(), store.read("answers.jsonl"))
    ]
    assert texts[0] == texts[1]
    assert store.read("errors.jsonl") == Path(str(here.errors)).read_bytes()


def test_what_stands_is_never_overwritten(tmp_path: Path) -> None:
    """Files of others, another file's work and another model's are refused, and stay."""
    batch = batch_of(tmp_path, chats(2))
    Path(batch.answers).write_text("mine")
    assert "is there already" in refusal(UserError, lambda: run(batch))
    assert Path(batch.answers).read_text() == "mine"
    Path(batch.answers).unlink()
    run(batch)
    Path(batch.answers).unlink()
    assert "errors.jsonl is there already" in refusal(UserError, lambda: run(batch))
    Path(str(batch.errors)).unlink()
    said = refusal(UserError, lambda: run(batch, "model.engine.output_tokens=3"))
    assert "these fields differ: model.engine" in said
    batch = batch_of(tmp_path, chats(3))
    assert "has changed" in refusal(UserError, lambda: run(batch))


def test_a_budget_is_the_users(tmp_path: Path) -> None:
    """With one, too many rejects end the run without answer files, and a larger one goes on."""
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


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    """By default what is between stands beside the answers; nothing to ask is a mistake."""
    batch = batch_of(tmp_path, [b"no json"], errors=None)
    words = ["import-batch", batch.requests, "--model", "fake", "--output", batch.answers]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert done.stdout.splitlines() == [f"{batch.answers}: 0 answers", f"{batch.answers}: 1 errors"]
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
