"""Exchange: an object gives way to another one only as long as it is the one that was read."""

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


def test_an_object_is_exchanged_for_another(store: Store) -> None:
    """With its present version an object takes other bytes, longer or shorter, again and again."""
    store.put_if_absent(KEY, b"0")
    for data in (b"a longer one", b"", b"1"):
        assert store.put_if_match(KEY, data, store.info(KEY).version) is True
        assert contents(store) == {KEY: data}


def test_an_object_that_has_moved_on_stays_as_it_is(store: Store, root: str) -> None:
    """With a version that stands no longer nothing is written, and the caller is told."""
    store.put_if_absent(KEY, b"0")
    stale = store.info(KEY).version
    assert open_store(root).put_if_match(KEY, b"1", stale) is True
    assert store.put_if_match(KEY, b"2", stale) is False
    assert contents(store) == {KEY: b"1"}


def test_an_object_that_is_gone_is_not_made_anew(store: Store) -> None:
    """Without an object there is nothing to exchange, which is told in the store's own way."""
    store.put_if_absent("data/other", b"")
    # AWS and a disk say that it is missing, SeaweedFS that its version is not this one.
    with suppress(FileNotFoundError):
        assert store.put_if_match(KEY, b"1", "1") is False
    assert contents(store) == {"data/other": b""}


def test_one_of_many_exchanges_of_a_version_wins(store: Store, root: str) -> None:
    """Of threads that exchange one version at once exactly one is told that it did, and did."""
    store.put_if_absent(KEY, b"0")
    version = store.info(KEY).version
    bodies = [f"writer {number}".encode() for number in range(5)]
    together = Barrier(len(bodies))

    def race(body: bytes) -> bool:
        other = open_store(root)
        together.wait()
        return other.put_if_match(KEY, body, version)

    with ThreadPoolExecutor(len(bodies)) as pool:
        won = list(pool.map(race, bodies))
    assert sum(won) == 1
    assert contents(store) == {KEY: bodies[won.index(True)]}


def test_exchanges_within_one_tick_of_the_clock_differ_in_their_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's clock stands still, no two of an object's versions are the same."""

    def stand_still(file: int) -> None:
        os.utime(file, ns=(0, 0))

    monkeypatch.setattr(os, "fsync", stand_still)
    store = open_store(str(tmp_path))
    store.put_if_absent(KEY, b"0")
    versions = [store.info(KEY).version]
    for number in range(5):
        assert store.put_if_match(KEY, str(number).encode(), versions[-1])
        versions.append(store.info(KEY).version)
    assert len(set(versions)) == len(versions)


@pytest.mark.parametrize("fault", Fault)
def test_an_exchange_outlives_a_fault_of_the_network(stub_s3: StubS3, fault: Fault) -> None:
    """An exchange that is refused or cut is tried again, and is made once.

    After a lost reply the second try finds what the first one made, and so has another version.
    """
    stub_s3.store.put_if_absent(KEY, b"0")
    version = stub_s3.store.info(KEY).version
    stub_s3.faults.append(fault)
    made = stub_s3.store.put_if_match(KEY, b"1", version)
    assert made is (fault is not Fault.LOST_REPLY)
    assert stub_s3.store.read(KEY) == b"1"


def test_a_kill_at_any_line_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Wherever an exchanging process is killed, the object is whole, and the next one goes on.

    A lock that the dead process held is free again.
    """
    number, killed, seen = 0, True, []
    while killed:
        store = open_store(str(tmp_path / str(number)))
        store.put_if_absent(KEY, b"old")
        version = store.info(KEY).version
        killed = killed_at_line(number, store.put_if_match, KEY, b"new", version)
        seen.append(store.read(KEY))
        assert store.put_if_match(KEY, b"dead", version) is (seen[-1] == b"old")
        assert store.put_if_match(KEY, b"next", store.info(KEY).version) is True
        assert contents(store) == {KEY: b"next"}
        number += 1
    # Once a kill comes too late to undo the exchange, so does every later one.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {b"old", b"new"}


def test_a_full_disk_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange for which there is no room names the object, which stays."""
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
