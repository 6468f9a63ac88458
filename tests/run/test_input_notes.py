"""What of an input is not read is said by every command that reads the input."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from helpers.inprocess import invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from yaml import safe_dump


def test_a_former_output_below_the_input_is_left_out_and_named(tmp_path: Path) -> None:
    """`validate`, `plan` and `run` say so in one line, and the rows are those of the corpus."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "two"]})
    job = tmp_path / "job.yaml"
    keys = job_over(corpus, corpus / "nested" / "out")
    # The first job lists no folders, so its output may be below the corpus.
    keys["input"] |= {"path": f"{corpus}/*.parquet", "keep": ["id", "text"]}
    job.write_text(safe_dump(keys))
    assert invoke("run", job).exit_code == ExitCode.FINISHED
    keys["input"]["path"], keys["output"]["path"] = str(corpus), str(tmp_path / "second")
    job.write_text(safe_dump(keys))
    for command in ("validate", "plan", "run"):
        done = invoke(command, job)
        assert done.exit_code == ExitCode.FINISHED, done.output
        (note,) = [line for line in done.output.splitlines() if line.startswith("Not read")]
        assert str(corpus / "nested" / "out") in note
    assert pq.read_table(tmp_path / "second" / "data").num_rows == 2
    facts = json.loads(invoke("validate", job, "--output", tmp_path / "third", "--json").stdout)
    assert (facts["rows"], len(facts["notes"])) == (2, 1)


def test_an_output_is_read_if_it_is_named(tmp_path: Path) -> None:
    """Its folder or its `data` is an input like any other."""
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["one", "two"]})
    job = tmp_path / "job.yaml"
    keys = job_over(corpus, tmp_path / "out")
    keys["input"]["keep"] = ["id", "text"]
    job.write_text(safe_dump(keys))
    assert invoke("run", job).exit_code == ExitCode.FINISHED
    for number, path in enumerate(("out", "out/data")):
        target = tmp_path / f"again{number}"
        more = ("--set", 'input.keep=["id"]', "--input", tmp_path / path, "--output", target)
        done = invoke("run", job, *more)
        assert done.exit_code == ExitCode.FINISHED, done.output
        assert "Not read" not in done.output
        assert pq.read_table(target / "data").num_rows == 2
