"""`tokenmill retry` on Ray: rows that failed in a first run are answered in place by a second."""

from pathlib import Path

import pytest
from helpers.command import output_rows, positions, tokenmill
from helpers.inprocess import invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.output.record import read_record
from tokenmill.storage.local import LocalStore
from yaml import safe_dump

pytestmark = pytest.mark.integration

TEXTS = {
    "a.parquet": [f"text {number}" for number in range(20)],
    "b/c.parquet": ["", "this one waits for ever", *(f"more {number}" for number in range(10))],
}


def test_rows_without_a_complete_answer_get_one(tmp_path: Path) -> None:
    """Errors, timeouts and truncated answers are run again; all other rows are unchanged.

    Both runs exit with 0, and the output is verified after each.
    """
    corpus, output = write_corpus(tmp_path / "corpus", TEXTS), tmp_path / "out"
    engine = {"hang_on": "for ever", "error_rate": 0.3, "step_s": 0.001}
    model = {"source": "fake", "request_timeout_s": 2, "engine": engine}
    keys = job_over(corpus, output, model=model, units={"rows": 6}, sampling={"max_tokens": 6})
    job = tmp_path / "job.yaml"
    job.write_text(safe_dump(keys))
    first = tokenmill("run", job)
    assert first.returncode == ExitCode.FINISHED, first.stderr
    before = output_rows(output)
    classes = {row["error"]["class"] for row in before if row["error"]}
    assert classes == {"empty_input", "timeout", "engine_error"}
    assert invoke("verify", output, "--deep").exit_code == ExitCode.FINISHED

    retried = tokenmill(
        *("retry", output, "--class", "timeout", "--class", "engine_error", "--truncated"),
        *("--set", "sampling.max_tokens=100", "--set", "model.engine={}"),
        # On a busy machine an answer may take long.
        *("--set", "model.request_timeout_s=60"),
    )

    assert retried.returncode == ExitCode.FINISHED, retried.stderr
    after = output_rows(output)
    assert positions(after) == positions(before)
    for old, new in zip(before, after, strict=True):
        if old["finish_reason"] == "stop" or (
            old["error"] and old["error"]["class"] == "empty_input"
        ):
            assert new == old
        else:
            assert (new["error"], new["finish_reason"]) == (None, "stop")
    verified = invoke("verify", output, "--deep")
    assert verified.exit_code == ExitCode.FINISHED, verified.stdout
    assert "1 rejected" in verified.stdout
    store = LocalStore(str(output))
    repairs = [made for item in store.list("data") for made in read_record(store, item.key).repairs]
    assert repairs
    for made in repairs:
        assert made["changes"]["sampling.max_tokens"] == 100
        assert "model.engine.error_rate" in made["changes"]
