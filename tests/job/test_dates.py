"""`{date}` in a job's paths, and the day that it stands for."""

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


def test_a_day_stands_in_the_paths_and_nowhere_else() -> None:
    """A prompt's own braces are text."""
    job = Job.model_validate({**KEYS, "date": "2026-01-31"})
    assert (job.input.path, job.output.path) == ("s3://in/dt=2026-01-31/", "s3://out/dt=2026-01-31")
    assert job.prompt is not None and job.prompt.user == "{{ text }} of {date}"


@pytest.mark.parametrize(
    ("name", "days_ago"), [("today", 0), ("yesterday", 1)], ids=["today", "yesterday"]
)
def test_days_are_those_of_utc(name: str, days_ago: int) -> None:
    """Whatever the machine's time zone is, and stored as a date, which means the same tomorrow."""
    before = dt.datetime.now(dt.UTC).date()
    job = Job.model_validate({**KEYS, "date": name})
    after = dt.datetime.now(dt.UTC).date()
    possible = {(day - dt.timedelta(days=days_ago)).isoformat() for day in (before, after)}
    assert job.date in possible
    assert Job.model_validate(yaml.safe_load(job.to_yaml())) == job


def test_yaml_may_write_it_without_quotes() -> None:
    """YAML reads 2026-01-31 as a date, and a time of that day as more."""
    assert day_of(dt.date(2026, 1, 31)) == dt.date(2026, 1, 31)
    assert day_of(dt.datetime(2026, 1, 31, 5, tzinfo=dt.UTC)) == dt.date(2026, 1, 31)


def test_the_day_changes_no_answer_but_where_it_stands() -> None:
    """Two jobs over the same paths are the same, whatever their day."""
    fixed = {**KEYS, "input": {"path": "in"}, "output": {"path": "out"}}
    dated = Job.model_validate({**fixed, "date": "2026-01-31"})
    assert dated.fingerprint == Job.model_validate(fixed).fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "input.path: {date} stands for a day; say which with --date yesterday"),
        (['date="2026-02-30"'], "date: '2026-02-30' is no day"),
        (["date=tomorrow"], "date: 'tomorrow' is no day; write today, yesterday or 2026-01-31"),
        (["date=7"], "date: 7 is no day"),
    ],
    ids=["none", "no such day", "another word", "a number"],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    """A path that wants a day, and what is none."""
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(KEYS))
    with pytest.raises(UserError) as refused:
        load_job(file, settings)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
