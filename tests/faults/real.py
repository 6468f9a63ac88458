"""The real command over real Ray, and the processes behind it."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from helpers.command import start_tokenmill

#: What Ray calls the processes of a run.
REPLICA = "ReplicaActor"
RENDER = "render_units"
COMMIT = "write_units"
BOARD = "ray::Coordinator"
_FOUND_WITHIN_S = 60.0


def processes(driver: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """The driver's descendants with this word in their title."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if title in " ".join(child.cmdline()):
                    found.append(child)
    return found


def kill_one(driver: subprocess.Popen[str], title: str) -> bool:
    """Kill -9 a process of the run as soon as there is one; False if the run ended before."""
    end = time.monotonic() + _FOUND_WITHIN_S
    while driver.poll() is None and time.monotonic() < end:
        for process in processes(driver, title):
            with suppress(psutil.NoSuchProcess):
                process.kill()
                return True
        with suppress(subprocess.TimeoutExpired):
            driver.wait(0.02)
    return False


def whole_tree(driver: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the driver and all its descendants, as if to their machine."""
    root = psutil.Process(driver.pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def start(
    job: Path,
    source: str | Path,
    output: str | Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    return start_tokenmill("run", job, "--input", source, "--output", output, *arguments, env=env)


def summaries(output: Path) -> Iterator[dict[str, Any]]:
    """What the runs on an output have left of themselves."""
    for path in sorted(output.glob("_tokenmill/runs/*/summary.json")):
        yield json.loads(path.read_text())
