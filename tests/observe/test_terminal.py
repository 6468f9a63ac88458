"""A run on a terminal of 80 columns: it shows progress only, and restores the cursor."""

import os
import re
import signal
import subprocess
import termios
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT, command
from tokenmill.errors import ExitCode

JOB = """
name: tiny
input: {{path: {input}}}
model: {{source: fake, engine: {{step_s: 0.01}}}}
prompt: {{user: "{{{{ text }}}}"}}
sampling: {{max_tokens: 8}}
output: {{path: {output}}}
"""
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job over one small shard."""
    shard = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), shard)
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(input=shard, output=tmp_path / "out"))
    return path


class Terminal:
    """A run on its own terminal; `text` is everything that it has written there."""

    def __init__(self, *arguments: str | Path) -> None:
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.process = subprocess.Popen(
            ["/usr/bin/env", "--default-signal=INT", *command(*arguments)],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, part: str) -> None:
        """Read until this was written; fail at the end of the run."""
        while part not in self.text:
            assert self._read(), self.text

    def read_to_end(self) -> int:
        """Read everything; returns the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait()

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # On Linux: no process has the terminal open any more.
            return False
        self.text += data.decode()
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """The lines that were written, without colours and cursor movements."""
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).replace("\r", "\n")
        return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.integration
def test_a_terminal_shows_the_run_and_nothing_else(job: Path) -> None:
    """Only progress and summary appear, and no line is wider than the terminal."""
    terminal = Terminal("run", job)
    assert terminal.read_to_end() == ExitCode.FINISHED, terminal.text
    names = ("tiny:", "units", "rows", "rejects", "tokens/s", "replicas", "ETA")
    names += ("this run", "input tokens", "output tokens", "output", "log", "next")
    assert [line for line in terminal.lines if not line.startswith(names)] == []
    drawn = [line for line in terminal.lines if line.startswith(names[1:7])]
    assert all(len(line) <= 80 for line in drawn)
    assert any("1 of 1" in line for line in drawn)
    assert terminal.text.rindex(SHOW_CURSOR) > terminal.text.rindex(HIDE_CURSOR)


@pytest.mark.integration
def test_a_run_that_is_stopped_during_its_start_restores_the_terminal(job: Path) -> None:
    """Ctrl-C before an engine is loaded exits with 4, says what is saved, and shows the cursor."""
    terminal = Terminal("run", job)
    terminal.read_until("starting")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.read_to_end() == ExitCode.STOPPED, terminal.text
    assert terminal.text.rindex(SHOW_CURSOR) > terminal.text.rindex(HIDE_CURSOR)
    assert "Stopped. 0 of 1 units are saved." in " ".join(terminal.lines)
