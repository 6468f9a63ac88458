"""Measure the memory of a long run: short rows, and an engine that does nothing."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from bench.measure import Figure, at_most
from bench.watched import OURS, Sample, watch

#: Default number of rows of the longer run.
ROWS = 3_000_000
_FEW_ROWS = 1_000_000
_SHARD_ROWS = 1_000_000
_UNIT_ROWS = 5_000
_SEQS = 64
_DRIVER_MIB = 1_024
_ACTOR_MIB = 512
# Most growth of the driver from the shorter to the longer run.
_GROWTH = 1.05


def figures(num_rows: int, output: Path) -> Iterator[Figure]:
    """Run the part `memory`: a million rows, then `num_rows`; write a plot to `output`."""
    runs = {}
    for rows in (_FEW_ROWS, num_rows):
        with tempfile.TemporaryDirectory() as folder:
            runs[rows] = watch(_write_job(Path(folder), rows))
    few, most = (samples[-1].peak_mib for samples in runs.values())
    than = f"  relative to {_FEW_ROWS:,} rows"
    yield at_most(_DRIVER_MIB, f"driver, {num_rows:,} rows", most["driver"], "MiB")
    yield at_most(_GROWTH, than, most["driver"] / few["driver"], "")
    yield at_most(_ACTOR_MIB, "actor without an engine", most["actor"], "MiB")
    yield Figure(than, most["actor"] / few["actor"], "")
    for role in ("worker", "board"):
        yield Figure(f"largest {role}", most[role], "MiB")
    own = [mib for role, mib in most.items() if role not in OURS]
    yield Figure("Ray's own processes, total", sum(own), "MiB")
    in_engine = max(sample.in_engine for sample in runs[num_rows])
    yield at_most(2 * _SEQS, "requests in the engine", in_engine, "requests")
    units = max(sample.units for sample in runs[num_rows])
    yield Figure("rows that a replica holds ready", units * _UNIT_ROWS, "rows")
    plot(runs, output / "memory.html")


def plot(runs: Mapping[int, Sequence[Sample]], path: Path) -> None:
    """Plot the MiB of driver, actor and worker over the committed rows, for each run."""
    from plotly import graph_objects  # noqa: PLC0415 - takes a second

    figure = graph_objects.Figure()
    for rows, samples in runs.items():
        for role in ("driver", "actor", "worker"):
            seen = [sample for sample in samples if role in sample.mib]
            figure.add_scatter(
                name=f"{role}, {rows:,} rows",
                x=[sample.committed for sample in seen],
                y=[sample.mib[role] for sample in seen],
            )
    figure.update_xaxes(title="rows committed")
    figure.update_yaxes(title="MiB resident", rangemode="tozero")
    figure.write_html(path)


def _write_job(folder: Path, num_rows: int) -> Path:
    corpus = folder / "corpus"
    corpus.mkdir()
    for start in range(0, num_rows, _SHARD_ROWS):
        numbers = pa.array(range(start, min(start + _SHARD_ROWS, num_rows)))
        texts = pc.binary_join_element_wise("row", numbers.cast(pa.string()), "of many", " ")
        table = pa.table({"id": numbers, "text": texts})
        pq.write_table(table, corpus / f"{start:012}.parquet", row_group_size=_UNIT_ROWS)
    job_file = folder / "job.yaml"
    job = {
        "name": "memory",
        "input": {"path": str(corpus), "keep": ["id"]},
        "model": {"source": "fake", "engine": {"instant": True, "max_num_seqs": _SEQS}},
        "prompt": {"text": "{{ text }}"},
        "sampling": {"max_tokens": 8, "temperature": 0},
        "output": {"path": str(folder / "out")},
        "units": {"rows": _UNIT_ROWS},
    }
    job_file.write_text(yaml.safe_dump(job))
    return job_file
