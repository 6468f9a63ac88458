"""Notifications of a run's end, and what happens if they fail."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.http_server import QuietHandler, serving
from helpers.inprocess import Quiet, ScriptedExecutor, job_over, write_corpus
from tokenmill.errors import ExitCode, OverBudget, RunFailed, UserError
from tokenmill.job.job import Job
from tokenmill.job.sections import Notify
from tokenmill.run.notify import notify
from tokenmill.run.run import run_job
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.in_process import InProcessExecutor

KEEP = (sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())")


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A server on loopback; yields its URL and a list of what was posted to it."""
    posted: list[Any] = []

    class Hook(QuietHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

    with serving(Hook) as url:
        yield f"{url}/hook/a-secret", posted


def notifying_job(tmp_path: Path, **settings: Any) -> Job:
    corpus = write_corpus(tmp_path / "corpus")
    return Job.model_validate(job_over(corpus, tmp_path / "out", notify=settings))


def test_a_command_and_a_webhook_get_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get what is stored in the output; the URL is in the environment only."""
    with webhook() as (url, posted):
        monkeypatch.setenv("NIGHT_HOOK", url)
        kept = tmp_path / "kept.json"
        job = notifying_job(tmp_path, command=[*KEEP, str(kept)], webhook="NIGHT_HOOK")
        run_job(job, InProcessExecutor(), Quiet())
    (written,) = (tmp_path / "out" / "_tokenmill" / "runs").glob("*/summary.json")
    summary = json.loads(written.read_text())
    assert summary["exit_code"] == ExitCode.FINISHED and summary["error"] is None
    assert json.loads(kept.read_text()) == summary == posted[0]
    stored = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"a-secret" in data for data in stored)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (RunFailed("the cluster is gone"), ExitCode.FAILED),
        (UserError("the port is taken"), ExitCode.USER_ERROR),
        (OverBudget("too many rejects"), ExitCode.OVER_REJECT_BUDGET),
        (ZeroDivisionError("a bug"), ExitCode.FAILED),
        (KeyboardInterrupt("Ctrl-C"), ExitCode.STOPPED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_failed_run_notifies_too(
    tmp_path: Path, error: BaseException, exit_code: ExitCode
) -> None:
    """The summary has the exit code of the command and the reason."""

    def failing(_execution: object, _spec: RunSpec) -> Iterator[Any]:
        raise error
        yield

    kept = tmp_path / "kept.json"
    job = notifying_job(tmp_path, command=[*KEEP, str(kept)])
    with pytest.raises(type(error)):
        run_job(job, ScriptedExecutor(failing), Quiet())
    summary = json.loads(kept.read_text())
    assert summary["exit_code"] == exit_code
    assert str(error) in summary["error"]


def test_a_failed_notification_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is reported in one line, and the output is finished."""
    monkeypatch.delenv("NIGHT_HOOK", raising=False)
    interface = Quiet()
    job = notifying_job(tmp_path, command=["no-such-program"], webhook="NIGHT_HOOK")
    summary = run_job(job, InProcessExecutor(), interface)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert (tmp_path / "out" / "_SUCCESS").exists()
    command, hook = [line for line in interface.lines if line.startswith("notify.")]
    assert "no-such-program" in command
    assert "NIGHT_HOOK is not set" in hook


def test_a_failure_is_reported_without_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL of a webhook is a secret; the error output of a command is not."""
    with webhook(500) as (url, posted):
        monkeypatch.setenv("NIGHT_HOOK", url)
        (line,) = notify(Notify(webhook="NIGHT_HOOK"), "{}")
    assert posted == [{}]
    assert "500" in line and "a-secret" not in line
    failing = (sys.executable, "-c", "import sys; sys.exit('no such\\nroom')")
    (line,) = notify(Notify(command=failing), "{}")
    assert line.endswith("exited with 1: no such room")


@pytest.mark.parametrize("settings", [{}, {"webhook": "https://hooks.example/secret"}])
def test_a_url_in_the_job_is_refused(settings: dict[str, str]) -> None:
    """Jobs are stored with their outputs. A command or a webhook must be set."""
    with pytest.raises(ValueError, match="webhook"):
        Notify(**settings)
