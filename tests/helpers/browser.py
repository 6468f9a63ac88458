"""Control a real browser without a library, with Chromium's DevTools protocol over pipes."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 60


def chromium() -> str | None:
    """The path of a Chromium on this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """A page in a browser, and the errors that it logged."""

    reader: BinaryIO
    writer: BinaryIO
    session: str = ""
    errors: list[str] = field(default_factory=list)
    _number: int = 0

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, page: Path) -> None:
        """Load a file and wait until its plots are drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=page.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            continue
        self.value("Promise.all(drawn).then(() => new Promise(requestAnimationFrame))")

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def pdf(self) -> bytes:
        """Print the page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while not data.endswith(b"\0"):
            byte = self.reader.read(1)
            assert byte, "the browser ended"
            data += byte
        message: dict[str, Any] = json.loads(data[:-1])
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        is_error = (
            method == "Runtime.exceptionThrown"
            or (method == "Log.entryAdded" and params["entry"]["level"] == "error")
            or (method == "Runtime.consoleAPICalled" and params["type"] in {"error", "assert"})
        )
        if is_error:
            self.errors.append(json.dumps(params))


@contextmanager
def browser(executable: str, profile: Path) -> Iterator[Tab]:
    """A headless browser with an empty profile, closed when the context ends."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The browser expects the protocol's pipes as file descriptors 3 and 4.
    script = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    options = ["--headless", "--disable-gpu", "--no-sandbox", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        [
            "/usr/bin/env",
            "bash",
            "-c",
            script,
            "bash",
            executable,
            *options,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(from_read, "rb") as reader, os.fdopen(to_write, "wb") as writer:
        tab = Tab(reader, writer)
        try:
            yield tab
        finally:
            tab.session = ""
            tab.call("Browser.close")
            process.wait(_TIMEOUT_S)
