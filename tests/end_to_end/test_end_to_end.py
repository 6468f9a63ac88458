"""Real Ray, real vLLM, a real S3 server: the demo's jobs, resumed, killed, on object storage."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.collector import collecting
from helpers.command import (
    ROOT,
    all_end,
    input_positions,
    output_rows,
    positions,
    start_tokenmill,
    tokenmill,
    wait_for_commit,
    workers,
)
from helpers.fork_server import printed
from helpers.inprocess import invoke, job_over, write_corpus
from tokenmill.errors import ExitCode
from tokenmill.output.record import record_from
from tokenmill.reject import RejectClass

pytestmark = pytest.mark.integration

SUMMARIZE = ROOT / "jobs" / "summarize.yaml"
# Few sequences at a time and short answers: units end one after another, and soon.
SMALL = ("--set", "model.engine.max_num_seqs=8", "--set", "sampling.max_tokens=12")
ENGINE = (
    "model.engine={max_model_len: 2048, dtype: float32, max_num_seqs: 1, "
    "enable_prefix_caching: false}"
)
# The same sums in the same order whatever else is in the engine: the last bits of a logit depend on
# the batch, and with them a greedy answer at a near tie.
ONE_BY_ONE = (
    *("--set", ENGINE),
    *("--set", "sampling.max_tokens=12", "--set", "units.rows=2", "--limit", "24"),
)

REFERENCE = """
import json, sys
import os
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
# As many threads as the replica has: sums in another order have other last bits.
cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
from vllm import LLM, SamplingParams
model, chats = json.load(sys.stdin)
llm = LLM(model, max_model_len=2048, dtype="float32", enforce_eager=True, max_num_seqs=1,
          enable_prefix_caching=False, kv_cache_memory_bytes=2**31)
answers = llm.chat(chats, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
print(json.dumps([answer.outputs[0].text for answer in answers]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus as Parquet shards."""
    folder = tmp_path_factory.mktemp("corpus")
    build = ROOT / "jobs" / "demo" / "build.py"
    subprocess.run([sys.executable, build, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def summaries(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run of the demo job with real vLLM."""
    output = tmp_path_factory.mktemp("summaries") / "out"
    done = tokenmill("run", SUMMARIZE, "--input", corpus, "--output", output, *SMALL)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    return output


@pytest.fixture(scope="module")
def one_by_one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run whose every bit is the same each time."""
    output = tmp_path_factory.mktemp("one-by-one") / "out"
    done = tokenmill("run", SUMMARIZE, "--input", corpus, "--output", output, *ONE_BY_ONE)
    assert done.returncode == ExitCode.FINISHED, done.stderr
    return output


FAKE = ("--set", "model.source=fake")


def fake_run(corpus: Path, output: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and messages of the demo job with the fake engine, in this process."""
    options = ("--input", corpus, "--output", output, *FAKE, *arguments)
    done = invoke("run", SUMMARIZE, *options)
    return done.exit_code, done.stderr


def test_every_row_is_accounted_for(corpus: Path, summaries: Path) -> None:
    """Each input row is in the output once, in order, with its answer or its error."""
    rows = output_rows(summaries)
    assert positions(rows) == input_positions(corpus)
    assert all((row["generated_text"] is None) == (row["error"] is not None) for row in rows)


def test_nasty_rows_get_their_own_error(summaries: Path) -> None:
    """Empty, null and too long texts are rejects of their class; their neighbours are answered."""
    classes = {
        row["doc_id"]: row["error"]["class"]
        for row in output_rows(summaries)
        if row["error"] is not None
    }
    assert classes == {
        "nasty-empty": RejectClass.EMPTY_INPUT,
        "nasty-null-text": RejectClass.EMPTY_INPUT,
        "nasty-blank": RejectClass.EMPTY_INPUT,
        "nasty-null-title": RejectClass.EMPTY_INPUT,
        "nasty-long": RejectClass.PROMPT_TOO_LONG,
    }


def test_greedy_answers_are_those_of_vllm(corpus: Path, one_by_one: Path) -> None:
    """At temperature 0 the texts are those of `vllm.LLM.chat` on the same prompts."""
    documents = [
        row
        for shard in sorted(corpus.glob("*.parquet"))
        for row in ds.dataset(shard).to_table().to_pylist()
    ]
    rows = output_rows(one_by_one)
    answered = [i for i, row in enumerate(rows) if row["error"] is None]
    chats = [
        [
            {"role": "system", "content": "You write one-sentence summaries."},
            {"role": "user", "content": f"{documents[i]['title']}\n\n{documents[i]['text']}"},
        ]
        for i in answered
    ]
    model = invoke("models", "path", "bundled:smollm2-135m").stdout.strip()
    expected = printed(REFERENCE, [model, chats])
    assert [rows[i]["generated_text"] for i in answered] == expected


def test_a_killed_driver_leaves_whole_units_and_the_same_command_runs_the_rest(
    corpus: Path, one_by_one: Path, tmp_path: Path
) -> None:
    """After kill -9 in mid-run and a resume, the rows are those of an undisturbed run."""
    output = tmp_path / "out"
    arguments = ("run", SUMMARIZE, "--input", corpus, "--output", output, *ONE_BY_ONE)
    driver = start_tokenmill(*arguments)
    wait_for_commit(driver, output)
    started = workers(driver)
    driver.kill()
    driver.communicate()
    assert started
    assert all_end(started)
    committed = {path: path.stat().st_mtime_ns for path in output.glob("data/*/*.parquet")}
    assert committed
    assert not (output / "_SUCCESS").exists()

    resumed = tokenmill(*arguments)

    assert resumed.returncode == ExitCode.FINISHED, resumed.stderr
    assert f"Resuming: {len(committed)} of " in resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
    assert output_rows(output) == output_rows(one_by_one)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_its_commits_and_says_so(
    corpus: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    """Ctrl-C or a spot notice ends the run with 4; committed units stay, no process is left."""
    output = tmp_path / "out"
    slow = "model.engine={step_s: 0.3, max_num_seqs: 4, output_tokens: 6}"
    arguments = ("run", SUMMARIZE, "--input", corpus, "--output", output)
    arguments = (*arguments, *FAKE, "--set", "units.rows=2", "--set", slow)
    driver = start_tokenmill(*arguments)
    wait_for_commit(driver, output)
    started = workers(driver)
    driver.send_signal(stop)
    said, _ = driver.communicate()
    assert driver.returncode == ExitCode.STOPPED, said
    assert "units are saved." in said
    assert all_end(started)
    assert list(output.glob("data/*/*.parquet"))
    assert not (output / "_SUCCESS").exists()


def test_a_shard_that_changed_since_the_plan_is_refused_by_name(
    corpus: Path, tmp_path: Path
) -> None:
    """A resume over an input that is no longer the planned one ends with 2 before anything runs."""
    shards = tmp_path / "corpus"
    shutil.copytree(corpus, shards)
    fake_run(shards, tmp_path / "out", "--set", "max_rejects=2")
    changed = shards / "part-001.parquet"
    pq.write_table(pq.read_table(changed).slice(1), changed)
    exit_code, said = fake_run(shards, tmp_path / "out")
    assert exit_code == ExitCode.USER_ERROR
    assert "part-001.parquet: the shard has changed" in said


def test_a_finished_output_is_left_alone(corpus: Path, summaries: Path) -> None:
    """A second run of a finished job says so, ends with 0 and writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in summaries.rglob("*")}
    done = invoke("run", SUMMARIZE, "--input", corpus, "--output", summaries, *SMALL)
    assert done.exit_code == ExitCode.FINISHED
    assert "is finished" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in summaries.rglob("*")} == before


def test_the_main_job_on_s3(corpus: Path, s3_bucket: str, tmp_path: Path) -> None:
    """The tagging job reads from and commits to S3; every answer is of the choices."""
    import s3fs  # noqa: PLC0415 - only this test needs it

    storage = s3fs.S3FileSystem()
    storage.put(f"{corpus}/", f"{s3_bucket}/corpus/", recursive=True)
    done = tokenmill(
        "run",
        ROOT / "jobs" / "tag.yaml",
        "--input",
        f"s3://{s3_bucket}/corpus/*.parquet",
        "--output",
        f"s3://{s3_bucket}/tags",
    )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    storage.get(f"{s3_bucket}/tags/", f"{tmp_path}/tags/", recursive=True)
    rows = output_rows(tmp_path / "tags")
    assert positions(rows) == input_positions(corpus)
    answered = [row for row in rows if row["error"] is None]
    assert answered
    for row in answered:
        scores = dict(row["tag_scores"])
        assert list(scores) == ["billing", "shipping", "account", "product", "news", "sports"]
        likely = sorted((label for label in scores if scores[label] >= 0.5), key=scores.get)
        assert row["tags"] == likely[::-1][:2]
    assert (tmp_path / "tags" / "_SUCCESS").exists()


def test_a_filter_leaves_rows_out_and_counts_them(corpus: Path, tmp_path: Path) -> None:
    """The translation backfill answers only the rows without a translation."""
    output = tmp_path / "out"
    options = ("--input", corpus, "--output", output, *FAKE, "--set", "units.rows=3")
    done = invoke("run", ROOT / "jobs" / "translate.yaml", *options)
    assert done.exit_code == ExitCode.FINISHED, done.stderr
    wanted = [
        (shard.name, position)
        for shard in sorted(corpus.glob("*.parquet"))
        for position, row in enumerate(ds.dataset(shard).to_table().to_pylist())
        if row["language"] == "en" and row["text_fr"] is None
    ]
    assert positions(output_rows(output)) == wanted
    totals = json.loads((output / "_SUCCESS").read_text())
    assert totals["rows"] + totals["filtered"] == len(input_positions(corpus))


def test_a_reject_budget_that_is_exceeded_withholds_success(corpus: Path, tmp_path: Path) -> None:
    """Too many rejects end with 3 and no _SUCCESS; with a larger budget the output is finished."""
    exit_code, _ = fake_run(corpus, tmp_path / "out", "--set", "max_rejects=2")
    assert exit_code == ExitCode.OVER_REJECT_BUDGET
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    exit_code, _ = fake_run(corpus, tmp_path / "out")
    assert exit_code == ExitCode.FINISHED
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_row_that_kills_engines_is_found_and_its_neighbours_are_answered(
    corpus: Path, tmp_path: Path
) -> None:
    """A row that crashes each engine is a reject; all others are as in an undisturbed run."""
    arguments = ("--set", "units.rows=16", "--set", "max_reject_rate=1")
    fake_run(corpus, tmp_path / "peace", *arguments)
    with collecting() as collector:
        done = tokenmill(
            *("run", SUMMARIZE, "--input", corpus, "--output", tmp_path / "out", *FAKE, *arguments),
            *("--set", "model.engine.crash_on=Weavers"),
            env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
        )
    assert done.returncode == ExitCode.FINISHED, done.stderr
    rows, peaceful = output_rows(tmp_path / "out"), output_rows(tmp_path / "peace")
    changed = [(row, old) for row, old in zip(rows, peaceful, strict=True) if row != old]
    ((row, _),) = changed
    assert row["error"]["class"] == RejectClass.ENGINE_CRASH
    (log,) = (tmp_path / "out").glob("_tokenmill/runs/*/events.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(event["replica"] for event in events if event["event"] in {"commit", "death"})
    assert "death" in {event["event"] for event in events}
    # No span is lost with a replica.
    spans = collector.named("unit")
    assert len({span.trace for span in collector.spans}) == 1
    assert sorted(span.attributes["tokenmill.unit"] for span in spans) == sorted(
        str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/data/*/*.parquet")
    )
    assert all(len(collector.below(span)) == 4 for span in spans)


def test_an_engine_that_crashes_on_every_row_ends_the_run_with_the_reason(
    corpus: Path, tmp_path: Path
) -> None:
    """In text: each crash has a line when it happens, and the last line says why the run ended."""
    done = tokenmill(
        *("run", SUMMARIZE, "--input", corpus, "--output", tmp_path / "out", *FAKE),
        *("--set", "model.engine.crash_on=one-sentence"),
    )
    reason = "RuntimeError: the fake engine crashes on 'one-sentence'"
    assert done.returncode == ExitCode.FAILED
    lines = done.stderr.splitlines()
    crashes = [line for line in lines if "crashed: " in line]
    # The driver asks once a second; on a busy machine there may be a few more by then.
    assert len(crashes) >= 3
    assert all(reason in line for line in crashes)
    assert lines[-1].startswith("error: ")
    assert "different rows" in lines[-1]
    assert reason in lines[-1]
    (summary,) = (tmp_path / "out").glob("_tokenmill/runs/*/summary.json")
    assert json.loads(summary.read_text())["engine_deaths"] == len(crashes)


def test_another_job_on_the_same_output_is_refused(corpus: Path, tmp_path: Path) -> None:
    """A changed job names the fields that differ and leaves the output alone."""
    fake_run(corpus, tmp_path / "out")
    exit_code, said = fake_run(corpus, tmp_path / "out", "--set", "sampling.max_tokens=3")
    assert exit_code == ExitCode.USER_ERROR
    assert "sampling.max_tokens" in said


TASKS = """tasks=[
  {kind: generate, name: french, prompt: {user: "Translate: {{ text }}"}},
  {kind: generate, name: topic, prompt: {user: "Topic of {{ title }}?"}},
  {kind: generate, name: verdict, sampling: {max_tokens: 2},
   prompt: {user: "{{ french_generated_text }} is {% if title %}{{ title }}{% endif %}?"}},
]"""


def test_several_tasks_stand_side_by_side_in_each_row(corpus: Path, tmp_path: Path) -> None:
    """Each row has all tasks' columns; one that fails is named and leaves the others' answers."""
    exit_code, said = fake_run(corpus, tmp_path / "out", "--set", TASKS)
    assert exit_code == ExitCode.FINISHED, said
    rows = output_rows(tmp_path / "out")
    assert positions(rows) == input_positions(corpus)
    names = ("french_generated_text", "topic_generated_text", "verdict_generated_text")
    filled = [tuple(row[name] is not None for name in names) for row in rows]
    failed = [row["error"] and row["error"]["message"].partition(":")[0] for row in rows]
    assert set(zip(filled, failed, strict=True)) == {
        ((True, True, True), None),
        ((False, True, False), "french"),
        ((True, False, True), "topic"),
        ((False, False, False), "french"),
    }
    assert all(len(row["verdict_generated_text"].split()) <= 2 for row in rows if not row["error"])
    costs = [row["num_generated_tokens"] is not None for row in rows]
    assert costs == [any(cells) for cells in filled]


def test_what_repeats_on_another_replica_is_computed_once(tmp_path: Path) -> None:
    """Two replicas take units of two shards with the same rows; half of the answers are reused."""
    texts = [f"row {row}" for row in range(120)]
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": texts, "b.parquet": texts})
    output = tmp_path / "out"
    model = {"source": "fake", "replicas": 2, "engine": {"step_s": 0.01, "max_num_seqs": 4}}
    sampling = {"max_tokens": 16, "temperature": 0}
    job = job_over(corpus, output, model=model, sampling=sampling, units={"rows": 10})
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    done = tokenmill("run", tmp_path / "job.yaml")
    assert done.returncode == ExitCode.FINISHED, done.stderr
    records = [record_from(pq.read_metadata(path)) for path in output.glob("data/*/*.parquet")]
    assert len({record.replica for record in records}) == 2
    (summary,) = output.glob("_tokenmill/runs/*/summary.json")
    assert json.loads(summary.read_text())["reused"] == len(texts)
    answers = [row["generated_text"] for row in output_rows(output)]
    assert answers[: len(texts)] == answers[len(texts) :]
    assert len(set(answers)) > 1
