"""All stores: an object exists whole or not at all, and one of several writers is the first."""

import errno
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.killing import create_in_pieces, killed_at_line
from helpers.stores import contents, keys, refusal
from tokenmill.errors import NoSpace, RunFailed, TokenmillError, UserError
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.local import LocalStore
from tokenmill.storage.open import open_store

KIB = 2**10
MIB = 2**20
ODD_KEYS = (
    "data/lang=en/part.parquet",
    "data/a+b/part.parquet",
    "data/50%25/part.parquet",
    "data/%E6%BC%A2/part.parquet",
    "data/%2E%2E/part.parquet",
    "data/%00/part.parquet",
)


# The first writer wins.


@pytest.mark.parametrize("body", [b"first", b"", b"0123456789abcdef" * 4 * MIB])
def test_the_first_writer_of_a_key_wins(store: Store, root: str, body: bytes) -> None:
    """Only the first `put_if_absent` writes, whether the object is empty, small or 64 MiB."""
    assert store.put_if_absent("data/a", body) is True
    assert store.put_if_absent("data/a", b"second") is False
    assert open_store(root).put_if_absent("data/a", b"of another process") is False
    assert contents(store) == {"data/a": body}


def test_one_of_many_concurrent_writers_wins(store: Store) -> None:
    """If threads put one key at the same time, one succeeds, and the object has its bytes."""
    bodies = [bytes([65 + number]) * (64 * KIB + number) for number in range(6)]
    barrier = threading.Barrier(len(bodies))

    def attempt(body: bytes) -> bool:
        barrier.wait()
        return store.put_if_absent("data/race", body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        won = list(pool.map(attempt, bodies))
    assert sum(won) == 1
    assert contents(store) == {"data/race": bodies[won.index(True)]}


def test_replace_writes_and_overwrites(store: Store) -> None:
    """`replace` creates and overwrites an object; `put_if_absent` does not overwrite it."""
    for data in (b"a", b"a longer one", b"", b"b"):
        store.replace("folder/key", data)
        assert contents(store) == {"folder/key": data}
    assert store.put_if_absent("folder/key", b"created") is False
    assert store.read("folder/key") == b"b"


def test_a_deleted_object_is_gone_and_can_be_written_again(store: Store) -> None:
    """Deleting twice is no error, and deletes no other object."""
    store.replace("folder/key", b"a")
    store.replace("folder/key2", b"b")
    for _ in range(2):
        store.delete("folder/key")
        assert contents(store) == {"folder/key2": b"b"}
    assert store.put_if_absent("folder/key", b"again") is True


# Writing in pieces.


@pytest.mark.parametrize("pieces", [[], [b"one", b"", b"two"], [b"0123456789abcdef" * 4 * MIB]])
def test_an_object_written_in_pieces_appears_at_the_end(store: Store, pieces: list[bytes]) -> None:
    """Readers see nothing before the end, then all of it: empty, small or of many megabytes."""
    with store.open_new("data/a") as file:
        for piece in pieces:
            file.write(piece)
        assert keys(store) == []
    assert contents(store) == {"data/a": b"".join(pieces)}


def test_a_taken_name_is_not_overwritten_in_pieces(store: Store) -> None:
    """The error comes at the start, or at the end if the object was written in between."""
    store.put_if_absent("data/a", b"first")

    def write(key: str, meanwhile: Callable[[], object]) -> None:
        with store.open_new(key) as file:
            file.write(b"late")
            meanwhile()

    for key in ("data/a", "data/b"):
        message = refusal(
            UserError, lambda key=key: write(key, lambda: store.put_if_absent(key, b"first"))
        )
        assert message.endswith(f"{key} already exists; remove it or choose another name")
    assert contents(store) == {"data/a": b"first", "data/b": b"first"}


@pytest.mark.parametrize("piece", [b"half", b"0123456789abcdef" * 4 * MIB])
def test_an_error_between_two_pieces_leaves_nothing(store: Store, root: str, piece: bytes) -> None:
    """The error is raised, and neither the object nor a part of it remains."""

    def write() -> None:
        with store.open_new("data/a") as file:
            file.write(piece)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert keys(store) == []
    if isinstance(store, LocalStore):
        assert list(Path(root, "data").iterdir()) == []


def test_a_kill_between_two_pieces_leaves_all_or_nothing(tmp_path: Path) -> None:
    """Wherever the process is killed, the object is whole or missing, and can then be written."""
    number, killed, seen = 0, True, []
    while killed:
        store = open_store(str(tmp_path / str(number)))
        killed = killed_at_line(number, create_in_pieces, store, "data/a", [b"one", b"two"])
        seen.append(contents(store))
        assert store.put_if_absent("data/a", b"another") is (seen[-1] == {})
        number += 1
    assert seen == sorted(seen, key=len)
    assert seen[-1] == {"data/a": b"onetwo"}


# Reading.


def test_a_reader_never_sees_a_part_of_a_replaced_object(store: Store) -> None:
    """While an object is replaced again and again, every read returns one version whole."""
    versions = {bytes([65 + number]) * (256 * KIB + number) for number in range(3)}
    store.replace("key", next(iter(versions)))
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for version in versions:
                store.replace("key", version)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        try:
            assert all(store.read("key") in versions for _ in range(20))
        finally:
            stop.set()
        writer.result()


def test_an_open_object_can_be_read_anywhere(store: Store) -> None:
    """An open object returns the bytes at any position, and knows its size."""
    store.put_if_absent("data/a", bytes(range(256)))
    with store.open("data/a") as file:
        assert file.seek(0, os.SEEK_END) == 256
        file.seek(100)
        assert file.read(3) == bytes([100, 101, 102])
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"\xff"


def test_the_ends_of_listed_objects_are_read(store: Store) -> None:
    """`read_ends` returns the last bytes of each object, or all of a shorter one, in order."""
    for key in ODD_KEYS:
        store.put_if_absent(key, key.encode() + b"0123456789")
    store.put_if_absent("empty", b"")
    store.put_if_absent("short", b"89")
    items = [*store.list()]
    ends = dict(zip((item.key for item in items), store.read_ends(items, 4), strict=True))
    assert ends == dict.fromkeys(ODD_KEYS, b"6789") | {"empty": b"", "short": b"89"}
    assert list(store.read_ends(items[:1], 99)) == [items[0].key.encode() + b"0123456789"]
    assert list(store.read_ends([], 4)) == []


@pytest.mark.parametrize("data", [b"54321", b"1", b"123456"], ids=["other", "shorter", "longer"])
def test_the_end_of_an_object_that_has_changed_is_refused(store: Store, data: bytes) -> None:
    """The error names an object that was replaced after the listing, with any new size."""
    for key in ("a", "b"):
        store.put_if_absent(key, b"12345")
    items = [*store.list()]
    store.replace("b", data)
    message = refusal(RunFailed, lambda: store.read_ends(items, 4))
    assert f"{store.url}/b: changed while it was read" in message


def test_the_end_of_a_deleted_object_is_refused(store: Store) -> None:
    """The error names the object that was deleted after the listing."""
    store.put_if_absent("a", b"1")
    items = [*store.list(), ObjectInfo("b", 1, "v1")]
    message = refusal(RunFailed, lambda: store.read_ends(items, 4))
    assert f"{store.url}/b: has been deleted" in message


@pytest.mark.parametrize("operation", ["info", "read", "open"])
def test_a_missing_object_is_file_not_found(store: Store, operation: str) -> None:
    """An object that does not exist raises FileNotFoundError, whatever its name is."""
    for key in ("missing", "data/missing", "data/bucket=3/part.parquet"):
        with pytest.raises(FileNotFoundError):
            getattr(store, operation)(key)
        store.put_if_absent("data/other", b"")


def test_a_folder_is_not_an_object(store: Store) -> None:
    """A folder has no info. Spark writes folders named like Parquet files."""
    store.put_if_absent("corpus.parquet/part-0.parquet", b"1")
    with pytest.raises(FileNotFoundError):
        store.info("corpus.parquet")


def test_info_has_the_size_and_a_version_that_changes(store: Store, root: str) -> None:
    """`info` and `list` agree on size and version, and see another store's write at once."""
    store.put_if_absent("data/a", b"12345")
    if isinstance(store, LocalStore):
        # Two writes within one tick of the kernel's clock would have the same time.
        os.utime(Path(root, "data/a"), ns=(0, 0))
    first = store.info("data/a")
    assert (first.key, first.size) == ("data/a", 5)
    assert list(store.list()) == [first] == [store.info("data/a")]
    open_store(root).replace("data/a", b"54321")
    second = store.info("data/a")
    assert second.size == first.size
    assert second.version != first.version
    assert list(store.list()) == [second]


# Listing.


def test_an_empty_store_lists_nothing(store: Store) -> None:
    """A root where nothing was ever written lists nothing, with any prefix."""
    assert keys(store) == keys(store, "data") == []


def test_a_prefix_is_a_folder(store: Store) -> None:
    """A listing has the objects in the folder at any depth, not those with a longer name."""
    for key in ("data/a", "data/b/c/d", "data-2/e", "data2/f", "database", "other/data/g"):
        store.put_if_absent(key, b"")
    assert keys(store, "data") == ["data/a", "data/b/c/d"]
    assert keys(store, "data/b") == ["data/b/c/d"]
    assert len(keys(store)) == 6


def test_a_store_ends_at_its_root(root: str) -> None:
    """A store sees the objects below its root, not those of a root with a longer name."""
    open_store(f"{root}/run").put_if_absent("a", b"")
    open_store(f"{root}/run-2").put_if_absent("b", b"")
    assert keys(open_store(f"{root}/run")) == ["a"]
    assert keys(open_store(f"{root}/run/")) == ["a"]
    assert keys(open_store(root)) == ["run-2/b", "run/a"]


def test_a_listing_is_in_the_order_of_the_keys(store: Store) -> None:
    """Keys are sorted, also if one folder's name is the start of another's."""
    ordered = ["a-b/y", "a-c", "a.d", "a/b-c", "a/b/z", "a/z", "a0"]
    for key in reversed(ordered):
        store.put_if_absent(key, b"")
    assert keys(store) == ordered


def test_keys_may_have_all_characters_of_unit_keys(store: Store) -> None:
    """Every operation keeps percent signs, equals signs and pluses in keys unchanged."""
    for key in ODD_KEYS:
        assert store.put_if_absent(key, key.encode()) is True
        assert store.put_if_absent(key, b"") is False
        assert store.info(key).key == key
    assert contents(store) == {key: key.encode() for key in ODD_KEYS}


# URLs and processes.


@pytest.mark.parametrize("url", ["gs://bucket/out", "https://host/out", "hdfs://host/out"])
def test_other_schemes_are_refused(url: str) -> None:
    """The URL of another kind of store is a UserError that names it and what can be used."""
    message = refusal(UserError, lambda: open_store(url))
    assert url in message and "s3://" in message


@pytest.mark.parametrize("url", ["s3://", "s3:///out"])
def test_an_s3_url_must_have_a_bucket(url: str) -> None:
    """An S3 URL without a bucket is a UserError that names it."""
    assert url in refusal(UserError, lambda: open_store(url))


def test_a_folder_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a file URL, a relative path and one in the home folder are the same store."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for url in (f"{tmp_path}/out", f"file://{tmp_path}/out", "out", "./out/", "~/out"):
        assert open_store(url).url == f"{tmp_path}/out"


def test_a_store_can_be_pickled(store: Store) -> None:
    """A pickled store, connected or not, reads and writes the same objects."""
    fresh = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert fresh.put_if_absent("data/a", b"1") is True
    used = pickle.loads(pickle.dumps(fresh))  # noqa: S301
    assert used.put_if_absent("data/a", b"2") is False
    assert used.url == store.url
    assert contents(used) == contents(store) == {"data/a": b"1"}


# Local folders.


@pytest.mark.parametrize("operation", ["put_if_absent", "replace"])
@pytest.mark.parametrize("before", [None, b"before"], ids=["missing", "present"])
def test_a_kill_at_any_line_leaves_all_or_nothing(
    tmp_path: Path, operation: str, before: bytes | None
) -> None:
    """Wherever a writing process is killed, readers see the new object or the one before, whole.

    Killed processes leave temporary files, which are not listed and disturb no other writer.
    """
    data = b"new" * MIB
    number, killed, last_seen, left_behind = 0, True, None, 0
    while killed:
        store = open_store(str(tmp_path / str(number)))
        if before is not None:
            store.put_if_absent("data/a", before)
        killed = killed_at_line(number, getattr(store, operation), "data/a", data)
        last_seen = contents(store).get("data/a")
        assert last_seen in (before, data), number
        left_behind += sum(path.name.startswith(".") for path in tmp_path.glob("*/data/*"))
        assert store.put_if_absent("data/a", data) is (last_seen is None)
        store.replace("data/a", b"again")
        assert contents(store) == {"data/a": b"again"}
        number += 1
    assert last_seen == (before if before and operation == "put_if_absent" else data)
    assert left_behind > 0


def test_a_finished_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """Writers delete their temporary files, also a writer that was not the first."""
    store = open_store(str(tmp_path))
    store.put_if_absent("a", b"1")
    store.put_if_absent("a", b"2")
    store.replace("a", b"3")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def failing(number: int) -> Callable[..., None]:
    """A function that fails like a system call with this error number."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("operation", "failure", "kind"),
    [
        ("put_if_absent", ("makedirs", errno.EACCES), UserError),
        ("put_if_absent", ("makedirs", errno.EROFS), UserError),
        ("put_if_absent", ("fsync", errno.ENOSPC), NoSpace),
        ("put_if_absent", ("fsync", errno.EDQUOT), NoSpace),
        ("put_if_absent", ("fsync", errno.EIO), RunFailed),
        ("put_if_absent", ("link", errno.EACCES), UserError),
        ("put_if_absent", ("link", errno.ENOSPC), NoSpace),
        # A file system without hard links.
        ("put_if_absent", ("link", errno.EPERM), UserError),
        ("put_if_absent", ("link", errno.ENOTSUP), UserError),
        ("replace", ("fsync", errno.ENOSPC), NoSpace),
        ("replace", ("replace", errno.EACCES), UserError),
        ("replace", ("replace", errno.EIO), RunFailed),
    ],
)
def test_a_failing_disk_keeps_the_objects(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    failure: tuple[str, int],
    kind: type[TokenmillError],
) -> None:
    """The error names the object, no file is left, and the write works once the disk does."""
    call, number = failure
    store = open_store(str(tmp_path))
    store.put_if_absent("data/old", b"1")
    key = "data/a" if operation == "put_if_absent" else "data/old"
    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing(number))
        message = refusal(kind, lambda: getattr(store, operation)(key, b"2"))
    assert str(tmp_path / key) in message
    assert ("hard links" in message) is (number in {errno.EPERM, errno.ENOTSUP})
    assert os.listdir(tmp_path / "data") == ["old"]
    assert store.read("data/old") == b"1"
    getattr(store, operation)(key, b"2")
    assert store.read(key) == b"2"


@pytest.mark.parametrize("key", ["a", "data/a"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, key: str) -> None:
    """A root that is a file, or below one, is a UserError that names the path."""
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    for operation in (
        lambda: store.read(key),
        lambda: store.put_if_absent(key, b""),
        lambda: store.replace(key, b""),
        lambda: list(store.list()),
    ):
        assert str(tmp_path / "file") in refusal(UserError, operation)
