"""Measure a model's translations: chrF and BLEU against human ones.

    python bench/translation.py [--rows N] [--model SOURCE] [--output FOLDER] [CORPUS]

CORPUS is a folder of Parquet files with the columns title, text and ref_fr, where ref_fr is a human
translation of the title, a blank line and the text.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

CORPUS = Path("../shared/data/packages")
REFERENCE = "ref_fr"


@dataclass(frozen=True, slots=True)
class TranslationQuality:
    """Scores of a corpus, both from 0 to 100; `signatures` record how they were computed."""

    num_rows: int
    chrf: float
    bleu: float
    signatures: tuple[str, str]


def translation_quality(
    translations: Sequence[str | None], references: Sequence[str]
) -> TranslationQuality:
    """Compute corpus chrF and BLEU with sacrebleu; a missing translation counts as empty."""
    # Imported here because only benchmarks depend on it.
    from sacrebleu.metrics import BLEU, CHRF  # noqa: PLC0415

    hypotheses = [translation or "" for translation in translations]
    chrf, bleu = CHRF(), BLEU()
    scores = [metric.corpus_score(hypotheses, [list(references)]) for metric in (chrf, bleu)]
    return TranslationQuality(
        len(hypotheses),
        scores[0].score,
        scores[1].score,
        (str(chrf.get_signature()), str(bleu.get_signature())),
    )


def reference_rows(corpus: Path, num_rows: int) -> pa.Table:
    """Return evenly spaced rows of a corpus: `source`, in its reference's form, and `reference`."""
    dataset = ds.dataset(corpus, format="parquet")
    has_reference = ~ds.field(REFERENCE).is_null()
    table = dataset.to_table(columns=["title", "text", REFERENCE], filter=has_reference)
    step = max(1, table.num_rows // num_rows)
    rows = table.take(list(range(0, table.num_rows, step))[:num_rows]).to_pylist()
    return pa.table(
        {
            "source": [f"{row['title']}\n\n{row['text']}" for row in rows],
            "reference": [row[REFERENCE] for row in rows],
        }
    )


def translation_job(folder: Path, model: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Return the job that translates a folder's `source` column into French."""
    return {
        "name": "bench-translation",
        "input": {"path": f"{folder}/*.parquet", "keep": ["source", "reference"]},
        "model": dict(model),
        "task": {"kind": "translate", "from": "en", "to": "fr", "column": "source"},
        "sampling": {"temperature": 0, "max_tokens": 256, "repetition_penalty": 1.1},
        "output": {"path": str(output)},
        "max_reject_rate": 1,
    }


def report(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Report on a job's rows, and on the untranslated source for comparison."""
    references = [row["reference"] for row in rows]
    answered = [row for row in rows if row["error"] is None]
    failed = Counter(check for row in answered for check in row["failed_checks"] or ())
    lines = [
        _line("model", translation_quality([row["translation"] for row in rows], references)),
        _line("untranslated", translation_quality([row["source"] for row in rows], references)),
    ]
    passed = [row for row in answered if row["checks_passed"]]
    if passed:
        quality = translation_quality(
            [row["translation"] for row in passed], [row["reference"] for row in passed]
        )
        lines.append(_line("rows that pass the checks", quality))
    tries = Counter(row["attempts"] for row in answered)
    tokens = [sum(row[name] or 0 for row in rows) for name in _TOKENS]
    return [
        *lines,
        f"checks passed: {len(passed)} of {len(rows)}; failed: {dict(failed.most_common())}",
        f"rows by attempts: {dict(sorted(tries.items()))}; rejects: {len(rows) - len(answered)}",
        f"tokens a row: {tokens[0] / len(rows):.0f} in, {tokens[1] / len(rows):.0f} out",
        *translation_quality([""], [""]).signatures,
    ]


_TOKENS = ("num_input_tokens", "num_generated_tokens")


def _line(name: str, quality: TranslationQuality) -> str:
    return f"{name}: chrF {quality.chrf:.1f}, BLEU {quality.bleu:.1f} ({quality.num_rows} rows)"


def main() -> None:
    """Translate a sample of rows and print the scores."""
    parser = argparse.ArgumentParser(description="Score a model's French with chrF and BLEU.")
    parser.add_argument("corpus", type=Path, nargs="?", default=CORPUS)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--model", default="bundled:smollm2-135m")
    parser.add_argument("--output", type=Path, help="folder to keep the job's output in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        output = arguments.output or Path(folder, "output")
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        rows = reference_rows(arguments.corpus, arguments.rows)
        pq.write_table(rows, corpus / "rows.parquet")
        model = {"source": arguments.model, "engine": {"max_model_len": 2048}}
        job = Path(folder, "job.yaml")
        job.write_text(yaml.safe_dump(translation_job(corpus, model, output)))
        subprocess.run([sys.executable, "-m", "tokenmill", "run", str(job)], check=True)
        answered = ds.dataset(output / "data", format="parquet").to_table().to_pylist()
    print("\n".join(report(answered)))


if __name__ == "__main__":
    main()
