"""Check that two systems gave the same answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.dataset as ds

from bench.alone import SCORES
from bench.measure import Figure, at_least, at_most

# Allowed difference of a label's probability, in float32: the systems add up the same numbers in
# batches of different shapes.
_TOLERANCE = 1e-3

Scores = Mapping[str, float]


def of_scores(folder: Path) -> Iterator[Figure]:
    """Compare the label probabilities of tokenmill with those of `prompt_logprobs`."""
    table = ds.dataset(folder / "tokenmill-0" / "data", format="parquet").to_table()
    ours = [dict(row) for row in table.column("label_scores").to_pylist()]
    theirs = json.loads((folder / f"prompt_logprobs-0{SCORES}").read_text())
    name = "largest difference in a label's probability"
    yield at_most(_TOLERANCE, name, largest_difference(ours, theirs), "")
    yield at_least(1, "share of rows with the same likeliest label", same_best(ours, theirs), "")


def largest_difference(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Return the largest difference over all rows and labels; both have the same ones."""
    return max(
        abs(own[label] - other[label])
        for own, other in zip(ours, theirs, strict=True)
        for label in own.keys() | other.keys()
    )


def same_best(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Return the share of rows in which the same label is the likeliest."""
    pairs = [
        (max(own, key=lambda label: own[label]), max(other, key=lambda label: other[label]))
        for own, other in zip(ours, theirs, strict=True)
    ]
    return sum(own == other for own, other in pairs) / len(pairs)
