"""`{date}` in a job's paths is replaced by a day."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenmill.errors import UserError
from tokenmill.job.dates import day_of
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job

KEYS: dict[str, Any] = {
    "name": "nightly",
    "input": {"path": "s3://in/dt={date}/"},
    "model": {"source": "fake"},
    "prompt": {"user": "{{ text }} of {date}"},
    "sampling": {"max_tokens": 1},
    "output": {"path": "s3://out/dt={date}", "publish": "s3://out/current.json"},
}


def test_the_day_is_filled_into_paths_only() -> None:
    """Braces in a prompt are text."""
    job = Job.model_validate({**KEYS, "date": "2026-01-31"})
    assert (job.input.path, job.output.path) == ("s3://in/dt=2026-01-31/", "s3://out/dt=2026-01-31")
    assert job.prompt is not None and job.prompt.user == "{{ text }} of {date}"


@pytest.mark.parametrize(
    ("name", "days_ago"), [("today", 0), ("yesterday", 1)], ids=["today", "yesterday"]
)
def test_today_and_yesterday_are_days_of_utc(name: str, days_ago: int) -> None:
    """The machine's time zone does not matter. The date is stored, so it is the same tomorrow."""
    before = dt.datetime.now(dt.UTC).date()
    job = Job.model_validate({**KEYS, "date": name})
    after = dt.datetime.now(dt.UTC).date()
    possible = {(day - dt.timedelta(days=days_ago)).isoformat() for day in (before, after)}
    assert job.date in possible
    assert Job.model_validate(yaml.safe_load(job.to_yaml())) == job


def test_a_date_needs_no_quotes_in_yaml() -> None:
    """PyYAML alone reads 2026-01-31 as a date, or with a time as a datetime; both are accepted."""
    assert day_of(dt.date(2026, 1, 31)) == dt.date(2026, 1, 31)
    assert day_of(dt.datetime(2026, 1, 31, 5, tzinfo=dt.UTC)) == dt.date(2026, 1, 31)


def test_the_date_itself_is_not_part_of_the_fingerprint() -> None:
    """Two jobs with the same paths have the same fingerprint, whatever their dates."""
    fixed = {**KEYS, "input": {"path": "in"}, "output": {"path": "out"}}
    dated = Job.model_validate({**fixed, "date": "2026-01-31"})
    assert dated.fingerprint == Job.model_validate(fixed).fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "input.path: {date} needs a day; pass --date yesterday"),
        (['date="2026-02-30"'], "date: '2026-02-30' is not a day"),
        (["date=tomorrow"], "date: 'tomorrow' is not a day; use today, yesterday or a date"),
        (["date=7"], "date: 7 is not a day"),
    ],
    ids=["missing", "not in the calendar", "another word", "a number"],
)
def test_an_invalid_or_missing_date_is_an_error_of_one_line(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    """The error names the key and what to write."""
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    with pytest.raises(UserError) as refused:
        load_job(file, settings)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
