"""Compare tokenmill on a GPU with vLLM alone and with the card's limits; used by `bench/gpu.sh`.

    python -m bench.gpu prepare FOLDER [--rows N] [--small]    # write a model and the cases
    python -m bench.gpu run CASE SYSTEM                        # run a system of bench.systems
    python -m bench.gpu table FOLDER [--card H200]             # print the results

A case is a folder with its corpus, its job and the results of each system. The model has the shape
of Llama 3.1 8B, with the vocabulary of the bundled model's tokenizer. `--small` creates a model of
two layers, with a few rows and one length, to test the script without a GPU.
"""

import argparse
import csv
import json
import random
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table
from tokenmill.config.model_source import ModelSource
from tokenmill.models.fetch import fetch_model

from bench import timing
from bench.limits import CARDS, Card, Shape, reading_limit, seconds_without_overlap
from bench.peers import engine_options
from bench.workloads import MODEL

#: The shape of Llama 3.1 8B.
_EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_SMALL = {"num_hidden_layers": 2}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SEED = 1
# Context in addition to prompt and answer.
_SPARE_TOKENS = 64
# In W1, five of six prompt tokens are the same in all rows (400 shared, 80 own).
_SHARED = 5 / 6
_TAG_TOKENS = 8
#: The target share of the card's limit, by workload.
_LEAST = {"W1": 0.45, "W2": 0.55}


@dataclass(frozen=True, slots=True)
class Case:
    """Rows with `shared` and `own` prompt tokens and `answer` output tokens; 0 means scoring."""

    workload: str
    precision: str
    shared: int
    own: int
    answer: int
    rows: int
    engine: Mapping[str, Any]

    @property
    def prompt(self) -> int:
        """Approximate number of tokens in a row's prompt."""
        return self.shared + self.own

    @property
    def name(self) -> str:
        """The name of the case's folder."""
        return f"{self.workload}-{self.prompt}-{self.answer}-{self.precision}"


def cases(rows: int) -> Iterator[Case]:
    """Yield W1 to W3 with two lengths and two precisions."""
    for (prompt, answer, sequences), precision in product(
        ((2_048, 256, 256), (512, 512, 512)), ("bf16", "fp8")
    ):
        engine = _engine(prompt + answer, sequences, precision)
        shared = round(prompt * _SHARED)
        yield Case("W1", precision, shared, prompt - shared, _TAG_TOKENS, rows, engine)
        yield Case("W2", precision, 0, prompt, answer, rows, engine)
        yield Case("W3", precision, 0, prompt, 0, rows, engine)


def swept(rows: int) -> Iterator[Case]:
    """Yield W2 at 512 and 512 tokens with each combination of engine settings to try."""
    (case,) = (one for one in cases(rows) if one.name == "W2-512-512-bf16")
    for sequences, batched, kv, is_eager in product(
        (256, 512, 1_024), (8_192, 16_384, 32_768), ("auto", "fp8"), (False, True)
    ):
        own = {
            "max_num_seqs": sequences,
            "max_num_batched_tokens": batched,
            "kv_cache_dtype": kv,
            "enforce_eager": is_eager,
        }
        graphs = "eager" if is_eager else "graphs"
        name = f"{sequences}seqs-{batched}batched-{kv}kv-{graphs}"
        yield replace(case, workload=f"sweep-{name}", engine={**case.engine, **own})


def small(rows: int) -> Iterator[Case]:
    """Yield each workload once, small enough for a CPU."""
    own = {
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**28,
    }
    engine = {"load_format": "dummy", **own}
    yield Case("W1", "bf16", 100, 20, _TAG_TOKENS, rows, engine)
    yield Case("W2", "bf16", 0, 40, 20, rows, engine)
    yield Case("W3", "bf16", 0, 60, 0, rows, engine)
    yield Case("sweep-8seqs", "bf16", 0, 40, 20, rows, engine)


def _engine(context: int, sequences: int, precision: str) -> dict[str, Any]:
    """Set every argument whose default depends on vLLM's front end."""
    engine = {
        "load_format": "dummy",
        "dtype": "bfloat16",
        "max_model_len": context + _SPARE_TOKENS,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": 16_384,
        "gpu_memory_utilization": 0.95,
    }
    return {**engine, "quantization": "fp8"} if precision == "fp8" else engine


def write_model(folder: Path, shape: Mapping[str, Any]) -> None:
    """Write a config.json with this shape and the bundled model's tokenizer, without weights."""
    bundled = fetch_model(ModelSource(source=MODEL))
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        shutil.copy(bundled / name, folder / name)
    config = json.loads((bundled / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **shape}, indent=2))


def write_case(case: Case, folder: Path, model: Path) -> None:
    """Write the case's corpus, its job, and the equivalent options of `vllm bench throughput`."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    words = _words(model)
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    shared = "".join(draw.choices(words, k=case.shared))
    texts = ["".join(draw.choices(words, k=case.own)) for _ in range(case.rows)]
    pq.write_table(pa.table({"text": texts}), folder / "corpus" / "rows.parquet")
    job: dict[str, Any] = {
        "name": "gpu",
        "input": {"path": str(folder / "corpus")},
        "model": {"source": str(model), "engine": dict(case.engine)},
        "prompt": {"text": shared + "{{ text }}"},
        "output": {"path": str(folder / "output")},
    }
    if case.answer:
        job["sampling"] = {"temperature": 0, "max_tokens": case.answer, "ignore_eos": True}
        (folder / "throughput.txt").write_text("\n".join(_throughput_options(case, model)) + "\n")
    else:
        job["task"] = {"kind": "score"}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    (folder / "case.json").write_text(json.dumps(asdict(case)))


def _throughput_options(case: Case, model: Path) -> list[str]:
    lengths = {
        "random_prefix_len": case.shared,
        "random_input_len": case.own,
        "random_output_len": case.answer,
        "num_prompts": case.rows,
        "enable_prefix_caching": True,
    }
    options = engine_options({**case.engine, **lengths})
    return ["--model", str(model), "--dataset-name", "random", *options]


def _words(model: Path) -> list[str]:
    """Return the tokenizer's words of letters with a leading space; each is one token."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    found = [word[1:] for word in vocabulary if word.startswith("Ġ")]
    return [f" {word}" for word in found if word.isascii() and word.isalpha()]


def run(folder: Path, system: str) -> None:
    """Run a system on a case in its own process, and write its block next to the job."""
    shutil.rmtree(folder / "output", ignore_errors=True)
    block = timing.run_block(system, folder / "job.yaml", folder / f"{system}.log")
    (folder / f"{system}.json").write_text(json.dumps(asdict(block)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's row in the table; None means not run, or without a limit.

    `share` is the share of the card's limit. `startup_s` is all time outside the interval from the
    engine's being ready to the end.
    """

    tokens_per_s: float
    beside_llm: float | None
    beside_vllm: float | None
    share: float | None
    preemptions: int | None
    gpu_percent: float | None
    startup_s: float


def outcome(case: Case, folder: Path, limits: tuple[Shape, Card] | None) -> Outcome | None:
    """Return the outcome of `tokenmill`, otherwise of the replica; None if neither was run."""
    counted, alone = _block(folder, "replica"), _block(folder, "llm")
    block = _block(folder, "tokenmill") or counted
    if block is None:
        return None
    vllm = folder / "vllm.json"
    rate = json.loads(vllm.read_text())["tokens_per_second"] if vllm.is_file() else None
    share = None
    if limits is not None:
        cached = counted.figures["cached_tokens"] / case.rows if counted else 0
        share = limit_seconds(case, cached, *limits) / block.seconds
    return Outcome(
        tokens_per_s=block.rate,
        beside_llm=alone.seconds / block.seconds if alone else None,
        beside_vllm=block.rate / rate if rate else None,
        share=share,
        preemptions=counted.figures["preemptions"] if counted else None,
        gpu_percent=_busy(folder / f"{block.system}.csv"),
        startup_s=block.wall_s - block.seconds,
    )


def limit_seconds(case: Case, cached: float, shape: Shape, card: Card) -> float:
    """Return the card's least time: reading uncached tokens for tags, otherwise without overlap."""
    if case.workload == "W1":
        context = (case.prompt + cached) / 2
        return case.rows * (case.prompt - cached) / reading_limit(shape, card, context)
    sequences = case.engine["max_num_seqs"]
    return seconds_without_overlap(shape, card, case.rows, case.prompt, case.answer, sequences)


def _block(folder: Path, system: str) -> timing.Block | None:
    path = folder / f"{system}.json"
    return timing.Block(**json.loads(path.read_text())) if path.is_file() else None


def _busy(path: Path) -> float | None:
    """Return the median of the GPU utilization (second column, percent), without idle readings."""
    if not path.is_file():
        return None
    with path.open() as file:
        readings = [float(row[1]) for row in csv.reader(file) if len(row) > 1]
    return statistics.median([one for one in readings if one > 0] or [0.0])


def print_table(root: Path, card_name: str | None) -> None:
    """Print one line per case that was run, the fastest of a sweep first."""
    card = next((card for name, card in CARDS.items() if name in (card_name or "")), None)
    config = json.loads((root / "model" / "config.json").read_text())
    lines = []
    for path in sorted(root.glob("*/case.json")):
        case = Case(**json.loads(path.read_text()))
        weight_bytes = 1 if case.precision == "fp8" else 2
        kv_bytes = 1 if case.engine.get("kv_cache_dtype") == "fp8" else 2
        limits = None if card is None else (Shape.of(config, weight_bytes, kv_bytes), card)
        found = outcome(case, path.parent, limits)
        if found is not None:
            lines.append((case, found))
    table = Table(box=None, pad_edge=False)
    table.add_column("case", no_wrap=True)
    for heading in (
        *("tokens/s", "/ LLM.generate", "/ vllm bench", "of limit", "target"),
        *("preempted", "GPU %", "start-up s"),
    ):
        table.add_column(heading, justify="right")
    for case, found in sorted(lines, key=_order):
        least = _LEAST.get(case.workload)
        table.add_row(
            case.name,
            f"{found.tokens_per_s:,.0f}",
            _number(found.beside_llm),
            _number(found.beside_vllm),
            _number(found.share),
            "" if least is None else f"≥ {least}",
            _number(found.preemptions, 0),
            _number(found.gpu_percent, 0),
            f"{found.startup_s:.0f}",
        )
    Console(width=150).print(table)


def _order(line: tuple[Case, Outcome]) -> tuple[bool, float | str]:
    case, found = line
    is_swept = case.workload.startswith("sweep")
    return is_swept, -found.tokens_per_s if is_swept else case.name


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def prepare(root: Path, rows: int, *, is_small: bool) -> None:
    """Write the model and all cases into the folder."""
    model = root / "model"
    write_model(model, _SMALL if is_small else _EIGHT_BILLION)
    for case in small(rows) if is_small else (*cases(rows), *swept(rows)):
        write_case(case, root / case.name, model)


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("prepare", "run", "table"):
        step = steps.add_parser(name)
        step.add_argument("folder", type=Path)
        if name == "prepare":
            step.add_argument("--rows", type=int, default=2_000)
            step.add_argument("--small", action="store_true")
        elif name == "run":
            step.add_argument("system")
        else:
            step.add_argument("--card")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.step == "prepare":
        prepare(folder, options.rows, is_small=options.small)
    elif options.step == "run":
        run(folder, options.system)
    else:
        print_table(folder, options.card)


if __name__ == "__main__":
    main()
