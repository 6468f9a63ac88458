"""Whether two systems came to the same answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.dataset as ds

from bench.alone import SCORES
from bench.measure import Figure, at_least, at_most

# Of a label's probability, in float32: the two add up the same numbers in batches of other shapes.
_TOLERANCE = 1e-3

Scores = Mapping[str, float]


def of_scores(folder: Path) -> Iterator[Figure]:
    """The labels' probabilities by tokenmill beside those by `prompt_logprobs`."""
    table = ds.dataset(folder / "tokenmill-0" / "data", format="parquet").to_table()
    ours = [dict(row) for row in table.column("label_scores").to_pylist()]
    theirs = json.loads((folder / f"prompt_logprobs-0{SCORES}").read_text())
    name = "largest difference of a label's probability"
    yield at_most(_TOLERANCE, name, largest_difference(ours, theirs), "")
    yield at_least(1, "rows with the same likeliest label", same_best(ours, theirs), "of all")


def largest_difference(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Over all rows and labels, which are the same in both."""
    return max(
        abs(own[label] - other[label])
        for own, other in zip(ours, theirs, strict=True)
        for label in own.keys() | other.keys()
    )


def same_best(ours: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """The share of the rows in which the same label is the likeliest."""
    pairs = [
        (max(own, key=lambda label: own[label]), max(other, key=lambda label: other[label]))
        for own, other in zip(ours, theirs, strict=True)
    ]
    return sum(own == other for own, other in pairs) / len(pairs)
