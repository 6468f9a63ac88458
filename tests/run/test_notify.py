"""Who is told how a run ended, and what happens where that fails."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import Quiet, ScriptedExecutor, job_over, write_corpus
from tokenmill.errors import ExitCode, RunFailed
from tokenmill.job.job import Job
from tokenmill.job.sections import Notify
from tokenmill.run.notify import notify
from tokenmill.run.run import run_job
from tokenmill.stages.executor import RunSpec
from tokenmill.stages.in_process import InProcessExecutor

KEEP = (sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())")


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A server on loopback: its URL, and what was posted to it."""
    posted: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/a-secret", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def job_that_tells(tmp_path: Path, **told: Any) -> Job:
    corpus = write_corpus(tmp_path / "corpus")
    return Job.model_validate(job_over(corpus, tmp_path / "out", notify=told))


def test_a_command_and_a_webhook_get_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same that stands in the output; the URL comes from the environment, and stays there."""
    with webhook() as (url, posted):
        monkeypatch.setenv("NIGHT_HOOK", url)
        kept = tmp_path / "kept.json"
        job = job_that_tells(tmp_path, command=[*KEEP, str(kept)], webhook="NIGHT_HOOK")
        run_job(job, InProcessExecutor(), Quiet())
    (written,) = (tmp_path / "out" / "_tokenmill" / "runs").glob("*/summary.json")
    summary = json.loads(written.read_text())
    assert summary["exit_code"] == ExitCode.FINISHED and summary["error"] is None
    assert json.loads(kept.read_text()) == summary == posted[0]
    stored = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"a-secret" in data for data in stored)


def test_a_run_that_fails_tells_why(tmp_path: Path) -> None:
    """With its exit code and the reason, before it ends."""

    def failing(_execution: object, _spec: RunSpec) -> Iterator[Any]:
        raise RunFailed("the cluster is gone")
        yield

    kept = tmp_path / "kept.json"
    job = job_that_tells(tmp_path, command=[*KEEP, str(kept)])
    with pytest.raises(RunFailed):
        run_job(job, ScriptedExecutor(failing), Quiet())
    summary = json.loads(kept.read_text())
    assert summary["exit_code"] == ExitCode.FAILED
    assert "the cluster is gone" in summary["error"]


def test_who_cannot_be_told_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in a line each; the output is finished all the same."""
    monkeypatch.delenv("NIGHT_HOOK", raising=False)
    interface = Quiet()
    job = job_that_tells(tmp_path, command=["no-such-program"], webhook="NIGHT_HOOK")
    summary = run_job(job, InProcessExecutor(), interface)
    assert summary is not None and summary.exit_code == ExitCode.FINISHED
    assert (tmp_path / "out" / "_SUCCESS").exists()
    told = [line for line in interface.lines if line.startswith("notify.")]
    assert len(told) == 2
    assert "no-such-program" in told[0] and "NIGHT_HOOK holds no URL" in told[1]


def test_what_others_answer_is_said_without_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook's URL is a secret; a command's complaint is not."""
    with webhook(500) as (url, posted):
        monkeypatch.setenv("NIGHT_HOOK", url)
        (line,) = notify(Notify(webhook="NIGHT_HOOK"), "{}")
    assert posted == [{}]
    assert "500" in line and "a-secret" not in line
    complaining = (sys.executable, "-c", "import sys; sys.exit('no such\\nroom')")
    (line,) = notify(Notify(command=complaining), "{}")
    assert line.endswith("ended with 1: no such room")


@pytest.mark.parametrize("told", [{}, {"webhook": "https://hooks.example/secret"}])
def test_a_url_in_the_job_is_refused(told: dict[str, str]) -> None:
    """Jobs are stored with their outputs; and one of the two must be there."""
    with pytest.raises(ValueError, match="webhook"):
        Notify(**told)
