"""How fast tokenmill is beside others, on this machine, and what it does without a model.

    python -m bench [PART…] [--rounds 3] [--rows 3000000] [--output out/bench]

Comparisons are ratios of runs that take turns: `steady` (W1 to W3 beside one `LLM.generate` call),
`peers` (W2 beside `ray.data.llm`, `map_batches` by hand and `vllm run-batch`), `questions` (W4 in
our order and in none), `labels` (W7 beside vLLM's `prompt_logprobs`), `skew` (W5 beside one call
and calls of sixteen rows), `repeats` (W6 with and without `deduplicate`). Measurements are figures
with a target: `tail` (makespan and scaling) and `prefixes` (what of the prompts a cache holds),
both on a virtual clock; `cached` (the same of the real engine); `null` (what a row costs without an
engine); `planning` (many shards, many units); `memory` (what processes hold, with `--rows`);
`restart` (what a kill costs); `start` (how long until engines are ready). Prints tables; writes
figures.json, and plots of comparisons and memory.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import (
    agreement,
    cached,
    memory,
    null,
    planning,
    prefixes,
    restart,
    start,
    tail,
    timing,
    workloads,
)
from bench.measure import Figure, print_figures
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Comparison:
    """A workload and the systems on it; `base` is what the others are held against.

    `check` looks at what they left in the folder, a job's output being called SYSTEM-ROUND.
    """

    make: Callable[[Path], Workload]
    base: str
    others: Sequence[str]
    check: Callable[[Path], Iterable[Figure]] = lambda _: ()


PARTS: Mapping[str, Sequence[Comparison]] = {
    "steady": [
        Comparison(make, "llm", ["tokenmill"])
        for make in (workloads.tagging, workloads.translation, workloads.scoring)
    ],
    "peers": [
        Comparison(
            workloads.translation,
            "ray_llm",
            ["ray_llm_tuned", "by_hand", "run_batch", "tokenmill"],
        )
    ],
    "questions": [Comparison(workloads.questions, "tokenmill-shuffled", ["tokenmill"])],
    "labels": [Comparison(workloads.labels, "prompt_logprobs", ["tokenmill"], agreement.of_scores)],
    "skew": [Comparison(workloads.skewed, "llm", ["llm_in_groups", "tokenmill"])],
    "repeats": [
        Comparison(partial(workloads.repeated, share=share), "tokenmill-all", ["tokenmill"])
        for share in (0.0, 0.3, 0.6)
    ],
}
#: What needs no other system; each is told how many rows are many, and where plots go.
MEASUREMENTS: Mapping[str, Callable[[int, Path], Iterable[Figure]]] = {
    "tail": lambda *_: tail.figures(),
    "prefixes": lambda *_: prefixes.figures(),
    "cached": lambda *_: cached.figures(),
    "null": lambda *_: null.figures(),
    "planning": lambda *_: planning.figures(),
    "memory": memory.figures,
    "restart": lambda *_: restart.figures(),
    "start": lambda *_: start.figures(),
}


def compare(comparison: Comparison, folder: Path, rounds: int) -> dict[str, Any]:
    """The blocks of all systems, and each one's ratio to the base."""
    workload = comparison.make(folder)

    def run(system: str, number: int) -> timing.Block:
        name = f"{system}-{number}"
        job_file = workload.write_job(folder / f"{name}.yaml", system, str(folder / name))
        return timing.run_block(system.split("-", maxsplit=1)[0], job_file, folder / f"{name}.log")

    systems = [comparison.base, *comparison.others]
    blocks = timing.alternate(systems, run, rounds)
    checked = list(comparison.check(folder))
    if checked:
        print_figures(workload.name, checked)
    return {
        "workload": workload.name,
        "about": workload.about,
        "base": comparison.base,
        "checks": [figure.to_json() for figure in checked],
        "systems": {
            system: {
                "blocks": [asdict(block) for block in blocks[system]],
                "tokens_per_s": [block.rate for block in blocks[system]],
                "ratios": timing.ratios(blocks[system], blocks[comparison.base]),
            }
            for system in systems
        },
    }


def print_table(results: Sequence[Mapping[str, Any]]) -> None:
    """A line a system: median, least and most of its rounds."""
    table = Table(box=None, pad_edge=False)
    for heading in ("workload", "system", "seconds", "tokens/s", "times faster", "others' cores"):
        table.add_column(heading)
    for result in results:
        for system, figures in result["systems"].items():
            busy = max(block["foreign_cores"] for block in figures["blocks"])
            is_base = system == result["base"]
            table.add_row(
                f"{result['workload']}: {result['about']}" if is_base else "",
                system,
                timing.spread([block["figures"]["seconds"] for block in figures["blocks"]], 1),
                timing.spread(figures["tokens_per_s"], 0),
                "base" if is_base else timing.spread(figures["ratios"]),
                f"{busy:.2f}",
            )
    Console(width=140).print(table)


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each round's ratio as a point, a line a workload and system, as one HTML page."""
    from plotly import graph_objects  # noqa: PLC0415 - takes a second

    points = [
        (f"{result['workload']}: {system} / {result['base']}", ratio)
        for result in results
        for system, figures in result["systems"].items()
        if system != result["base"]
        for ratio in figures["ratios"]
    ]
    names, values = zip(*points, strict=True)
    figure = graph_objects.Figure(graph_objects.Scatter(x=values, y=names, mode="markers"))
    figure.add_vline(x=1, line_color="grey")
    figure.update_xaxes(title="times faster than the base in the same round")
    figure.write_html(path)


def measure(part: str, num_rows: int, output: Path) -> dict[str, Any]:
    """A measurement's figures, printed."""
    figures = list(MEASUREMENTS[part](num_rows, output))
    print_figures(part, figures)
    return {"part": part, "figures": [figure.to_json() for figure in figures]}


def main() -> None:
    """Run the parts that the command line names; all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, *MEASUREMENTS, []], metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=memory.ROWS)
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    compared: list[dict[str, Any]] = []
    measured: list[dict[str, Any]] = []

    def write() -> None:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        figures = {**machine, "results": compared, "measurements": measured}
        (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2))

    for part in arguments.parts or [*PARTS, *MEASUREMENTS]:
        if part in MEASUREMENTS:
            measured.append(measure(part, arguments.rows, arguments.output))
            write()
            continue
        for comparison in PARTS[part]:
            with tempfile.TemporaryDirectory() as folder:
                compared.append(compare(comparison, Path(folder), arguments.rounds))
            print_table(compared[-1:])
            write()
    if compared:
        plot(compared, arguments.output / "ratios.html")


if __name__ == "__main__":
    main()
