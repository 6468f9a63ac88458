"""The metrics: what they count, what they are called, and the dashboard that shows them."""

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
from tokenmill.observe import metrics
from tokenmill.observe.metrics import METRICS, Kind, Metric, RunMetrics
from tokenmill.observe.progress import Progress
from tokenmill.output.commit import Commit, Stage
from tokenmill.output.record import UnitRecord
from tokenmill.run.run import run_job
from tokenmill.scheduling.load import PoolState, ReplicaLoad
from tokenmill.stages.in_process import REPLICA_NAME

DASHBOARD = json.loads((ROOT / "infra" / "grafana" / "tokenmill.json").read_text(encoding="utf-8"))
#: The labels that all metrics have.
COMMON = {"job_name": "summaries", "run": "run-1"}


class KeepingRecorder:
    """A recorder that keeps all values, by metric and labels."""

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
            for (kept_metric, kept_labels), value in self.values.items()
            if kept_metric == metric and kept_labels >= frozenset(labels.items())
        )


def unit_record(replica: str, **changes: Any) -> UnitRecord:
    """The record of a unit with 90 rows, 5 of them rejected, and 10 filtered out."""
    counts = {"num_rows": 90, "num_filtered": 10, "rejects": {"timeout": 5}}
    return record(unit(num_rows=100), **{**counts, "replica": replica, **changes})


_PROGRESS = Progress(10, 1000, 4, 400, 0.0)


def observe(run_metrics: RunMetrics, *, crashes: int = 0, **loads: ReplicaLoad) -> None:
    """Pass the loads of replicas, by name, to the metrics."""
    progress = Progress(10, 1000, 4, 400, 0.0)
    progress.observe(PoolState(loads, crashes), 1.0)
    run_metrics.ticked(progress, 1.0)


@pytest.fixture
def kept() -> KeepingRecorder:
    return KeepingRecorder()


@pytest.fixture
def run_metrics(kept: KeepingRecorder) -> RunMetrics:
    return RunMetrics(kept, "summaries", "run-1")


def test_a_commit_counts_its_unit_its_rows_and_its_seconds(
    kept: KeepingRecorder, run_metrics: RunMetrics
) -> None:
    """Rows by replica, rejects by class, seconds by stage; zeros are not recorded."""
    times = {"read": (1.0, 1.5), "render": (1.5, 1.75), "engine": (2.0, 9.0), "write": (9.0, 11.0)}
    run_metrics.committed(Commit(unit_record("one"), is_ours=True, stage_times=times), _PROGRESS)
    run_metrics.committed(
        Commit(unit_record("two", rejects={}, num_filtered=0), True, {"read": (4.0, 5.0)}),
        _PROGRESS,
    )
    assert (kept.of(metrics.UNITS), kept.of(metrics.ROWS), kept.of(metrics.FILTERED_ROWS)) == (
        *(2, 180, 10),
    )
    assert kept.of(metrics.ROWS, **COMMON, replica="two") == 90
    assert kept.of(metrics.REJECTS, **COMMON, **{"class": "timeout"}) == 5
    assert kept.of(metrics.STAGE_SECONDS, **COMMON, stage="read") == 1.5
    assert kept.of(metrics.STAGE_SECONDS, stage="engine") == 0


def test_a_unit_that_another_driver_committed_first_is_not_counted(
    kept: KeepingRecorder, run_metrics: RunMetrics
) -> None:
    """So two runs on one output count each row once."""
    run_metrics.committed(
        Commit(unit_record("one"), is_ours=False, stage_times={"read": (1.0, 2.0)}), _PROGRESS
    )
    assert kept.values == {}


def test_counters_grow_by_the_difference_between_reports(
    kept: KeepingRecorder, run_metrics: RunMetrics
) -> None:
    """A replica reports totals since its start; gauges show its last report."""
    first = ReplicaLoad(9, 2, 600, 100, 7, 3, EngineUsage(4, 5, 0.5, 640, 160), engine_seconds=1.5)
    later = replace(first, input_tokens=900, usage=EngineUsage(2, 0, 0.25, 960, 320), num_held=1)
    observe(run_metrics, one=first, two=first)
    observe(run_metrics, one=later, two=first)
    labels = {**COMMON, "replica": "one"}
    assert kept.of(metrics.PROMPT_TOKENS, **labels) == 900
    assert kept.of(metrics.PROMPT_TOKENS) == 1500
    assert kept.of(metrics.GENERATION_TOKENS) == 200
    assert kept.of(metrics.PREFIX_TOKENS, **labels) == 960
    assert kept.of(metrics.PREFIX_HIT_TOKENS, **labels) == 320
    assert kept.of(metrics.REQUESTS_RUNNING, **labels) == 2
    assert kept.of(metrics.REQUESTS_WAITING, **labels) == 1
    assert kept.of(metrics.REQUESTS_WAITING, replica="two") == 8
    assert kept.of(metrics.KV_CACHE_USAGE, **labels) == 0.25
    assert kept.of(metrics.STAGE_SECONDS, stage="engine") == 3
    assert kept.of(metrics.UNITS_LEFT, **COMMON) == 6


def test_a_crashed_replica_keeps_its_counts_and_loses_its_gauges(
    kept: KeepingRecorder, run_metrics: RunMetrics
) -> None:
    """Its gauges fall to zero; its successor has another name."""
    load = ReplicaLoad(9, 2, 600, 100, 7, 3, EngineUsage(4, 5, 0.5))
    observe(run_metrics, one=load)
    observe(run_metrics, two=load, crashes=1)
    for gauge in (metrics.REQUESTS_RUNNING, metrics.REQUESTS_WAITING, metrics.KV_CACHE_USAGE):
        assert kept.of(gauge, replica="one") == 0
    assert kept.of(metrics.PROMPT_TOKENS) == 1200
    assert kept.of(metrics.ENGINE_CRASHES) == 1


def test_repeated_reports_are_not_counted_again(
    kept: KeepingRecorder, run_metrics: RunMetrics
) -> None:
    """A coordinator that was restarted knows no replicas and no crashes for a moment."""
    load = ReplicaLoad(9, 2, 600, 100)
    observe(run_metrics, one=load, crashes=1)
    observe(run_metrics)
    observe(run_metrics, one=replace(load, input_tokens=700))
    assert kept.of(metrics.PROMPT_TOKENS) == 700
    assert kept.of(metrics.ENGINE_CRASHES) == 1


def test_the_metrics_of_a_run_agree_with_its_summary(tmp_path: Path, kept: KeepingRecorder) -> None:
    """Units, rows, rejects, and the seconds of each stage."""
    keys = job_over(write_corpus(tmp_path / "in"), tmp_path / "out")
    keys["input"]["where"] = "text <> 'six'"
    summary = run_job(Job.model_validate(keys), ScriptedExecutor(recorder=kept), Quiet())
    assert summary is not None
    labels = {"job_name": "tiny", "run": summary.run}
    assert kept.of(metrics.UNITS, **labels) == summary.units
    rows = kept.of(metrics.ROWS, **labels, replica=REPLICA_NAME)
    assert rows + summary.filtered == summary.rows
    assert kept.of(metrics.FILTERED_ROWS, **labels) == summary.filtered > 0
    assert kept.of(metrics.REJECTS, **labels, **{"class": "empty_input"}) == summary.rejected > 0
    for stage in (Stage.READ, Stage.RENDER, Stage.WRITE):
        assert 0 < kept.of(metrics.STAGE_SECONDS, **labels, stage=stage) < summary.seconds
    assert kept.of(metrics.UNITS_LEFT, **labels) == 0


def test_a_port_for_a_cluster_is_refused() -> None:
    """A cluster exports metrics itself; the mistake is found before anything starts."""
    with pytest.raises(UserError, match="--metrics-port 9464: a cluster exports"):
        RayExecutor("10.0.0.1:6379", 9464)


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    """Ray's agent would end silently, and Ray with it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--metrics-port {port}: Address already in use"):
            RayExecutor(metrics_port=port).start(job())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: Metric) -> None:
    """Counters end in _total, units are base units, and the help is one sentence."""
    assert re.fullmatch(r"tokenmill(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|milliseconds|minutes|percent|count|sum|bucket)(_|$)", metric.name)
    assert re.fullmatch(r"[A-Z].*[a-z1]\.", metric.help)
    assert len(set(metric.labels)) == len(metric.labels)
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    # Prometheus sets these itself.
    assert not {"job", "instance", "le"} & set(metric.labels)


def expressions() -> Iterator[str]:
    """The PromQL of the dashboard's panels."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_the_dashboard_shows_each_metric_and_no_other() -> None:
    """Its expressions use tokenmill's names with Ray's prefix, or names of vLLM."""
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
    """A misspelt label would merge all lines into one."""
    labels = {f"ray_{metric.name}": set(metric.labels) for metric in METRICS}
    grouped = re.findall(
        r"(?:sum|max) by \((\w+)\) \((?:rate\()?(ray_tokenmill_\w+)\{([^}]*)\}",
        " ".join(expressions()),
    )
    assert len(grouped) > len(METRICS)
    for label, name, selector in grouped:
        assert {label, *re.findall(r"(\w+)=", selector)} <= labels[name], name


def test_grafana_can_show_the_dashboard() -> None:
    """Panels have unique ids and do not overlap; the data source is a variable."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter(
        itertools.chain.from_iterable(
            itertools.product(
                range(position["x"], position["x"] + position["w"]),
                range(position["y"], position["y"] + position["h"]),
            )
            for position in (panel["gridPos"] for panel in panels)
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
