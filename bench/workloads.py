"""The benchmark workloads: jobs over real text whose cost is known in advance.

Every row generates a fixed number of tokens (`ignore_eos`), so two systems do the same work
whatever the model writes.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from bench import PACKAGES, ROOT

# Used if PACKAGES does not exist: a few dozen texts, repeated.
DEMO = ROOT / "jobs" / "demo" / "documents.yaml"

#: Used for all systems, because vLLM's own defaults differ between its front ends.
ENGINE = {
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2 * 2**30,
}
MODEL = "bundled:smollm2-135m"
_SEED = 1
_UNIT_ROWS = 32
_LABELS = ("games", "science", "sound and video", "web servers")
_QUESTIONS = (
    "Which packages are described here? Name three of them.",
    "For whom is this software meant?",
    "What does one need to know before one installs it?",
    "Which of the packages has to do with a network, and how?",
    "Sum up the text in one sentence.",
)
# Between 1,500 and 1,950 tokens.
_DOCUMENT_CHARACTERS = 7_000
# W5: one row in sixteen generates sixteen times as many tokens.
_LONG_EVERY, _SHORT_TOKENS, _LONG_FACTOR = 16, 16, 16


@dataclass(frozen=True, slots=True)
class Workload:
    """A corpus in a folder, and the job over it as job file keys.

    `variants` has the keys that differ for a system, by the system's name; None removes a key.
    """

    name: str
    about: str
    corpus: Path
    job: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_keys(self, keys: Mapping[str, Any]) -> "Workload":
        """Return a copy with these job keys replaced."""
        return replace(self, job={**self.job, **keys})

    def write_job(self, path: Path, system: str, output: str) -> Path:
        """Write the job file of a system, with its own output."""
        keys = {**self.job, **self.variants.get(system, {}), "output": {"path": output}}
        path.write_text(
            yaml.safe_dump({key: value for key, value in keys.items() if value is not None})
        )
        return path


def tagging(folder: Path, num_rows: int = 256) -> Workload:
    """W1: an instruction of 400 tokens shared by all rows, a short text, 8 output tokens."""
    prompt = {"system": _instruction(10), "user": "{{ text }}"}
    rows = {"text": _texts(num_rows, 200, 400)}
    return _workload(folder, "W1 tagging", "400 shared + 80 in, 8 out", rows, prompt, _limit(8))


def translation(folder: Path, num_rows: int = 128) -> Workload:
    """W2: about as many output tokens as input tokens."""
    prompt = {"user": "Translate into French:\n\n{{ text }}"}
    rows = {"text": _texts(num_rows, 200, 400)}
    return _workload(folder, "W2 translation", "110 in, 80 out", rows, prompt, _limit(80))


def scoring(folder: Path, num_rows: int = 192) -> Workload:
    """W3: no decoding, only the log-probability of every token of the text."""
    rows = {"text": _texts(num_rows, 400, 900)}
    made = _workload(folder, "W3 scoring", "150 scored, 0 out", rows, {"text": "{{ text }}"}, None)
    return made.with_keys({"task": {"kind": "score"}})


def questions(folder: Path, num_documents: int = 6) -> Workload:
    """W4: five questions about each document; the prompts begin with the document.

    `tokenmill-shuffled` asks the same questions with the question first and the rows shuffled.
    """
    documents = _documents(num_documents)
    about = f"{len(_QUESTIONS)} questions about each of {num_documents} long documents"
    tasks = [
        {
            "kind": "generate",
            "name": f"answer_{number}",
            "prompt": {"user": "{{ text }}\n\n" + question},
        }
        for number, question in enumerate(_QUESTIONS, start=1)
    ]
    made = _workload(folder, "W4 questions", about, {"text": documents}, None, _limit(8))
    model = {"source": MODEL, "engine": {**ENGINE, "max_model_len": 4096}}
    pairs = [(text, question) for text in documents for question in _QUESTIONS]
    random.Random(_SEED).shuffle(pairs)  # noqa: S311 - no secret
    rows = {"text": [text for text, _ in pairs], "question": [asked for _, asked in pairs]}
    prompt = {"user": "{{ question }}\n\n{{ text }}"}
    shuffled = _workload(folder, "W4 shuffled", about, rows, prompt, _limit(8))
    variants = {"tokenmill-shuffled": {**shuffled.job, "model": model, "tasks": None}}
    return replace(made.with_keys({"model": model, "tasks": tasks}), variants=variants)


def labels(folder: Path, num_rows: int = 24) -> Workload:
    """W7: one of four labels of one to three tokens, with the probabilities of all labels."""
    prompt = {"system": _instruction(7), "user": "{{ text }}\n\nWhich section is this for?"}
    rows = {"text": _texts(num_rows, 300, 330)}
    made = _workload(folder, "W7 labels", "300 shared + 80 in, 4 labels", rows, prompt, None)
    return made.with_keys({"task": {"kind": "classify", "choices": list(_LABELS)}})


def skewed(folder: Path, num_rows: int = 256) -> Workload:
    """W5: one row in sixteen generates sixteen times as many tokens."""
    lengths = [
        _SHORT_TOKENS * (_LONG_FACTOR if row % _LONG_EVERY == 0 else 1) for row in range(num_rows)
    ]
    random.Random(_SEED).shuffle(lengths)  # noqa: S311 - no secret
    rows: dict[str, list[Any]] = {"text": _texts(num_rows, 80, 200), "length": lengths}
    prompt = {"user": "Go on:\n\n{{ text }}"}
    about = (
        f"60 in, 1 of {_LONG_EVERY} rows {_LONG_FACTOR * _SHORT_TOKENS} out, else {_SHORT_TOKENS}"
    )
    made = _workload(folder, "W5 skewed", about, rows, prompt, _limit(_SHORT_TOKENS))
    return made.with_keys({"overrides": {"max_tokens": "length"}})


def repeated(folder: Path, share: float, num_rows: int = 640) -> Workload:
    """W6: a share of the rows repeat another text; `tokenmill-all` does not deduplicate."""
    distinct = _texts(round(num_rows * (1 - share)), 200, 400)
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    texts = distinct + draw.choices(distinct, k=num_rows - len(distinct))
    draw.shuffle(texts)
    prompt = {"user": "Sum up in one sentence:\n\n{{ text }}"}
    about = f"110 in, 24 out, {share:.0%} repeat another row"
    name = f"W6 repeats {share:.0%}"
    made = _workload(folder, name, about, {"text": texts}, prompt, _limit(24))
    model = {**made.job["model"], "deduplicate": False}
    return replace(made, variants={"tokenmill-all": {"model": model}})


def _limit(tokens: int) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}


def _workload(  # noqa: PLR0913, PLR0917 - a job's parts
    folder: Path,
    name: str,
    about: str,
    rows: Mapping[str, list[Any]],
    prompt: Mapping[str, str] | None,
    sampling: Mapping[str, Any] | None,
) -> Workload:
    corpus = folder / name.replace(" ", "-").replace("%", "")
    corpus.mkdir(parents=True)
    pq.write_table(pa.table(dict(rows)), corpus / "rows.parquet", row_group_size=_UNIT_ROWS)
    job = {
        "name": "bench",
        "input": {"path": str(corpus), "keep": ["text"]},
        "model": {"source": MODEL, "engine": ENGINE},
        "prompt": prompt,
        "sampling": sampling,
        "units": {"rows": _UNIT_ROWS},
    }
    return Workload(name, about, corpus, job)


def _instruction(num_rules: int) -> str:
    """Return an instruction shared by all rows, with about forty tokens per rule."""
    rules = " ".join(
        f"Rule {number}: read the description as a whole, look for what the package does, for whom "
        f"it is meant and how it is used, and prefer the tag that a careful librarian would give."
        for number in range(1, num_rules + 1)
    )
    return (
        "You assign tags to short descriptions of software packages for a catalogue. "
        f"{rules} Answer with the tags alone, separated by commas."
    )


def _documents(count: int) -> list[str]:
    """Return long documents of a fixed length, joined from shorter texts."""
    joined = "\n\n".join(_texts(count * 60, 80, 400))
    starts = range(0, count * _DOCUMENT_CHARACTERS, _DOCUMENT_CHARACTERS)
    return [joined[start : start + _DOCUMENT_CHARACTERS] for start in starts]


def _texts(count: int, least: int, most: int) -> list[str]:
    """Return distinct texts of `least` to `most` characters, the same ones each time."""
    found = sorted({text[:most] for text in corpus() if len(text) >= least}, key=_mixed)
    if len(found) < count:
        # The demo has only a few dozen texts: a number makes the repetitions distinct.
        found = [f"{number}. {text}" for number in range(-(-count // len(found))) for text in found]
    return found[:count]


def _mixed(text: str) -> int:
    """Return a sort key that shuffles the corpus in the same way in every process."""
    return random.Random(text).getrandbits(64)  # noqa: S311 - no secret


def corpus() -> list[str]:
    """Return the texts that the workloads are made of."""
    if PACKAGES.is_dir():
        texts: list[str] = (
            ds.dataset(PACKAGES).to_table(columns=["text"]).column("text").to_pylist()
        )
        return texts
    return [entry["text"] for entry in yaml.safe_load(DEMO.read_text()) if entry.get("text")]
