"""The memory store alone: which stores share objects, and what another process sees."""

import multiprocessing
import pickle
import uuid

import pytest
from helpers.stores import contents, refusal
from tokenmill.errors import UserError
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store


@pytest.fixture
def memory() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def test_stores_of_one_name_share_their_objects(memory: Store) -> None:
    """A name is one set of objects in the whole process; other names have their own."""
    memory.put_if_absent("out/a", b"1")
    assert contents(open_store(memory.url)) == {"out/a": b"1"}
    assert contents(open_store(f"{memory.url}/out/")) == {"a": b"1"}
    assert contents(open_store(f"{memory.url}-2")) == {}


def test_an_object_at_the_root_itself_is_listed_with_an_empty_key(memory: Store) -> None:
    """As in S3, the URL of an object does not look empty."""
    memory.put_if_absent("file", b"1")
    assert contents(open_store(f"{memory.url}/file")) == {"": b"1"}


def test_no_two_writes_have_the_same_version(memory: Store) -> None:
    """A version is never used again, even if the object was deleted or has the same bytes."""
    versions = []
    for _ in range(3):
        memory.replace("a", b"1")
        versions.append(memory.info("a").version)
        memory.put_if_match("a", b"1", versions[-1])
        versions.append(memory.info("a").version)
        memory.delete("a")
    assert len(set(versions)) == len(versions)


def test_what_a_caller_does_with_its_buffer_changes_no_object(memory: Store) -> None:
    """The store keeps a copy of data that the caller may change."""
    data = bytearray(b"1")
    memory.replace("a", data)
    data[0] = 0
    with memory.open("a") as file:
        file.write(b"2")
    assert memory.read("a") == b"1"


def _message_of_unpickling(pickled: bytes) -> str:
    return refusal(UserError, lambda: pickle.loads(pickled))  # noqa: S301


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_cannot_open_a_pickled_store(memory: Store, method: str) -> None:
    """The error names the URL: an empty store there would look like an empty output."""
    with multiprocessing.get_context(method).Pool(1) as pool:
        message = pool.apply(_message_of_unpickling, [pickle.dumps(memory)])
    assert memory.url in message and "memory of the process" in message


@pytest.mark.parametrize("url", ["memory://", "memory:///out"])
def test_a_memory_url_has_a_name(url: str) -> None:
    """A memory URL without a name is a UserError that quotes it."""
    assert url in refusal(UserError, lambda: open_store(url))
