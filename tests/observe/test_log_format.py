"""The log of a run for programs: JSON lines from start to end."""

import json
from pathlib import Path

import pytest
import yaml
from helpers.inprocess import invoke, job_over, write_corpus
from tokenmill.commands.terminal import JsonTerminal, LogFormat, interface_of
from tokenmill.errors import ExitCode
from tokenmill.job.job import Job
from tokenmill.run.run import run_job
from tokenmill.stages.in_process import InProcessExecutor


def test_each_line_is_an_event_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Remarks, progress and commits, with run, unit and replica, as in events.jsonl."""
    job = Job.model_validate(job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out"))
    interface = interface_of(LogFormat.JSON)
    assert isinstance(interface, JsonTerminal)
    summary = run_job(job, InProcessExecutor(), interface)
    assert summary is not None
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "remark" and names[-1] == "finish"
    assert {"start", "progress", "commit"} <= set(names)
    since_start = events[names.index("start") :]
    assert {event["run"] for event in since_start} == {summary.run}
    commits = [event for event in events if event["event"] == "commit"]
    assert all(event["unit"] and event["replica"] for event in commits)
    (file,) = (tmp_path / "out" / "_tokenmill" / "runs").glob("*/events.jsonl")
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    assert stored == [event for event in events if event["event"] not in {"remark", "progress"}]


def test_the_command_prints_only_json(tmp_path: Path) -> None:
    """The summary goes to stdout and an error to stderr; an option or a variable asks for it."""
    keys = job_over(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(keys))
    done = invoke("run", file, "--log-format", "json")
    assert done.exit_code == ExitCode.FINISHED
    assert json.loads(done.stdout)["exit_code"] == ExitCode.FINISHED
    failed = invoke("run", tmp_path / "none.yaml", env={"TOKENMILL_LOG_FORMAT": "json"})
    assert failed.exit_code == ExitCode.USER_ERROR
    (error,) = map(json.loads, failed.stderr.splitlines())
    assert error["event"] == "error" and "none.yaml" in error["message"]
