"""Benchmark tokenmill on this machine: compared with other systems, and by itself.

    python -m bench [PART…] [--rounds 3] [--rows 3000000] [--output out/bench]

Comparisons run the systems alternately and report ratios:

    steady     W1 to W3, compared with one `LLM.generate` call
    peers      W2, compared with `ray.data.llm`, a simple `map_batches` and `vllm run-batch`
    questions  W4, with the prompts in tokenmill's order and shuffled
    labels     W7, compared with vLLM's `prompt_logprobs`
    skew       W5, compared with one call and with calls of sixteen rows
    repeats    W6, with and without `deduplicate`

Measurements are figures with a target:

    tail       makespan and scaling, on a virtual clock
    prefixes   prompt tokens found in the prefix caches, on a virtual clock
    cached     prompt tokens found in the real engine's prefix cache
    null       cost of a row without an engine
    planning   planning many shards, resuming many units
    memory     memory of all processes, with `--rows`
    restart    cost of a kill
    start      time until the engines are ready

Prints tables; writes figures.json, and plots of comparisons and memory.
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
    """A workload and the systems that run it; `base` is the baseline of the ratios.

    `check` compares the results in the folder; the output of a job is called SYSTEM-ROUND.
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
#: Measurements without another system; arguments are the number of rows and the plot folder.
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
    """Run all systems, and return their blocks and ratios to the baseline."""
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
    """Print one line per system: median, minimum and maximum of its rounds."""
    table = Table(box=None, pad_edge=False)
    for heading in ("workload", "system", "seconds", "tokens/s", "speedup", "other load, cores"):
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
    """Plot the ratio of each round, one line per workload and system, as an HTML page."""
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
    figure.update_xaxes(title="speedup over the baseline in the same round")
    figure.write_html(path)


def measure(part: str, num_rows: int, output: Path) -> dict[str, Any]:
    """Run a measurement, print its figures and return them."""
    figures = list(MEASUREMENTS[part](num_rows, output))
    print_figures(part, figures)
    return {"part": part, "figures": [figure.to_json() for figure in figures]}


def main() -> None:
    """Run the parts given on the command line; all of them by default."""
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
