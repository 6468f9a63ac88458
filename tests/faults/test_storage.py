"""A bad network before a real S3 server: what happens to commits, listings and reads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from helpers.stores import answers, contents, keys, record, refusal, unit
from tokenmill.errors import RunFailed, UserError
from tokenmill.input.footers import read_footers
from tokenmill.input.listing import Listing
from tokenmill.output.commit import Repair, commit, commit_repair
from tokenmill.output.output import committed_keys
from tokenmill.output.record import read_record
from tokenmill.plan.plan import Plan
from tokenmill.reject import error_array
from tokenmill.storage.base import Store
from tokenmill.storage.s3 import S3Store

from faults.proxy import Asked, Fault, FaultyS3, Forecast, Storm

pytestmark = pytest.mark.integration

#: Half of it fits into no socket's buffer, so that a reset comes in mid-body.
LARGE = os.urandom(6_000_000)
WRITES = [
    Fault.INTERNAL_ERROR,
    Fault.SLOW_DOWN,
    Fault.HANG,
    Fault.CUT_REQUEST,
    Fault.CUT_UPLOAD,
    Fault.LOST_REPLY,
    Fault.CONFLICT,
    Fault.WRONG_ETAG,
]
READS = [
    Fault.INTERNAL_ERROR,
    Fault.SLOW_DOWN,
    Fault.HANG,
    Fault.LOST_REPLY,
    Fault.CUT_REPLY,
    Fault.SHORT_REPLY,
]


def puts(asked: Asked) -> bool:
    return asked.method == "PUT"


def gets(asked: Asked) -> bool:
    return asked.method == "GET"


@pytest.fixture(autouse=True)
def _haste(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never comes is waited for a second; elsewhere a busy machine has its time."""
    if "fault" in request.fixturenames and request.getfixturevalue("fault") is Fault.HANG:
        monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 1)


def meets(
    proxy: FaultyS3, fault: Fault, fits: Callable[[Asked], bool], deed: Callable[[], object]
) -> object:
    """What comes of a deed in the middle of which the fault happens; it must."""
    forecast = Forecast([fault], fits)
    proxy.weather = forecast
    try:
        return deed()
    finally:
        assert forecast.is_over
        proxy.weather = Forecast([])


@pytest.mark.parametrize("fault", WRITES, ids=lambda fault: fault.name.lower())
def test_a_commit_outlives_the_fault_and_knows_itself(
    far: S3Store, near: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    """One whole object, recognised as our own, also where the store's answer was lost."""
    made = meets(proxy, fault, puts, lambda: commit(far, unit(), answers(unit()), record(unit())))
    assert made.is_ours
    assert keys(near) == [unit().key]
    assert read_record(near, unit().key) == made.record


@pytest.mark.parametrize("fault", WRITES, ids=lambda fault: fault.name.lower())
def test_a_repair_outlives_the_fault_and_is_made_once(
    far: S3Store, near: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    """The rows are replaced and the record has one repair."""
    commit(near, unit(), with_errors(answers(unit())), record(unit()))
    mend = Repair("a-later-run", "its-attempt", {})
    again = with_errors(answers(unit(), "again"))
    made = meets(proxy, fault, puts, lambda: commit_repair(far, unit(), again, mend))
    assert made.is_ours
    assert [entry["run"] for entry in read_record(near, unit().key).repairs] == ["a-later-run"]


def with_errors(rows: pa.Table) -> pa.Table:
    """With the columns that a repair looks at; no row is rejected."""
    for name in ("num_input_tokens", "num_generated_tokens"):
        rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.int32()))
    return rows.append_column("error", error_array([None] * rows.num_rows))


@pytest.mark.parametrize("fault", [Fault.CUT_REQUEST, Fault.CUT_UPLOAD], ids=lambda f: f.name)
def test_half_an_upload_is_no_object(
    far: S3Store, near: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    """A large body that breaks off is sent again; no reader ever sees half of it."""
    meets(proxy, fault, puts, lambda: far.put_if_absent("key", LARGE))
    assert contents(near) == {"key": LARGE}


@pytest.mark.parametrize("fault", READS, ids=lambda fault: fault.name.lower())
def test_a_read_outlives_the_fault(
    far: S3Store, near: S3Store, proxy: FaultyS3, fault: Fault
) -> None:
    """Every byte comes, in one piece or by range, and the listing is whole."""
    near.put_if_absent("key", LARGE)
    assert meets(proxy, fault, gets, lambda: far.read("key")) == LARGE
    assert meets(proxy, fault, gets, lambda: keys(far)) == ["key"]

    def by_range() -> bytes:
        with far.open("key") as file:
            file.seek(3_000_000)
            return file.read(1_000_000)

    assert meets(proxy, fault, gets, by_range) == LARGE[3_000_000:4_000_000]
    items = [*near.list()]
    assert meets(proxy, fault, gets, lambda: far.read_ends(items, 1_000)) == [LARGE[-1_000:]]


def test_a_damaged_answer_is_not_taken_for_the_object(
    far: S3Store, near: S3Store, proxy: FaultyS3
) -> None:
    """Bytes that are not those of the object's checksum end the run, which may be run again."""
    near.put_if_absent("key", LARGE)
    meets(proxy, Fault.FLIPPED_REPLY, gets, lambda: refusal(RunFailed, lambda: far.read("key")))


@pytest.fixture
def impatient(far: S3Store, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The store behind the proxy, which gives up after a few tries instead of 30."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    return S3Store(far.url, far.endpoint_url, max_retries=2)


def test_a_damaged_upload_is_no_object(impatient: S3Store, near: S3Store, proxy: FaultyS3) -> None:
    """The server refuses a body that is not the one that was sent, however often it is sent."""
    # A try that a busy machine answers late is followed by another, which must not be whole.
    proxy.weather = Storm("", 1.0, [Fault.FLIPPED_REQUEST])
    refusal(RunFailed, lambda: impatient.put_if_absent("key", LARGE))
    assert keys(near) == []


def test_a_listing_whose_second_page_fails_is_whole_or_none(
    impatient: S3Store, near: S3Store, proxy: FaultyS3
) -> None:
    """Units behind the first thousand are never taken for missing."""
    units = [unit(number, 1) for number in range(1_010)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: near.put_if_absent(one.key, b""), units))
    plan = Plan("", "", {}, pa.schema([]), tuple(units))
    whole = meets(
        proxy,
        Fault.INTERNAL_ERROR,
        lambda asked: asked.is_later_page,
        lambda: committed_keys(impatient, plan),
    )
    assert whole == {one.key for one in units}
    proxy.weather = Forecast([Fault.INTERNAL_ERROR] * 99, lambda asked: asked.is_later_page)
    assert "run the command again" in refusal(RunFailed, lambda: committed_keys(impatient, plan))


def test_expired_credentials_are_named(far: S3Store, near: S3Store, proxy: FaultyS3) -> None:
    """From one moment on all is refused: the message says what, and what to do."""
    far.put_if_absent("before", b"1")
    proxy.weather = Forecast([Fault.EXPIRED] * 99)
    items = [*near.list()]
    for deed in (
        lambda: far.put_if_absent("after", b"2"),
        lambda: far.read("before"),
        lambda: keys(far),
        lambda: far.read_ends(items, 1),
    ):
        message = refusal(UserError, deed)
        assert "expired" in message
        assert "credentials" in message


def test_a_storm_of_slow_downs_passes(far: S3Store, near: S3Store, proxy: FaultyS3) -> None:
    """30 % of all requests get SlowDown: every unit is committed, with bounded retries."""
    units = [unit(number) for number in range(20)]
    proxy.weather = Storm("slow", 0.3, [Fault.SLOW_DOWN])
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda one: commit(far, one, answers(one), record(one)), units))
    assert all(one.is_ours for one in made)
    assert set(keys(near)) == {one.key for one in units}
    assert max(len(writes) for writes in proxy.writes.values()) <= 25


def test_a_storm_while_footers_are_read_passes(
    far: S3Store, near: S3Store, proxy: FaultyS3
) -> None:
    """Of all requests 30 % go wrong in one way or another: every end comes, in its place."""
    for number in range(20):
        near.put_if_absent(f"{number:02}", f"object {number:02}".encode())
    items = [*near.list()]
    proxy.weather = Storm("ends", 0.3, [Fault.SLOW_DOWN, Fault.SHORT_REPLY, Fault.LOST_REPLY])
    assert far.read_ends(items, 2) == [f"{number:02}".encode() for number in range(20)]
    assert proxy.faults


def test_a_unit_costs_one_write_and_no_delete(far: S3Store, proxy: FaultyS3) -> None:
    """A role without the right to delete can run and resume."""
    commit(far, unit(), answers(unit()), record(unit()))
    assert list(proxy.writes.values()) == [["PUT"]]


class Meanwhile(Forecast):
    """Does something the first time a request fits, before it is let through."""

    def __init__(self, fits: Callable[[Asked], bool], deed: Callable[[], object]) -> None:
        super().__init__([])
        self._wanted = fits
        self._deeds = [deed]

    def fault_of(self, asked: Asked) -> None:
        if self._deeds and self._wanted(asked):
            self._deeds.pop()()


def test_the_first_commit_may_come_in_the_middle_of_a_listing(
    far: S3Store, near: S3Store, proxy: FaultyS3
) -> None:
    """A driver that lists an empty output while another commits into it sees no half-made thing."""
    proxy.weather = Meanwhile(
        lambda asked: asked.method == "HEAD", lambda: near.put_if_absent("data/a", b"1")
    )
    assert keys(far, "data") == []
    assert keys(far, "data") == ["data/a"]


def footers_of(folder: Store) -> object:
    """What is found in the footers of a store's Parquet files."""
    return read_footers(Listing(folder, tuple(folder.list()), recursive=True), {}, frozenset())


def test_a_network_that_fails_is_not_the_shards_fault(
    impatient: S3Store, near: S3Store, proxy: FaultyS3, tmp_path: Path
) -> None:
    """A shard whose footer cannot be fetched is never skipped as one that cannot be read."""
    pq.write_table(pa.table({"text": ["a"] * 9}), tmp_path / "a.parquet")
    near.put_if_absent("a.parquet", (tmp_path / "a.parquet").read_bytes())
    proxy.weather = Forecast(
        [Fault.INTERNAL_ERROR] * 999, lambda asked: "a.parquet" in asked.path and gets(asked)
    )
    assert "run the command again" in refusal(RunFailed, lambda: footers_of(impatient))


def test_an_object_that_changes_under_a_reader_is_told(far: S3Store, near: S3Store) -> None:
    """Reading goes on with the version it began with, or not at all."""
    near.put_if_absent("key", LARGE)
    with far.open("key") as file:
        file.read(10)
        near.replace("key", LARGE[:-1])
        assert "changed while it was read" in refusal(RunFailed, lambda: file.read(10))
