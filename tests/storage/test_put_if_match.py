"""`put_if_match`: an object is replaced only if it still has the version that was read."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier

import pytest
from helpers.killing import killed_at_line
from helpers.stores import Fault, StubS3, contents, refusal
from tokenmill.errors import NoSpace
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store

KEY = "data/a"


def test_an_object_with_this_version_is_replaced(store: Store) -> None:
    """With its current version, an object can be replaced repeatedly, by any number of bytes."""
    store.put_if_absent(KEY, b"0")
    for data in (b"a longer one", b"", b"1"):
        assert store.put_if_match(KEY, data, store.info(KEY).version) is True
        assert contents(store) == {KEY: data}


def test_an_object_with_another_version_is_kept(store: Store, root: str) -> None:
    """With an old version nothing is written, and the result is False."""
    store.put_if_absent(KEY, b"0")
    stale = store.info(KEY).version
    assert open_store(root).put_if_match(KEY, b"1", stale) is True
    assert store.put_if_match(KEY, b"2", stale) is False
    assert contents(store) == {KEY: b"1"}


def test_a_missing_object_is_not_created(store: Store) -> None:
    """Without an object nothing is written; the store returns False or raises an error."""
    store.put_if_absent("data/other", b"")
    # AWS, disks and memory raise an error; SeaweedFS answers that the version differs.
    with suppress(FileNotFoundError):
        assert store.put_if_match(KEY, b"1", "1") is False
    assert contents(store) == {"data/other": b""}


def test_one_of_many_concurrent_writers_wins(store: Store, root: str) -> None:
    """If threads replace one version at the same time, exactly one succeeds."""
    store.put_if_absent(KEY, b"0")
    version = store.info(KEY).version
    bodies = [f"writer {number}".encode() for number in range(5)]
    barrier = Barrier(len(bodies))

    def race(body: bytes) -> bool:
        other = open_store(root)
        barrier.wait()
        return other.put_if_match(KEY, body, version)

    with ThreadPoolExecutor(len(bodies)) as pool:
        won = list(pool.map(race, bodies))
    assert sum(won) == 1
    assert contents(store) == {KEY: bodies[won.index(True)]}


def test_writes_within_one_tick_of_the_clock_have_different_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the system's clock does not advance, an object's versions still differ."""

    def stop_clock(file: int) -> None:
        os.utime(file, ns=(0, 0))

    monkeypatch.setattr(os, "fsync", stop_clock)
    store = open_store(str(tmp_path))
    store.put_if_absent(KEY, b"0")
    versions = [store.info(KEY).version]
    for number in range(5):
        assert store.put_if_match(KEY, str(number).encode(), versions[-1])
        versions.append(store.info(KEY).version)
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize("fault", Fault)
def test_put_if_match_survives_a_network_fault(stub_s3: StubS3, fault: Fault) -> None:
    """A write that is refused or cut off is retried, and happens once.

    After a lost reply, the retry finds the version of the first try and returns False.
    """
    stub_s3.store.put_if_absent(KEY, b"0")
    version = stub_s3.store.info(KEY).version
    stub_s3.faults.append(fault)
    was_replaced = stub_s3.store.put_if_match(KEY, b"1", version)
    assert was_replaced is (fault is not Fault.LOST_REPLY)
    assert stub_s3.store.read(KEY) == b"1"


def test_a_kill_at_any_line_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Wherever a writing process is killed, the object is whole, and the next writer succeeds.

    The lock of a killed process is free.
    """
    number, killed, seen = 0, True, []
    while killed:
        store = open_store(str(tmp_path / str(number)))
        store.put_if_absent(KEY, b"old")
        version = store.info(KEY).version
        killed = killed_at_line(number, store.put_if_match, KEY, b"new", version)
        seen.append(store.read(KEY))
        assert store.put_if_match(KEY, b"late", version) is (seen[-1] == b"old")
        assert store.put_if_match(KEY, b"next", store.info(KEY).version) is True
        assert contents(store) == {KEY: b"next"}
        number += 1
    # After the first kill that comes too late, all others do.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {b"old", b"new"}


def test_a_full_disk_keeps_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the object, which is kept."""
    store = open_store(str(tmp_path))
    store.put_if_absent(KEY, b"old")
    version = store.info(KEY).version

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert str(tmp_path / KEY) in refusal(
            NoSpace, lambda: store.put_if_match(KEY, b"1", version)
        )
    assert contents(store) == {KEY: b"old"}
    assert store.put_if_match(KEY, b"1", version) is True
