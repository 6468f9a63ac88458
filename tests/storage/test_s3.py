"""The S3 store alone: long listings, what the user can mend, and bad networks."""

import http.client
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from helpers.s3_server import S3Server, use_only
from helpers.stores import Fault, StubS3, contents, keys, refusal
from tokenmill.errors import RunFailed, UserError
from tokenmill.storage.base import ObjectInfo, Store
from tokenmill.storage.open import open_store

MIB = 2**20


def every_operation(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: list(store.list()),
        lambda: store.info("key"),
        lambda: store.read("key"),
        lambda: store.open("key"),
        lambda: store.read_ends([ObjectInfo("key", 1, "v1")], 1),
        lambda: store.put_if_absent("key", b""),
        lambda: store.replace("key", b""),
    ]


# Listings.


@pytest.mark.integration
def test_a_listing_of_many_pages_is_complete(s3_bucket: str) -> None:
    """More keys than S3 puts on a page of 1,000 come all, once each, in the order of the keys."""
    store = open_store(f"s3://{s3_bucket}/out")
    wanted = [f"data/shard-{number // 100:02d}/{number:05d}" for number in range(1_005)]
    shuffled = random.Random(0).sample(wanted, len(wanted))
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda key: store.put_if_absent(key, b""), shuffled))
    assert keys(store, "data") == wanted


@pytest.mark.integration
def test_folder_markers_are_no_objects(s3_server: S3Server, s3_bucket: str) -> None:
    """The empty objects with which S3 consoles make folders are in no listing."""
    for key in ("out/", "out/data/"):
        s3_server.client.put_object(Bucket=s3_bucket, Key=key, Body=b"")
    store = open_store(f"s3://{s3_bucket}/out")
    assert keys(store) == []
    store.put_if_absent("data/a", b"1")
    assert contents(store) == {"data/a": b"1"}


def test_an_object_at_the_root_itself_is_listed_with_an_empty_key(stub_s3: StubS3) -> None:
    """A place that is an object is not taken for an empty one."""
    stub_s3.store.put_if_absent("file", b"1")
    assert keys(
        open_store(f"{stub_s3.store.url}/file", f"http://127.0.0.1:{stub_s3.server_port}")
    ) == [""]


# What the user can mend.


@pytest.mark.integration
@pytest.mark.parametrize(
    "changed",
    [
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_SECRET_ACCESS_KEY": "0" * 32},
        {"AWS_ACCESS_KEY_ID": "nobody"},
        {"AWS_PROFILE": "nobody"},
    ],
    ids=["none", "half of them", "wrong secret", "unknown key", "missing profile"],
)
def test_bad_credentials_are_the_users_mistake(
    changed: dict[str, str],
    s3_server: S3Server,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Missing or wrong credentials are a UserError in one line that names the URL, everywhere."""
    environment = s3_server.environment | changed
    use_only({name: value for name, value in environment.items() if value}, monkeypatch)
    url = f"s3://{s3_bucket}/out"
    for operation in every_operation(open_store(url)):
        assert url in refusal(UserError, operation)


@pytest.mark.integration
@pytest.mark.usefixtures("s3_bucket")
@pytest.mark.parametrize("bucket", ["nowhere-to-be-found", "No Bucket!"])
def test_a_bucket_that_cannot_be_is_the_users_mistake(bucket: str) -> None:
    """A bucket that does not exist, or cannot, is a UserError that names the URL, everywhere."""
    for operation in every_operation(open_store(f"s3://{bucket}/out")):
        assert f"s3://{bucket}/out" in refusal(UserError, operation)


@pytest.mark.usefixtures("stub_s3")
def test_an_endpoint_that_is_no_url_is_the_users_mistake() -> None:
    """An endpoint without http:// is a UserError that names it."""
    store = open_store("s3://bucket/out", "minio.example:9000")
    assert "minio.example:9000" in refusal(UserError, lambda: list(store.list()))


def test_an_endpoint_of_the_job_wins(stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint that a store is given is asked, not the environment's; pickling keeps it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert stub_s3.store.put_if_absent("key", b"1")
    assert pickle.loads(pickle.dumps(stub_s3.store)).read("key") == b"1"  # noqa: S301


def test_an_end_is_one_request(stub_s3: StubS3) -> None:
    """What was listed is not asked for its size again: the end of an object is one GET."""
    for key in ("a", "b", "c"):
        stub_s3.store.put_if_absent(key, key.encode() * 9)
    items = [*stub_s3.store.list()]
    stub_s3.requests.clear()
    assert list(stub_s3.store.read_ends(items, 2)) == [b"aa", b"bb", b"cc"]
    assert stub_s3.requests == ["GET"] * 3


# Bad networks.


def test_a_large_object_is_one_request(stub_s3: StubS3) -> None:
    """An object for which s3fs would upload parts goes up in one PUT, which is one step."""
    data = bytes(101 * MIB)
    assert stub_s3.store.put_if_absent("data/large", data) is True
    assert stub_s3.objects == {"/bucket/out/data/large": data}


@pytest.mark.parametrize("fault", Fault)
def test_a_create_is_tried_again(stub_s3: StubS3, fault: Fault) -> None:
    """A create that meets a fault once is tried again; the object is there whole.

    After a lost reply the second try finds what the first one made, and so was not the first.
    """
    stub_s3.faults.append(fault)
    assert stub_s3.store.put_if_absent("data/a", b"0123456789") is (fault is not Fault.LOST_REPLY)
    assert stub_s3.faults == []
    assert stub_s3.store.read("data/a") == b"0123456789"


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once: with the real number of tries a dead store costs half a minute."""
    monkeypatch.setattr("tokenmill.storage.s3._S3_RETRIES", {"total_max_attempts": 1})


@pytest.mark.usefixtures("one_try")
def test_a_fault_that_lasts_stops_the_run(stub_s3: StubS3) -> None:
    """A store that refuses every try is a RunFailed that names the object, and nothing is made."""
    stub_s3.faults += [Fault.SLOW_DOWN] * 100
    message = refusal(RunFailed, lambda: stub_s3.store.put_if_absent("data/a", b"1"))
    assert "s3://bucket/out/data/a" in message
    assert stub_s3.objects == {}


@pytest.mark.usefixtures("one_try", "stub_s3")
def test_a_dead_endpoint_stops_the_run() -> None:
    """A store that does not answer is a RunFailed in one line that names the URL."""
    for operation in every_operation(open_store("s3://bucket/out", "http://127.0.0.1:9")):
        assert "s3://bucket/out" in refusal(RunFailed, operation)


@pytest.mark.integration
def test_half_an_upload_leaves_nothing(s3_server: S3Server, s3_bucket: str) -> None:
    """A writer that dies within its upload leaves no object, and the next one is the first."""
    request = {"Bucket": s3_bucket, "Key": "out/data/a"}
    url = urlsplit(s3_server.client.generate_presigned_url("put_object", Params=request))
    connection = http.client.HTTPConnection(url.netloc)
    connection.putrequest("PUT", f"{url.path}?{url.query}")
    connection.putheader("Content-Length", str(MIB))
    connection.endheaders(b"1" * (MIB // 2))
    connection.close()
    store = open_store(f"s3://{s3_bucket}/out")
    assert keys(store) == []
    assert store.put_if_absent("data/a", b"2") is True
    assert contents(store) == {"data/a": b"2"}
