"""Print the first rows of an output: `python jobs/demo/show.py out/summaries`."""

import sys
from pathlib import Path

import pyarrow.dataset as ds


def main(output: Path, num_rows: int = 5) -> None:
    """Print the answer of each of the first rows, or why it was rejected."""
    rows = ds.dataset(output / "data", format="parquet").head(num_rows).to_pylist()
    for row in rows:
        answer = row["generated_text"] or f"rejected: {row['error']['message']}"
        print(f"{row['doc_id']:<14} {' '.join(answer.split())[:100]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
