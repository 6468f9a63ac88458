"""The S3 store: long listings, errors of users, and bad networks."""

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
from tokenmill.storage.s3 import S3Store

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
    """A listing of more than S3's 1,000 keys per page has each key once, in order."""
    store = open_store(f"s3://{s3_bucket}/out")
    ordered = [f"data/shard-{number // 100:02d}/{number:05d}" for number in range(1_005)]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda key: store.put_if_absent(key, b""), shuffled))
    assert keys(store, "data") == ordered


@pytest.mark.integration
def test_folder_markers_are_not_objects(s3_server: S3Server, s3_bucket: str) -> None:
    """The empty objects that S3 consoles create for folders are not listed."""
    for key in ("out/", "out/data/"):
        s3_server.client.put_object(Bucket=s3_bucket, Key=key, Body=b"")
    store = open_store(f"s3://{s3_bucket}/out")
    assert keys(store) == []
    store.put_if_absent("data/a", b"1")
    assert contents(store) == {"data/a": b"1"}


def test_an_object_at_the_root_itself_is_listed_with_an_empty_key(stub_s3: StubS3) -> None:
    """The URL of an object does not look empty."""
    stub_s3.store.put_if_absent("file", b"1")
    assert keys(open_store(f"{stub_s3.store.url}/file", stub_s3.endpoint_url)) == [""]


# Errors that the user can fix.


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
def test_bad_credentials_are_a_user_error(
    changed: dict[str, str],
    s3_server: S3Server,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With missing or wrong credentials, every operation raises a UserError with the URL."""
    environment = s3_server.environment | changed
    use_only({name: value for name, value in environment.items() if value}, monkeypatch)
    url = f"s3://{s3_bucket}/out"
    for operation in every_operation(open_store(url)):
        assert url in refusal(UserError, operation)


@pytest.mark.integration
@pytest.mark.usefixtures("s3_bucket")
@pytest.mark.parametrize("bucket", ["nowhere-to-be-found", "No Bucket!"])
def test_a_wrong_bucket_is_a_user_error(bucket: str) -> None:
    """With a missing or invalid bucket, every operation raises a UserError with the URL."""
    for operation in every_operation(open_store(f"s3://{bucket}/out")):
        assert f"s3://{bucket}/out" in refusal(UserError, operation)


@pytest.mark.usefixtures("stub_s3")
def test_an_endpoint_that_is_not_a_url_is_a_user_error() -> None:
    """An endpoint without http:// is a UserError that names it."""
    store = open_store("s3://bucket/out", "minio.example:9000")
    assert "minio.example:9000" in refusal(UserError, lambda: list(store.list()))


def test_the_jobs_endpoint_takes_precedence(
    stub_s3: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store uses its own endpoint, not the environment's, also after pickling."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert stub_s3.store.put_if_absent("key", b"1")
    assert pickle.loads(pickle.dumps(stub_s3.store)).read("key") == b"1"  # noqa: S301


def test_reading_an_end_is_one_request(stub_s3: StubS3) -> None:
    """The size is known from the listing, so the end of an object is one GET."""
    for key in ("a", "b", "c"):
        stub_s3.store.put_if_absent(key, key.encode() * 9)
    items = [*stub_s3.store.list()]
    stub_s3.requests.clear()
    assert list(stub_s3.store.read_ends(items, 2)) == [b"aa", b"bb", b"cc"]
    assert stub_s3.requests == ["GET"] * 3


# Bad networks.


def test_a_large_object_is_one_request(stub_s3: StubS3) -> None:
    """An object that s3fs would upload in parts is sent in one PUT, which is atomic."""
    data = bytes(101 * MIB)
    assert stub_s3.store.put_if_absent("data/large", data) is True
    assert stub_s3.objects == {"/bucket/out/data/large": data}


@pytest.mark.parametrize("fault", Fault)
def test_put_if_absent_is_retried(stub_s3: StubS3, fault: Fault) -> None:
    """A write that fails once is retried, and the object is whole.

    After a lost reply, the retry finds the object of the first try and returns False.
    """
    stub_s3.faults.append(fault)
    assert stub_s3.store.put_if_absent("data/a", b"0123456789") is (fault is not Fault.LOST_REPLY)
    assert stub_s3.faults == []
    assert stub_s3.store.read("data/a") == b"0123456789"


def test_a_fault_that_lasts_stops_the_run(stub_s3: StubS3) -> None:
    """If every try is refused, `RunFailed` names the object, and nothing is written."""
    stub_s3.faults += [Fault.SLOW_DOWN] * 100
    # With the usual number of retries, the test would take half a minute.
    store = S3Store(stub_s3.store.url, stub_s3.endpoint_url, max_retries=0)
    message = refusal(RunFailed, lambda: store.put_if_absent("data/a", b"1"))
    assert "s3://bucket/out/data/a" in message
    assert stub_s3.objects == {}


@pytest.mark.usefixtures("stub_s3")
def test_a_dead_endpoint_stops_the_run() -> None:
    """If the server does not answer, every operation raises `RunFailed` with the URL."""
    store = S3Store("s3://bucket/out", "http://127.0.0.1:9", max_retries=0)
    for operation in every_operation(store):
        assert "s3://bucket/out" in refusal(RunFailed, operation)


@pytest.mark.integration
def test_half_an_upload_leaves_nothing(s3_server: S3Server, s3_bucket: str) -> None:
    """A writer that crashes during its upload leaves no object, and the next one writes it."""
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
