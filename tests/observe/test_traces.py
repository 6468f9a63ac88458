"""OpenTelemetry traces: what a collector receives of a run, and that no run depends on one."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from helpers.collector import Collector, collecting
from helpers.command import ROOT
from helpers.inprocess import invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.stages.in_process import REPLICA_NAME

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
ROW_TEXT = "text of a row"


def job_file(folder: Path, **changes: object) -> Path:
    corpus = {"a.parquet": ["", *[f"{ROW_TEXT} {n}" for n in range(4)]], "b/c.parquet": ["5", "6"]}
    file = folder / "job.yaml"
    keys = job_over(write_corpus(folder / "corpus", corpus), folder / "out", **changes)
    file.write_text(yaml.safe_dump(keys))
    return file


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collector:
    """What a collector received of a run with four units and seven rows."""
    file = job_file(tmp_path_factory.mktemp("traces"))
    with collecting() as collector:
        done = invoke("run", file, env={ENDPOINT: collector.url})
    assert done.exit_code == ExitCode.FINISHED
    return collector


def test_each_unit_is_one_span(collected: Collector) -> None:
    """The rows and rejects of the four spans add up to those of the input."""
    units = collected.named("unit")
    assert len({unit.attributes["tokenmill.unit"] for unit in units}) == len(units) == 4
    assert all(unit.attributes["tokenmill.committed"] for unit in units)
    assert {unit.attributes["tokenmill.replica"] for unit in units} == {REPLICA_NAME}
    assert sum(unit.attributes["tokenmill.rows"] for unit in units) == 7
    assert sum(unit.attributes["tokenmill.rejected"] for unit in units) == 1
    assert all(unit.attributes["tokenmill.attempt"] for unit in units)
    assert sum(unit.attributes["tokenmill.generated_tokens"] for unit in units) > 0


def test_stages_are_inside_their_unit_and_units_inside_their_run(collected: Collector) -> None:
    """There is one trace; a span's time is within its parent's, and stages are in order."""
    (run,) = collected.named("run")
    assert not run.parent and not run.error
    assert {span.trace for span in collected.spans} == {run.trace}
    for unit in collected.named("unit"):
        assert unit.parent == run.id
        assert run.start <= unit.start <= unit.end <= run.end
        stages = sorted(collected.below(unit), key=lambda span: (span.start, span.end))
        assert Counter(stage.name for stage in stages) == Counter(
            ["read", "render", "engine", "write"]
        )
        assert (stages[0].start, stages[-1].end) == (unit.start, unit.end)
        assert all(stage.start <= stage.end for stage in stages)
        assert all(before.start <= after.start for before, after in pairwise(stages))


def test_no_text_of_a_row_is_sent(collected: Collector) -> None:
    """What was sent contains neither prompts nor answers."""
    assert collected.payload and ROW_TEXT.encode() not in collected.payload


def test_a_failed_run_sends_the_class_of_its_error_only(tmp_path: Path) -> None:
    """The run's span has an error status and an event with the class, without the message."""
    file = job_file(tmp_path, max_reject_rate=0.0, max_rejects=0)
    with collecting() as collector:
        done = invoke("run", file, env={ENDPOINT: collector.url})
    assert done.exit_code == ExitCode.OVER_REJECT_BUDGET
    (run,) = collector.named("run")
    assert run.error == "OverBudget" and run.exceptions == ["OverBudget"]
    assert b"max_reject_rate" not in collector.payload


def test_a_missing_collector_costs_one_line(tmp_path: Path) -> None:
    """The run finishes and reports how many spans were lost, without the URL's password."""
    done = invoke("run", job_file(tmp_path), env={ENDPOINT: "http://me:hidden@127.0.0.1:9"})
    assert done.exit_code == ExitCode.FINISHED
    (line,) = [line for line in done.output.splitlines() if "spans" in line]
    assert "21 trace spans did not reach 127.0.0.1:9" in line
    assert "hidden" not in done.output and "Traceback" not in done.output


def test_nothing_is_imported_unless_an_endpoint_is_set() -> None:
    """A run without an endpoint costs no import of OpenTelemetry."""
    script = (
        "import sys; from tokenmill.observe.traces import traces_of\n"
        "traces_of('run', 'job', print); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "pipeline")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["False"]
