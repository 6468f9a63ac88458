"""The metrics of a running run, as Prometheus scrapes them."""

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from helpers.command import ROOT, start_tokenmill, wait_for_commit
from helpers.inprocess import job_over, write_corpus
from helpers.ray_cluster import free_port
from helpers.scraping import Sample, eventually, samples_of, scraped
from tokenmill.errors import ExitCode
from tokenmill.observe.metrics import METRICS, PREFIX_HIT_TOKENS, ROWS, Kind

pytestmark = pytest.mark.integration

TIMEOUT_S = 60
ROWS_PER_UNIT = 2
#: A few rows a second, and enough rows that the run does not end by itself; one is rejected.
SLOW = {"step_s": 0.5, "max_num_seqs": 4, "output_tokens": 2}
TEXTS = ["", *(f"text {number}" for number in range(999))]
#: Metrics that a run with the fake engine never has: no crashes, no cache, no filter.
NEVER = {"tokenmill_engine_deaths_total", PREFIX_HIT_TOKENS.name, "tokenmill_filtered_rows_total"}


@dataclass(frozen=True)
class Running:
    """A running run: its process, its output, and its metrics port."""

    process: "subprocess.Popen[str]"
    output: Path
    port: int

    @property
    def rows(self) -> int:
        """The rows in committed units, counted by objects."""
        return ROWS_PER_UNIT * len(list(self.output.glob("data/*/*.parquet")))

    def samples(self) -> list[Sample]:
        """The samples at the port now; none while nothing listens there."""
        return samples_of(scraped(f"127.0.0.1:{self.port}"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A slow local run of the fake engine."""
    folder = tmp_path_factory.mktemp("scraped")
    corpus = write_corpus(folder / "in", {"a.parquet": TEXTS})
    keys = job_over(corpus, folder / "out", model={"source": "fake", "engine": SLOW})
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump({**keys, "units": {"rows": ROWS_PER_UNIT}}))
    port = free_port()
    process = start_tokenmill("run", job, "--metrics-port", str(port))
    try:
        wait_for_commit(process, folder / "out")
        yield Running(process, folder / "out", port)
    finally:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitCode.STOPPED, printed


def test_a_local_run_exports_metrics_at_its_port(running: Running) -> None:
    """Each metric has its labels and its kind; rows are those of committed units."""
    expected = {f"ray_{metric.name}" for metric in METRICS if metric.name not in NEVER}
    eventually(lambda: expected <= {sample.name for sample in running.samples()})
    committed = running.rows
    name = f"ray_{ROWS.name}"
    eventually(lambda: sum(s.value for s in running.samples() if s.name == name) >= committed)
    samples = [s for s in running.samples() if s.name.startswith("ray_tokenmill_")]
    assert sum(s.value for s in samples if s.name == name) <= running.rows
    (run,) = (path.name for path in (running.output / "_tokenmill" / "runs").iterdir())
    kinds = {f"ray_{metric.name}": metric for metric in METRICS}
    for sample in samples:
        metric = kinds[sample.name]
        assert (sample.labels["job_name"], sample.labels["run"]) == ("tiny", run)
        assert set(metric.labels) <= set(sample.labels)
        assert sample.kind == ("counter" if metric.kind is Kind.COUNTER else "gauge")
    rejected = [s.labels["class"] for s in samples if s.name == "ray_tokenmill_rejects_total"]
    assert rejected == ["empty_input"]
    stages = {s.labels["stage"] for s in samples if s.name == "ray_tokenmill_stage_seconds_total"}
    assert stages == {"read", "render", "engine", "write"}


def test_all_ports_of_the_run_are_on_loopback(running: Running) -> None:
    """Another machine reaches neither the metrics nor Ray's agents."""
    driver = psutil.Process(running.process.pid)
    listening = {
        (ipaddress.ip_address(connection.laddr.ip), connection.laddr.port)
        for process in (driver, *driver.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert running.port in {port for _, port in listening}
    for address, _ in listening:
        assert (getattr(address, "ipv4_mapped", None) or address).is_loopback, listening


# A real Prometheus.


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    address: str
    programs: Path

    def get(self, path: str, **parameters: str) -> Any:
        """The answer of its HTTP API. Raises for an expression that it cannot parse."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}") as answer:
            return json.load(answer)["data"]

    def sum_of(self, metric: str) -> float:
        """The sum over a metric's series now."""
        result = self.get("query", query=f"sum({metric})")["result"]
        return float(result[0]["value"][1]) if result else 0.0


@pytest.fixture(scope="module")
def prometheus(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the run every second, configured as in infra/grafana."""
    program = os.environ.get("TOKENMILL_PROMETHEUS") or shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus on the PATH or in TOKENMILL_PROMETHEUS (see CONTRIBUTING.md)")
    text = (ROOT / "infra" / "grafana" / "README.md").read_text(encoding="utf-8")
    first, *_ = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert first.count("127.0.0.1:9464") == first.count("5s") == 1
    configuration = first.replace("9464", str(running.port)).replace("5s", "1s")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "prometheus.yml").write_text(configuration)
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            eventually(lambda: process.poll() is not None or scraped(address, "/-/ready"))
            assert process.poll() is None, (folder / "log").read_text()
            yield Prometheus(address, Path(program).resolve().parent)
        finally:
            process.terminate()


def test_prometheus_counts_the_committed_rows(running: Running, prometheus: Prometheus) -> None:
    """All of them, and no others."""
    committed = running.rows
    eventually(lambda: prometheus.sum_of(f"ray_{ROWS.name}") >= committed)
    assert prometheus.sum_of(f"ray_{ROWS.name}") <= running.rows
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    # Prometheus renames a label that its target has too.
    names = prometheus.get("labels", **{"match[]": '{__name__=~"ray_tokenmill_.*"}'})
    assert not [name for name in names if name.startswith("exported_")]


def test_prometheus_answers_the_queries_of_the_dashboard(prometheus: Prometheus) -> None:
    """It parses every expression, and each that the fake engine has values for has a line."""
    dashboard = json.loads((ROOT / "infra" / "grafana" / "tokenmill.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m")
            query = re.sub(r"\$(job_name|run)", ".*", query)
            names = set(re.findall(r"ray_\w+", query))
            if any(name.removeprefix("ray_") in NEVER for name in names) or "ray_vllm" in query:
                prometheus.get("query", query=query)
                continue

            def result(query: str = query) -> Any:
                return prometheus.get("query", query=query)["result"]

            lines = eventually(result)
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert all(line["metric"].get(label) for line in lines), query


def test_promtool_accepts_the_metrics(running: Running, prometheus: Prometheus) -> None:
    """Names, helps and kinds follow the conventions; only Ray's own labels do not."""
    checked = subprocess.run(
        [prometheus.programs / "promtool", "check", "metrics"],
        input=scraped(f"127.0.0.1:{running.port}"),
        capture_output=True,
        text=True,
        check=False,
    )
    remarks = [line.split(maxsplit=1) for line in checked.stderr.splitlines()]
    ours = {remark for name, remark in remarks if name.startswith("ray_tokenmill_")}
    assert ours == {"label names should be written in 'snake_case' not 'camelCase'"}
