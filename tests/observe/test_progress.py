"""Progress: the counts, the rates, and what the screens show."""

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from helpers.stores import record, unit
from rich.console import Console
from tokenmill.formatting import duration
from tokenmill.observe.events import EventLog, EventName, progress_event
from tokenmill.observe.progress import Progress
from tokenmill.observe.screen import LiveScreen, PlainScreen, make_screen, progress_line
from tokenmill.output.commit import Commit
from tokenmill.scheduling.load import PoolState, ReplicaLoad


def commit(is_ours: bool = True, **changes: Any) -> Commit:
    """The commit of a unit of 100 rows: 90 written, 5 of them rejected, 10 filtered out."""
    counts = {"num_rows": 90, "num_filtered": 10, "rejects": {"empty_input": 5}}
    tokens = {"input_tokens": 1000, "generated_tokens": 200}
    return Commit(record(unit(num_rows=100), **{**counts, **tokens, **changes}), is_ours)


def progress(**changes: Any) -> Progress:
    """A run of 10 units and 1,000 rows, with nothing done yet."""
    whole: dict[str, Any] = {
        "units_total": 10,
        "rows_total": 1000,
        "units_before": 0,
        "rows_before": 0,
        "started_at": 0.0,
    }
    return Progress(**{**whole, **changes})


def pool(*loads: ReplicaLoad, crashes: int = 0) -> PoolState:
    return PoolState({f"host-{number}": load for number, load in enumerate(loads)}, crashes)


def test_a_commit_counts_rows_rejects_and_tokens() -> None:
    """Rows are input rows: filtered rows are done too, and also counted separately."""
    one = progress()
    one.add(commit())
    one.add(commit(num_rows=100, num_filtered=0, rejects={}))
    assert (one.counts.units, one.rows, one.counts.filtered, one.rejected) == (2, 200, 10, 5)
    assert (one.counts.input_tokens, one.counts.generated_tokens, one.lost_races) == (2000, 400, 0)


def test_a_unit_of_another_driver_counts_without_its_tokens() -> None:
    """The unit is done, so the bars move; the tokens were generated elsewhere."""
    one = progress()
    one.add(commit(is_ours=False))
    assert (one.units_done, one.rows_done, one.rejected, one.lost_races) == (1, 100, 5, 1)
    assert (one.counts.input_tokens, one.counts.generated_tokens) == (0, 0)


def test_a_resumed_run_starts_where_the_last_one_ended() -> None:
    """Units of earlier runs are done, and are not counted as this run's."""
    one = progress(units_before=7, rows_before=700)
    assert (one.units_done, one.rows_done, one.counts.units, one.rows) == (7, 700, 0, 0)
    one.add(commit())
    assert (one.units_done, one.rows_done, one.counts.units, one.rows) == (8, 800, 1, 100)


def test_rates_count_from_the_first_replica_that_is_ready() -> None:
    """Loading is not part of the rate: time counts from the first report."""
    one = progress()
    one.observe(pool(), 10.0)
    assert one.engine_seconds(15.0) == 0
    assert one.rates(15.0) == (0, 0)
    one.observe(pool(ReplicaLoad(0, 0, 0, 0)), 20.0)
    one.observe(pool(ReplicaLoad(4, 1, 600, 100), ReplicaLoad(4, 1, 400, 50)), 30.0)
    assert one.engine_seconds(30.0) == 10
    assert one.rates(30.0) == (100, 15)


def test_rates_count_from_the_moment_a_replica_is_ready() -> None:
    """The driver asks once a second, and the coordinator knows the exact moment."""
    one = progress()
    one.observe(PoolState({"replica": ReplicaLoad(0, 0, 0, 0)}, ready_s=0.75), 20.0)
    one.observe(PoolState({"replica": ReplicaLoad(0, 0, 0, 0)}, ready_s=10.75), 30.0)
    assert one.engine_seconds(30.0) == 10.75


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.5])
def test_there_is_no_rate_right_after_the_first_report(seconds: float) -> None:
    """The tokens of a first report are not divided by a tiny time."""
    one = progress()
    one.add(commit())
    one.observe(pool(ReplicaLoad(4, 1, 600, 100)), 20.0)
    assert one.rates(20.0 + seconds) == (0, 0)
    assert one.remaining_s(20.0 + seconds) is None


def test_engine_time_ends_with_the_last_report() -> None:
    """Disconnecting and verifying the output take time, but no engine works then."""
    one = progress()
    one.observe(pool(ReplicaLoad(4, 1, 10, 10)), 100.0)
    one.observe(pool(ReplicaLoad(0, 0, 50, 20)), 110.0)
    assert one.engine_seconds(one.observed_at) == 10.0


def test_rows_count_as_soon_as_they_are_answered() -> None:
    """The bar of rows does not wait for complete units."""
    one = progress(rows_before=100)
    one.observe(pool(ReplicaLoad(4, 1, 10, 10, 7), ReplicaLoad(4, 1, 10, 10, 5)), 0.0)
    assert one.rows_answered == 112
    assert one.remaining_s(12.0) == 888.0
    one.add(commit())
    assert one.rows_answered == 200


def test_rates_do_not_fall_when_a_replica_restarts() -> None:
    """A new engine counts from zero; earlier commits are still counted."""
    one = progress()
    one.observe(pool(ReplicaLoad(0, 0, 0, 0)), 0.0)
    one.add(commit())
    one.observe(pool(ReplicaLoad(1, 1, 50, 10), crashes=1), 10.0)
    assert one.rates(10.0) == (100, 20)
    assert one.engine_crashes == 1


@pytest.mark.parametrize(
    ("before", "commits", "now", "remaining_s"),
    [
        (0, 0, 30.0, None),
        (0, 1, 30.0, 180.0),
        (0, 4, 30.0, 30.0),
        (0, 10, 30.0, 0.0),
        # 500 rows of earlier runs say nothing about the rate of this run.
        (500, 1, 30.0, 80.0),
    ],
)
def test_the_time_left_follows_from_the_rate_of_this_run(
    before: int, commits: int, now: float, remaining_s: float | None
) -> None:
    """Each remaining row takes as long as this run's rows did; unknown before the first."""
    one = progress(rows_before=before)
    one.observe(pool(ReplicaLoad(0, 0, 0, 0)), 10.0)
    for _ in range(commits):
        one.add(commit())
    assert one.remaining_s(now) == remaining_s


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.4, "0 s"),
        (4, "4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    """Seconds, minutes and seconds, or hours and minutes; a dash if unknown."""
    assert duration(seconds) == text


def test_a_line_has_the_content_of_the_live_screen() -> None:
    """Units, rows, rejects, tokens a second, replicas and the time left."""
    one = progress(units_total=1234, rows_total=123_400)
    one.observe(pool(ReplicaLoad(0, 0, 0, 0)), 0.0)
    one.add(commit())
    one.observe(pool(ReplicaLoad(4, 2, 25_000, 5_000), ReplicaLoad(0, 0, 0, 0)), 10.0)
    assert progress_line(one, 10.0) == (
        "units 1/1,234  rows 100/123,400  rejects 5  tokens/s in 2,500 out 500  "
        "replicas 2  ETA 3 h 25 min"
    )


def test_a_plain_screen_writes_a_line_every_ten_seconds() -> None:
    """The first at once, the next ones ten seconds apart, however often it is called."""
    lines: list[str] = []
    written_at = []
    screen = PlainScreen(lambda *shown: lines.append(progress_line(*shown)))
    for tenths in range(5000, 5350):
        before = len(lines)
        screen.ticked(progress(), tenths / 10)
        if len(lines) > before:
            written_at.append(tenths / 10)
    screen.close()
    assert written_at == [500, 510, 520, 530]


def test_a_run_says_what_it_does_until_a_replica_is_ready() -> None:
    """Each stage has its line at once; after a crash the model is loaded again."""
    lines: list[str] = []
    screen = PlainScreen(lambda *shown: lines.append(progress_line(*shown).partition("  ")[0]))
    one = progress(start_stage="starting Ray")
    states = [
        (None, 1),
        (PoolState(), 2),
        (PoolState(num_loading=2), 3),
        (PoolState(num_loading=2), 4),
        (pool(ReplicaLoad(4, 1, 10, 10)), 5),
        (PoolState(num_loading=1, crashes=1), 6),
    ]
    for state, now in states:
        if state is not None:
            one.observe(state, now)
        screen.ticked(one, now)
    screen.close()
    assert lines == [
        "starting Ray",
        "starting replicas",
        "loading the model",
        "units 0/10",
        "loading the model",
    ]


def test_there_is_no_time_left_until_a_batch_is_answered() -> None:
    """All rows of the first batch start together, so its first answers say little."""
    one = progress()
    one.observe(pool(ReplicaLoad(64, 2, 10, 10, 0)), 1.0)
    one.observe(pool(ReplicaLoad(60, 2, 500, 50, 4)), 11.0)
    assert one.remaining_s(11.0) is None
    one.observe(pool(ReplicaLoad(64, 2, 9000, 900, 100)), 21.0)
    assert one.remaining_s(21.0) == 180.0


def test_half_of_the_rows_are_enough_for_the_time_left() -> None:
    """Rows of several tasks have several requests each, so few rows fill a batch."""
    one = progress(rows_total=60)
    one.observe(pool(ReplicaLoad(64, 2, 10, 10, 0)), 1.0)
    one.observe(pool(ReplicaLoad(64, 2, 500, 50, 29)), 11.0)
    assert one.remaining_s(11.0) is None
    one.observe(pool(ReplicaLoad(64, 2, 9000, 900, 30)), 21.0)
    assert one.remaining_s(21.0) == 20.0


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_crash_is_reported_with_its_reason(is_terminal: bool) -> None:
    """In a pipe and above the live display, without markup and in one line."""
    output = console(is_terminal)
    screen = make_screen(output)
    screen.ticked(progress(), 100.0)
    screen.crashed("host-1", "RuntimeError: [bold]out of memory[/bold]")
    screen.close()
    shown = " ".join(written(output).split())
    assert "replica host-1 crashed: RuntimeError: [bold]out of memory[/bold]." in shown


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def last_frame(screen: Console) -> list[str]:
    """The last six lines on a terminal, without colours, cursor movements and bars."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[━╸╺]", "", written(screen))
    return [" ".join(line.split()) for line in text.splitlines()[-6:]]


def written(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_pipe_gets_whole_lines_without_markup() -> None:
    """Without a terminal the line is not wrapped."""
    pipe = console(is_terminal=False)
    screen = make_screen(pipe)
    screen.ticked(progress(), 100.0)
    assert isinstance(screen, PlainScreen)
    assert " ".join(written(pipe).split()) == " ".join(progress_line(progress(), 100.0).split())


def test_a_terminal_gets_bars_and_facts() -> None:
    """The live screen shows units and rows, rejects, rates, replicas and the time left."""
    terminal = console(is_terminal=True)
    screen = make_screen(terminal)
    assert isinstance(screen, LiveScreen)
    one = progress(units_before=3, rows_before=300)
    screen.ticked(one, 100.0)
    one.observe(pool(ReplicaLoad(4, 1, 10, 10), ReplicaLoad(5, 1, 10, 10)), 101.0)
    one.add(commit())
    screen.ticked(one, 111.0)
    screen.close()
    assert last_frame(terminal) == [
        "units 4 of 10",
        "rows 400 of 1,000",
        "rejects 5",
        "tokens/s 100 in, 20 out",
        "replicas 2, with 9 rows of 2 units",
        "ETA 1 min 00 s, after 1 min 51 s",
    ]


def test_a_narrow_terminal_shows_each_fact_on_a_line() -> None:
    """In 80 columns nothing wraps, however large the numbers are."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    screen = make_screen(terminal)
    huge = progress(units_total=123_456, rows_total=1_234_567_890, units_before=99_999)
    huge.add(commit())
    huge.observe(pool(*[ReplicaLoad(1024, 99, 10**11, 10**11)] * 64), 101.0)
    screen.ticked(huge, 900_000.0)
    screen.close()
    names = [line.split()[0] for line in last_frame(terminal)]
    assert names == ["units", "rows", "rejects", "tokens/s", "replicas", "ETA"]


def test_programs_get_a_progress_event_every_ten_seconds() -> None:
    """It has the numbers of the live screen; an unknown one is null."""
    events: list[Mapping[str, Any]] = []
    screen = PlainScreen(lambda *shown: events.append(progress_event(*shown)))
    one = progress()
    screen.ticked(one, 100.0)
    one.add(commit())
    one.observe(pool(ReplicaLoad(8, 2, 500, 100)), 101.0)
    for now in (105.0, 109.9, 110.0):
        screen.ticked(one, now)
    screen.close()
    first, second = [json.loads(json.dumps(event)) for event in events]
    assert (first["event"], first["replicas"], first["remaining_s"]) == ("progress", 0, None)
    assert (second["units_done"], second["requests_running"]) == (one.units_done, 8)
    assert second["rejects"] == {"empty_input": 5}
    assert second["remaining_s"] > 0


def test_events_are_json_lines_with_time_and_name() -> None:
    """Each event is one line of JSON, whatever its text holds."""
    shown: list[Mapping[str, Any]] = []
    events = EventLog("a-run", shown.append)
    assert events.to_bytes() == b""
    events.add(EventName.STOP, reason="first line\nsecond line\u2028third, é \udce9")
    events.committed(commit(is_ours=False), progress())
    text = events.to_bytes().decode()
    assert text.endswith("\n")
    stop, committed = [json.loads(line) for line in text.splitlines()]
    assert (stop["event"], committed["event"]) == ("stop", "commit")
    assert stop["reason"] == "first line\nsecond line\u2028third, é \udce9"
    assert 0 < stop["time"] <= committed["time"]
    assert committed["is_ours"] is False
    assert json.loads(json.dumps(shown)) == [stop, committed] and stop["run"] == "a-run"
    assert (committed["unit"], committed["rejects"]) == (commit().record.unit, {"empty_input": 5})
