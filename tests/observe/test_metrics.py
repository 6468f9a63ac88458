"""The metrics: what of commits and reports they count, their names, and the dashboard of them."""

import importlib.util
import itertools
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOT
from helpers.factories import job
from helpers.inprocess import Quiet, ScriptedExecutor, job_over, write_corpus
from helpers.stores import record, unit
from tokenmill.cluster.ray_executor import RayExecutor
from tokenmill.engine.base import EngineUsage
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.observe import metrics as meters
from tokenmill.observe.metrics import METRICS, Kind, Metric, RunMetrics
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit, Stage
from tokenmill.output.record import UnitRecord
from tokenmill.run.run import run_job
from tokenmill.scheduling.load import PoolState, ReplicaLoad
from tokenmill.stages.in_process import REPLICA_NAME

DASHBOARD = json.loads((ROOT / "infra" / "grafana" / "tokenmill.json").read_text(encoding="utf-8"))
#: The labels that each of the pipeline's metrics has.
COMMON = {"job_name": "summaries", "run": "run-1"}


class Kept:
    """A recorder that keeps what it is told, by metric and labels."""

    def __init__(self) -> None:
        self.values: Counter[tuple[Metric, frozenset[tuple[str, str]]]] = Counter()

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        assert (metric.kind, amount > 0, set(labels)) == (Kind.COUNTER, True, set(metric.labels))
        self.values[metric, frozenset(labels.items())] += amount

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        assert (metric.kind, set(labels)) == (Kind.GAUGE, set(metric.labels))
        self.values[metric, frozenset(labels.items())] = value

    def of(self, metric: Metric, **labels: str) -> float:
        """The sum over the series with these labels."""
        return sum(
            value
            for (known, has), value in self.values.items()
            if known == metric and has >= frozenset(labels.items())
        )


def unit_record(replica: str, **changes: Any) -> UnitRecord:
    """Of 90 rows, 5 of them rejected, and 10 filtered out."""
    counts = {"num_rows": 90, "num_filtered": 10, "rejects": {"timeout": 5}}
    return record(unit(num_rows=100), **{**counts, "replica": replica, **changes})


_PROGRESS = Progress(10, 1000, 4, 400, 0.0)


def observed(meter: RunMetrics, *, deaths: int = 0, **loads: ReplicaLoad) -> None:
    """Have the meters see what the replicas of these names report."""
    progress = Progress(10, 1000, 4, 400, 0.0)
    progress.observe(PoolState(loads, deaths), 1.0)
    meter.ticked(progress, 1.0)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def meter(kept: Kept) -> RunMetrics:
    return RunMetrics(kept, "summaries", "run-1")


def test_a_commit_counts_its_unit_its_rows_and_its_seconds(kept: Kept, meter: RunMetrics) -> None:
    """Rows by who answered them, rejects by class, seconds by stage; what is zero is not told."""
    times = {"read": (1.0, 1.5), "render": (1.5, 1.75), "engine": (2.0, 9.0), "write": (9.0, 11.0)}
    meter.committed(Commit(unit_record("one"), is_ours=True, stage_times=times), _PROGRESS)
    meter.committed(
        Commit(unit_record("two", rejects={}, num_filtered=0), True, {"read": (4.0, 5.0)}),
        _PROGRESS,
    )
    assert (kept.of(meters.UNITS), kept.of(meters.ROWS), kept.of(meters.FILTERED_ROWS)) == (
        *(2, 180, 10),
    )
    assert kept.of(meters.ROWS, **COMMON, replica="two") == 90
    assert kept.of(meters.REJECTS, **COMMON, **{"class": "timeout"}) == 5
    assert kept.of(meters.STAGE_SECONDS, **COMMON, stage="read") == 1.5
    assert kept.of(meters.STAGE_SECONDS, stage="engine") == 0


def test_a_unit_that_another_driver_committed_first_is_not_counted(
    kept: Kept, meter: RunMetrics
) -> None:
    """Two runs on one output do not count its rows twice."""
    meter.committed(
        Commit(unit_record("one"), is_ours=False, stage_times={"read": (1.0, 2.0)}), _PROGRESS
    )
    assert kept.values == {}


def test_reports_raise_the_counters_by_what_is_new(kept: Kept, meter: RunMetrics) -> None:
    """A replica reports all that it has done so far; what it holds is as it last said."""
    first = ReplicaLoad(9, 2, 600, 100, 7, 3, EngineUsage(4, 5, 0.5, 640, 160), engine_seconds=1.5)
    later = replace(first, input_tokens=900, usage=EngineUsage(2, 0, 0.25, 960, 320), num_held=1)
    observed(meter, one=first, two=first)
    observed(meter, one=later, two=first)
    of_one = {**COMMON, "replica": "one"}
    assert kept.of(meters.PROMPT_TOKENS, **of_one) == 900
    assert kept.of(meters.PROMPT_TOKENS) == 1500
    assert kept.of(meters.GENERATION_TOKENS) == 200
    assert kept.of(meters.PREFIX_TOKENS, **of_one) == 960
    assert kept.of(meters.PREFIX_HIT_TOKENS, **of_one) == 320
    assert kept.of(meters.REQUESTS_RUNNING, **of_one) == 2
    assert kept.of(meters.REQUESTS_WAITING, **of_one) == 1
    assert kept.of(meters.REQUESTS_WAITING, replica="two") == 8
    assert kept.of(meters.KV_CACHE_USAGE, **of_one) == 0.25
    assert kept.of(meters.STAGE_SECONDS, stage="engine") == 3
    assert kept.of(meters.UNITS_LEFT, **COMMON) == 6


def test_a_dead_replica_holds_nothing_and_its_work_stays(kept: Kept, meter: RunMetrics) -> None:
    """Its gauges fall to zero; the process that comes after it has another name."""
    load = ReplicaLoad(9, 2, 600, 100, 7, 3, EngineUsage(4, 5, 0.5))
    observed(meter, one=load)
    observed(meter, two=load, deaths=1)
    for gauge in (meters.REQUESTS_RUNNING, meters.REQUESTS_WAITING, meters.KV_CACHE_USAGE):
        assert kept.of(gauge, replica="one") == 0
    assert kept.of(meters.PROMPT_TOKENS) == 1200
    assert kept.of(meters.ENGINE_DEATHS) == 1


def test_what_is_told_anew_is_not_counted_again(kept: Kept, meter: RunMetrics) -> None:
    """A board that was killed has forgotten the replicas and their deaths, for a moment."""
    load = ReplicaLoad(9, 2, 600, 100)
    observed(meter, one=load, deaths=1)
    observed(meter)
    observed(meter, one=replace(load, input_tokens=700))
    assert kept.of(meters.PROMPT_TOKENS) == 700
    assert kept.of(meters.ENGINE_DEATHS) == 1


def test_a_runs_metrics_are_those_of_its_summary(tmp_path: Path, kept: Kept) -> None:
    """Units, rows and rejects of a whole run, and the seconds that its stages took."""
    keys = job_over(write_corpus(tmp_path / "in"), tmp_path / "out")
    keys["input"]["where"] = "text <> 'six'"
    summary = run_job(Job.model_validate(keys), ScriptedExecutor(recorder=kept), Quiet())
    assert summary is not None
    labels = {"job_name": "tiny", "run": summary.run}
    assert kept.of(meters.UNITS, **labels) == summary.units
    rows = kept.of(meters.ROWS, **labels, replica=REPLICA_NAME)
    assert rows + summary.filtered == summary.rows
    assert kept.of(meters.FILTERED_ROWS, **labels) == summary.filtered > 0
    assert kept.of(meters.REJECTS, **labels, **{"class": "empty_input"}) == summary.rejected > 0
    for stage in (Stage.READ, Stage.RENDER, Stage.WRITE):
        assert 0 < kept.of(meters.STAGE_SECONDS, **labels, stage=stage) < summary.seconds
    assert kept.of(meters.UNITS_LEFT, **labels) == 0


def test_a_cluster_has_a_port_of_its_own() -> None:
    """The option beside an address is a mistake, told before anything is started."""
    with pytest.raises(UserError, match="--metrics-port 9464: a cluster exports"):
        RayExecutor("10.0.0.1:6379", 9464)


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    """Ray's agent would end without a word, and Ray with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--metrics-port {port}: Address already in use"):
            RayExecutor(metrics_port=port).start(job())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: Metric) -> None:
    """Counters end in _total, units are base units, and a help is one sentence."""
    assert re.fullmatch(r"tokenmill(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|milliseconds|minutes|percent|count|sum|bucket)(_|$)", metric.name)
    assert re.fullmatch(r"[A-Z].*[a-z1]\.", metric.help)
    assert len(set(metric.labels)) == len(metric.labels)
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    # A configuration of Prometheus's gives these.
    assert not {"job", "instance", "le"} & set(metric.labels)


def expressions() -> Iterator[str]:
    """The PromQL of the dashboard's panels."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_the_dashboard_shows_each_metric_and_no_other() -> None:
    """The names in its expressions are ours, behind Ray's prefix, or vLLM's own."""
    shown = set(re.findall(r"\bray_\w+", " ".join(expressions())))
    ours = {name for name in shown if name.startswith("ray_tokenmill_")}
    assert ours == {f"ray_{metric.name}" for metric in METRICS}
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent.joinpath("v1/metrics/loggers.py").read_text(encoding="utf-8")
    for name in shown - ours:
        bare = re.sub(r"_(total|bucket|sum|count)$", "", name.removeprefix("ray_vllm_"))
        assert f'"vllm:{bare}"' in source, name


def test_the_dashboard_groups_by_labels_that_the_metrics_have() -> None:
    """A misspelt label would make one line of all."""
    labels = {f"ray_{metric.name}": set(metric.labels) for metric in METRICS}
    grouped = re.findall(
        r"(?:sum|max) by \((\w+)\) \((?:rate\()?(ray_tokenmill_\w+)\{([^}]*)\}",
        " ".join(expressions()),
    )
    assert len(grouped) > len(METRICS)
    for label, name, selector in grouped:
        assert {label, *re.findall(r"(\w+)=", selector)} <= labels[name], name


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    """Panels have numbers and places of their own, and only the variable names a data source."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter(
        itertools.chain.from_iterable(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
            for at in (panel["gridPos"] for panel in panels)
        )
    )
    assert set(cells.values()) == {1}
    assert {column for column, _ in cells} == set(range(24))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$(\w+)", " ".join(expressions()))) <= {*variables, "__rate_interval"}
    for panel in panels:
        assert panel["title"] and panel["description"]
        ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ids)) == len(ids)
        uids = {source["datasource"]["uid"] for source in (panel, *panel["targets"])}
        assert uids == {"${datasource}"}
