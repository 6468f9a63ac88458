"""The memory store: which stores share objects, and what another process can open."""

import multiprocessing
import pickle

import pytest
from helpers.stores import contents, refusal
from tokenmill.errors import UserError
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store


def test_stores_of_one_name_share_their_objects(memory_store: Store) -> None:
    """A name is one set of objects in the whole process; other names have their own."""
    memory_store.put_if_absent("out/a", b"1")
    assert contents(open_store(memory_store.url)) == {"out/a": b"1"}
    assert contents(open_store(f"{memory_store.url}/out/")) == {"a": b"1"}
    assert contents(open_store(f"{memory_store.url}-2")) == {}


def test_an_object_at_the_root_itself_is_listed_with_an_empty_key(memory_store: Store) -> None:
    """As in S3, the URL of an object does not look empty."""
    memory_store.put_if_absent("file", b"1")
    assert contents(open_store(f"{memory_store.url}/file")) == {"": b"1"}


def test_no_two_writes_have_the_same_version(memory_store: Store) -> None:
    """A version is never used again, even if the object was deleted or has the same bytes."""
    versions = []
    for _ in range(3):
        memory_store.replace("a", b"1")
        versions.append(memory_store.info("a").version)
        memory_store.put_if_match("a", b"1", versions[-1])
        versions.append(memory_store.info("a").version)
        memory_store.delete("a")
    assert len(set(versions)) == len(versions)


def test_what_a_caller_does_with_its_buffer_changes_no_object(memory_store: Store) -> None:
    """The store keeps a copy of data that the caller may change."""
    data = bytearray(b"1")
    memory_store.replace("a", data)
    data[0] = 0
    with memory_store.open("a") as file:
        file.write(b"2")
    assert memory_store.read("a") == b"1"


def _message_of_unpickling(pickled: bytes) -> str:
    return refusal(UserError, lambda: pickle.loads(pickled))  # noqa: S301


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_cannot_open_a_pickled_store(memory_store: Store, method: str) -> None:
    """The error names the URL: an empty store there would look like an empty output."""
    with multiprocessing.get_context(method).Pool(1) as pool:
        message = pool.apply(_message_of_unpickling, [pickle.dumps(memory_store)])
    assert memory_store.url in message and "memory of the process" in message


@pytest.mark.parametrize("url", ["memory://", "memory:///out"])
def test_a_memory_url_has_a_name(url: str) -> None:
    """A memory URL without a name is a UserError that quotes it."""
    assert url in refusal(UserError, lambda: open_store(url))
