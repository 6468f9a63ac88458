"""Measure the quality of a job's answers on a sample of rows with known correct answers.

    python -m bench.quality bench/sections.yaml --rows 300

`metrics` has the formulas. The default corpus is 57,169 package descriptions of Debian 12 in
`../shared/data`, if that folder exists; the correct answers are in its columns `section`
(classify) and `tags` (tag).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from tokenmill.job.loader import load_job
from tokenmill.tasks.labels.choices import labels_of
from tokenmill.tasks.section import TaskSection

from bench import PACKAGES, ROOT, metrics

# Prefix of the correct answers in the output, where the task can have a column of the same name.
_TRUTH = "truth_"

Row = Mapping[str, Any]
Figures = dict[str, float | int | None]


def classify_figures(rows: Sequence[Row], truth: str, prefix: str) -> Figures:
    """Return the figures of the answered rows; abstaining rows count by their likeliest label."""
    truths = [row[truth] for row in rows]
    scores = [dict(row[f"{prefix}label_scores"]) for row in rows]
    labels = [max(row, key=lambda label: row[label]) for row in scores]
    best = [row[f"{prefix}label_score"] for row in rows]
    right = [label == true for label, true in zip(labels, truths, strict=True)]
    given = [row[f"{prefix}label"] for row in rows]
    sure = [row for row in zip(truths, given, strict=True) if row[1] is not None]
    return {
        "rows": len(rows),
        "labels": len(scores[0]),
        "accuracy": metrics.accuracy(truths, labels),
        "always the commonest": Counter(truths).most_common(1)[0][1] / len(rows),
        "macro F1": metrics.macro_f1([{true} for true in truths], [{label} for label in labels]),
        "Brier score": metrics.brier(truths, scores),
        "log loss": metrics.log_loss(truths, scores),
        "calibration error": metrics.calibration_error(right, best),
        "with a label": len(sure) / len(rows),
        "accuracy of those": sum(true == label for true, label in sure) / max(1, len(sure)),
    }


def tag_figures(rows: Sequence[Row], truth: str, prefix: str) -> Figures:
    """Return the figures of the answered rows, for the job's choices only."""
    scores = [dict(row[f"{prefix}tag_scores"]) for row in rows]
    choices = list(scores[0])
    truths = [set(row[truth]) & set(choices) for row in rows]
    said = [row[f"{prefix}tags"] for row in rows]
    outcomes = [label in true for true in truths for label in choices]
    probabilities = [row[label] for row in scores for label in choices]
    aucs = [
        metrics.auc([label in true for true in truths], [row[label] for row in scores])
        for label in choices
    ]
    known = [value for value in aucs if value is not None]
    total = metrics.micro(truths, said, choices)
    return {
        "rows": len(rows),
        "labels": len(choices),
        "true tags a row": sum(map(len, truths)) / len(rows),
        "tags a row": sum(map(len, said)) / len(rows),
        "precision": total.precision,
        "recall": total.recall,
        "F1": total.f1,
        "macro F1": metrics.macro_f1(truths, said),
        "mean AUC": sum(known) / len(known) if known else None,
        "Brier score": metrics.binary_brier(outcomes, probabilities),
        "calibration error": metrics.calibration_error(outcomes, probabilities),
    }


#: For each kind of task, the default column with the correct answers and the function of figures.
JUDGES: dict[str, tuple[str, Callable[[Sequence[Row], str, str], Figures]]] = {
    "classify": ("section", classify_figures),
    "tag": ("tags", tag_figures),
}


def sample(corpus: Path, truth: str, task: TaskSection, num_rows: int, seed: int) -> pa.Table:
    """Return a random sample of the rows whose correct answer is one that the job can give."""
    table = ds.dataset(corpus, format="parquet").to_table()
    column = table.column(truth)
    choices = getattr(task, "choices", None)
    if pa.types.is_string(column.type) and choices is not None:
        known = pc.is_in(column, pa.array(labels_of(choices)))
    elif pa.types.is_list(column.type):
        known = pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)
    else:
        known = column.is_valid()
    positions = pc.indices_nonzero(known).to_pylist()
    drawn = random.Random(seed).sample(positions, min(num_rows, len(positions)))  # noqa: S311
    return table.take(sorted(drawn))


def answers(job: Path, rows: pa.Table, truths: Sequence[str], settings: Sequence[str]) -> list[Row]:
    """Run the job on these rows and return its output, with the correct answers as `truth_…`."""
    for truth in truths:
        rows = rows.append_column(_TRUTH + truth, rows.column(truth))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sample").mkdir()
        pq.write_table(rows, folder / "sample" / "rows.parquet")
        own = [
            f"input.path={json.dumps(str(folder / 'sample'))}",
            f"input.keep={json.dumps([_TRUTH + truth for truth in truths])}",
            "input.where=null",
            "input.limit=null",
            f"output.path={json.dumps(str(folder / 'out'))}",
            "max_reject_rate=1",
        ]
        options = [word for setting in (*settings, *own) for word in ("--set", setting)]
        command = [sys.executable, "-m", "tokenmill", "run", str(job), *options]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = ds.dataset(folder / "out" / "data", format="parquet").to_table()
        return list(found.to_pylist(maps_as_pydicts="strict"))


def main() -> None:
    """Run a job and print its quality figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="a job with a classify or tag task")
    parser.add_argument("--data", type=Path, default=PACKAGES, help="a folder of Parquet files")
    parser.add_argument("--truth", help="the column with the correct answers (default: by kind)")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"{options.data} does not exist; pass a labelled corpus with --data")
    steps = load_job(options.job, options.settings).steps
    tasks = [step.section for step in steps if step.kind.name in JUDGES]
    if not tasks:
        parser.error(f"{options.job} has no task of these kinds: {', '.join(JUDGES)}")
    columns = [options.truth or JUDGES[task.kind][0] for task in tasks]
    rows = sample(options.data, columns[0], tasks[0], options.rows, options.seed)
    found = answers(options.job, rows, sorted(set(columns)), options.settings)
    good = [row for row in found if row["error"] is None]
    print(f"{options.job}: {len(found)} rows, {len(found) - len(good)} rejected")
    for task, column in zip(tasks, columns, strict=True):
        prefix = "" if task.name is None else f"{task.name}_"
        print(f"{task.kind} against {column}")
        for name, value in JUDGES[task.kind][1](good, _TRUTH + column, prefix).items():
            print(
                f"  {name:22} {value:.3f}" if isinstance(value, float) else f"  {name:22} {value}"
            )


if __name__ == "__main__":
    main()
