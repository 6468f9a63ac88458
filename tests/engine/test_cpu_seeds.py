"""Seeds on a CPU: no prompt is split over steps, which would crash vLLM."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.asking import make_job
from helpers.command import output_rows
from helpers.fork_server import tokenmill
from tokenmill.engine.cpu_seeds import check_seed_arguments, seed_arguments
from tokenmill.errors import ExitCode, UserError
from tokenmill.run.checks import check_without_gpu

SAMPLED = {"max_tokens": 8, "temperature": 0.8}
GREEDY = {"max_tokens": 8, "temperature": 0}
#: Numbers per document, about five tokens each; together more than three steps of 2,048 tokens.
LENGTHS = (8, 180, 3, 60, 220, 8, 140, 1, 200, 16, 300, 120)

TRANSLATE = {"kind": "translate", "from": "en", "to": "fr", "column": "text"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"sampling": SAMPLED}, False),
        ({"sampling": {"max_tokens": 8, "seed": 1}}, True),
        ({"sampling": {**SAMPLED, "seed": 0}}, True),
        ({"sampling": {**GREEDY, "seed": 1}}, False),
        ({"sampling": {**SAMPLED, "seed": None}}, False),
        ({"sampling": SAMPLED, "overrides": {"seed": "seed"}}, True),
        ({"sampling": GREEDY, "overrides": {"seed": "seed"}}, False),
        ({"sampling": GREEDY, "overrides": {"seed": "seed", "temperature": "heat"}}, True),
        ({"sampling": {**GREEDY, "seed": 1}, "overrides": {"temperature": "heat"}}, True),
        (
            {
                "task": {
                    "complete": True,
                    "retries": {"sampling": {"temperature": 0.7, "seed": 3}},
                },
                "sampling": GREEDY,
            },
            True,
        ),
        (
            {
                "task": {"complete": True, "retries": {"sampling": {"temperature": 0.7}}},
                "sampling": GREEDY,
            },
            False,
        ),
        ({"sampling": {**SAMPLED, "seed": 1}, "task": {"kind": "generate", "n": 2}}, True),
        ({"sampling": GREEDY, "task": TRANSLATE}, True),
        ({"sampling": GREEDY, "task": {**TRANSLATE, "second_try": False}}, False),
        (
            {"tasks": [{"name": "a"}, {"name": "b", "sampling": {**SAMPLED, "seed": 1}}]},
            True,
        ),
        ({"task": {"kind": "classify", "choices": ["a", "b"]}, "sampling": None}, False),
        ({"task": {"kind": "embed"}, "sampling": None}, False),
    ],
)
def test_a_seed_is_seen_wherever_a_job_can_set_one(keys: dict[str, Any], expected: bool) -> None:
    """Not at temperature 0, at which vLLM ignores the seed, unless rows set the temperature."""
    assert make_job(**keys).uses_seeds is expected


def test_each_prompt_runs_in_one_step() -> None:
    """Chunked prefill is off, and a step has room for the longest prompt."""
    arguments = seed_arguments({"max_num_seqs": 8}, 8192)
    assert arguments == {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 8,
    }
    assert seed_arguments({}, 512)["max_num_batched_tokens"] == 2048


def test_arguments_of_the_job_that_split_no_prompt_are_kept() -> None:
    """More tokens in a step, or chunked prefill turned off by the user."""
    arguments = {"enable_chunked_prefill": False, "max_num_batched_tokens": 16384}
    assert seed_arguments(arguments, 8192) == arguments


@pytest.mark.parametrize(
    "engine",
    [
        {"enable_chunked_prefill": True},
        {"long_prefill_token_threshold": 256},
        {"max_num_batched_tokens": 1024, "max_model_len": 4096},
    ],
)
def test_arguments_that_split_prompts_are_refused(engine: dict[str, Any]) -> None:
    """Only on a CPU and only with a seed; the error names the argument."""
    name = next(iter(engine))
    with pytest.raises(UserError, match=rf"^model\.engine\.{name}: "):
        check_seed_arguments(engine)
    model = {"source": "bundled:smollm2-135m", "engine": engine}
    check_without_gpu(make_job(model=model, sampling=SAMPLED))
    with pytest.raises(UserError, match=rf"^model\.engine\.{name}: "):
        check_without_gpu(make_job(model=model, sampling={**SAMPLED, "seed": 1}))


def test_the_context_of_the_model_counts_if_the_job_sets_none() -> None:
    """It is known when the model is loaded."""
    with pytest.raises(UserError, match=r"^tasks\.a\.model\.engine\.max_num_batched_tokens: "):
        seed_arguments({"max_num_batched_tokens": 4096}, 8192, "tasks.a.model")


def test_a_pooling_model_may_split_prompts() -> None:
    """Its requests have no seed, whatever the job's other models do."""
    embedder = {"source": "bundled:minilm-l6", "engine": {"enable_chunked_prefill": True}}
    tasks = [
        {"name": "a", "sampling": {**SAMPLED, "seed": 1}},
        {"name": "b", "kind": "embed", "model": embedder},
    ]
    model = {"source": "bundled:smollm2-135m"}
    check_without_gpu(make_job(model=model, tasks=tasks))


@pytest.mark.integration
def test_rows_with_seeds_and_long_prompts_are_answered(tmp_path: Path) -> None:
    """With vLLM on a CPU: prompts of many lengths, longer together than a step."""
    texts = [" ".join(f"number {i * j}" for j in range(n)) for i, n in enumerate(LENGTHS)]
    seeds = [None if i % 4 == 0 else i for i in range(len(texts))]
    rows = pa.table({"text": texts, "seed": pa.array(seeds, pa.int64())})
    pq.write_table(rows, tmp_path / "in.parquet")
    job = {
        "name": "seeds",
        "input": {"path": str(tmp_path / "in.parquet")},
        "model": {"source": "bundled:smollm2-135m"},
        "prompt": {"user": "Summarize: {{ text }}"},
        "sampling": {"temperature": 0.8, "max_tokens": 4, "seed": 7},
        "overrides": {"seed": "seed"},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = tokenmill("run", tmp_path / "job.yaml")
    assert done.returncode == ExitCode.FINISHED, done.stderr
    assert [row["error"] for row in output_rows(tmp_path / "out")] == [None] * len(texts)
