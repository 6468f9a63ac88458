"""Real vLLM that takes its process along on one prompt, as a crash in its native code does."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.command import ROOT, output_rows, tokenmill
from tokenmill.errors import ExitCode
from tokenmill.reject import RejectClass

from faults import real

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

# Read by every Python that starts; only Ray's workers hold engines.
HOOK = """
import os, signal, sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    from tokenmill.engine.vllm import VllmEngine
    add = VllmEngine.add
    def deadly(self, key, request):
        # As many tokens as no other prompt of the test has.
        if len(request.prompt_token_ids) > 150:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, key, request)
    VllmEngine.add = deadly
"""
JOB = """
name: deadly
input: {path: unset, keep: [doc_id]}
model:
  source: bundled:smollm2-135m
  engine: {max_model_len: 512, max_num_seqs: 4}
prompt: {user: "{{ text }}"}
sampling: {temperature: 0, max_tokens: 4}
output: {path: unset}
units: {rows: 4}
max_reject_rate: 0.5
"""


def test_a_row_that_kills_vllm_is_rejected_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    """The process of the engine is killed at one prompt: at most 2 log2(4) + 3 engines die."""
    texts = [f"Say {number}." for number in range(8)]
    texts[5] = "words " * 200
    (tmp_path / "corpus").mkdir()
    table = pa.table({"doc_id": [str(number) for number in range(8)], "text": texts})
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(tmp_path / "hook"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    output = tmp_path / "out"
    done = tokenmill(
        "run",
        tmp_path / "job.yaml",
        "--input",
        tmp_path / "corpus",
        "--output",
        output,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    errors = [row["error"] and row["error"]["class"] for row in output_rows(output)]
    assert errors == [None] * 5 + [RejectClass.ENGINE_CRASH] + [None] * 2
    (summary,) = real.summaries(output)
    assert 1 <= summary["engine_deaths"] <= 2 * 2 + 3
