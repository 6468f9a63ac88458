"""Length policies of each kind of task: how chunks are joined, and which policies are errors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.answering import answer
from helpers.asking import make_job
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, Request
from tokenmill.run.checks import check_job
from tokenmill.tasks.row_tasks import RowResult, RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext

CONTEXT = 60
TEXT = {"text": "{{ text }}"}
# The text is split into exactly these chunks of eight tokens.
PARTS = ["one paragraph of tex\n\n\n\n", "two paragraphs of te\n\n\n\n", "and a third one, all"]
CHUNK = {"policy": "chunk", "column": "text", "max_tokens": 8}
ASK = {"prompt": {"text": "{{ title }}: {{ parts | join('+') }}"}}
NAMES = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "year": {"type": ["integer", "null"]},
    },
    "required": ["names", "year"],
}
CHOICES = ["good", "bad", "odd"]

Cells = Mapping[str, Any]


def a_job(kind: str, **keys: Any) -> Job:
    """A job with one task. Lower-case keywords are keys of the task, upper-case ones of the job."""
    of_job = {name.lower(): value for name, value in keys.items() if name.isupper()}
    of_task = {name: value for name, value in keys.items() if not name.isupper()}
    writes = kind in {"generate", "extract", "translate"}
    data = make_job().model_dump(mode="json", exclude_none=True)
    data |= {"task": {"kind": kind, **of_task}, **of_job}
    data["model"]["engine"] = {"max_model_len": CONTEXT}
    for name, is_needed in (("prompt", kind != "rerank"), ("sampling", writes)):
        if not is_needed:
            del data[name]
    return Job.model_validate(data)


def answers(job: Job, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows' results with the fake engine and the scheduler."""
    engine = FakeEngine(FakeSettings(max_model_len=CONTEXT, output_tokens=3))
    return answer(engine, job, rows)


def mean_of_scores(parts: Sequence[Cells], whole: Cells) -> bool:
    """The scores are the mean of the parts', and the label has the highest."""
    scores = {label: np.mean([part["label_scores"][label] for part in parts]) for label in CHOICES}
    return whole["label_scores"] == pytest.approx(scores) and whole["label"] == max(
        scores, key=lambda label: scores[label]
    )


def union_of_tags(parts: Sequence[Cells], whole: Cells) -> bool:
    """The whole has the tags of all parts."""
    return set(whole["tags"]) == {tag for part in parts for tag in part["tags"]}


def mean_vector(parts: Sequence[Cells], whole: Cells) -> bool:
    """The vector is the normalized mean of the parts'."""
    mean = np.mean([part["embedding"] for part in parts], axis=0)
    return bool(np.allclose(whole["embedding"], mean / np.linalg.norm(mean), atol=1e-6))


def mean_by_token(parts: Sequence[Cells], whole: Cells) -> bool:
    """The mean is weighted by the number of scored tokens."""
    counts = [part["num_scored_tokens"] for part in parts]
    means = [part["mean_logprob"] for part in parts]
    total = math.fsum(count * mean for count, mean in zip(counts, means, strict=True))
    return whole["num_scored_tokens"] == sum(counts) and math.isclose(
        whole["mean_logprob"], total / sum(counts)
    )


@pytest.mark.parametrize(
    ("kind", "keys", "join", "is_joined"),
    [
        ("classify", {"choices": CHOICES}, "mean", mean_of_scores),
        ("tag", {"choices": CHOICES}, "union", union_of_tags),
        ("embed", {}, "mean", mean_vector),
        ("score", {}, "mean", mean_by_token),
        (
            "reward",
            {},
            "mean",
            lambda parts, whole: math.isclose(
                whole["reward"], sum(part["reward"] for part in parts) / len(parts)
            ),
        ),
        (
            "rerank",
            {"query": "{{ title }}", "document": "{{ text }}"},
            "max",
            lambda parts, whole: whole["relevance"] == max(part["relevance"] for part in parts),
        ),
        (
            "generate",
            {},
            "concatenate",
            lambda parts, whole: (
                whole["generated_text"] == "\n\n".join(part["generated_text"] for part in parts)
            ),
        ),
    ],
)
def test_a_long_rows_answer_joins_those_of_its_chunks(
    kind: str, keys: dict[str, Any], join: str, is_joined: Any
) -> None:
    """Each chunk is answered like a row with that text, and joined as the kind does."""
    if kind != "rerank":
        keys = {**keys, "prompt": TEXT}
    job = a_job(kind, LENGTH={**CHUNK, "join": join}, **keys)
    check_job(job)
    parts = answers(a_job(kind, **keys), [{"title": "t", "text": text} for text in PARTS])
    short, whole = answers(
        job, [{"title": "t", "text": PARTS[0]}, {"title": "t", "text": "".join(PARTS)}]
    )
    assert [part["error"] for part in (*parts, short, whole)] == [None] * 5
    assert (short.pop("num_chunks"), whole["num_chunks"]) == (1, 3)
    assert short.pop("truncated_tokens") == 0
    assert short == parts[0]
    assert is_joined(parts, whole)


def test_the_second_prompt_can_use_columns_of_the_row() -> None:
    """It is rendered from the row and the answers of the chunks."""
    job = a_job("generate", LENGTH={**CHUNK, "join": ASK}, prompt=TEXT)
    (row,) = answers(job, [{"title": "t", "text": "".join(PARTS[:2])}])
    parts = answers(a_job("generate", prompt=TEXT), [{"text": text} for text in PARTS[:2]])
    asked = f"t: {'+'.join(part['generated_text'] for part in parts)}"
    (last,) = answers(a_job("generate", prompt=TEXT), [{"text": asked}])
    assert row["error"] is None and row["num_chunks"] == 2
    assert row["generated_text"] == last["generated_text"]


def test_the_second_prompt_of_classify_can_use_the_choices() -> None:
    """It sees the choices, the labels of the chunks and the row's columns."""
    join = {"prompt": {"text": "{{ choices | length }}: {{ parts | join }} {{ title }}"}}
    job = a_job("classify", LENGTH={**CHUNK, "join": join}, prompt=TEXT, choices=CHOICES)
    check_job(job)
    tasks = tasks_of(job)
    assert set(tasks.columns) == {"text", "title"} and tasks.late_columns == ["title"]
    (row,) = answers(job, [{"title": "t", "text": "".join(PARTS)}])
    assert row["error"] is None and row["num_chunks"] == 3 and row["label"] in CHOICES


def tasks_of(job: Job, **changes: Any) -> RowTasks:
    return RowTasks(job.steps, TaskContext(FakeTokenizer(), CONTEXT, **changes))


def converse(
    tasks: RowTasks, row: Mapping[str, Any], texts: Sequence[str]
) -> tuple[RowResult, list[list[Request]]]:
    """A row's result if the engine writes these texts, and the requests of each round."""
    (entries,) = tasks.prepare([row])
    dialogue = tasks.answer(entries, {name: row[name] for name in tasks.late_columns})
    remaining, rounds, completions = iter(texts), [], None
    try:
        while True:
            rounds.append(list(dialogue.send(completions)))  # type: ignore[arg-type]
            completions = [Completion(0, next(remaining), "stop", 7, 4, -2.0) for _ in rounds[-1]]
    except StopIteration as end:
        return end.value, rounds


def test_union_joins_extracted_fields() -> None:
    """Lists are merged without duplicates; other fields take the first value that is not null."""
    job = a_job("extract", LENGTH={**CHUNK, "join": "union"}, json_schema=NAMES, prompt=TEXT)
    extracted = [
        '{"names": ["Ann"], "year": null}',
        '{"names": ["Bo", "Ann"], "year": 7}',
        '{"names": [], "year": 8}',
    ]
    result, _ = converse(tasks_of(job), {"text": "".join(PARTS)}, extracted)
    assert result.cells == {
        "names": ["Ann", "Bo"],
        "year": 7,
        "truncated_tokens": 0,
        "num_chunks": 3,
    }


def test_offsets_refer_to_the_whole_text() -> None:
    """Fields of the second prompt's answer are located in the row's text, not in a chunk."""
    locate = {"column": "text", "fields": ["names"]}
    join = {"prompt": {"text": "{{ parts | length }} parts of {{ title }}"}}
    keys = {"json_schema": NAMES, "locate": locate, "prompt": TEXT}
    job = a_job("extract", LENGTH={**CHUNK, "join": join}, **keys)
    check_job(job)
    written = '{"names": ["third"], "year": null}'
    result, rounds = converse(tasks_of(job), {"title": "t", "text": "".join(PARTS)}, [written] * 4)
    assert [len(asked) for asked in rounds] == [3, 1]
    (name,) = result.cells["names"]
    assert name["start"] == "".join(PARTS).index("third")


def test_the_second_prompt_has_the_rows_overrides_and_adapter() -> None:
    """All requests of a row use the same adapter and overrides."""
    model = {"source": "fake", "adapters": {"fr": "/a"}}
    job = a_job(
        "generate",
        LENGTH={**CHUNK, "join": ASK},
        MODEL=model,
        ADAPTER="adapter",
        OVERRIDES={"temperature": "heat"},
        prompt=TEXT,
    )
    tasks = tasks_of(job, adapters=("fr",))
    assert tasks.late_columns == ["adapter", "heat", "title"]
    row = {"title": "t", "text": "".join(PARTS), "adapter": "fr", "heat": 0.5}
    _, rounds = converse(tasks, row, "abcd")
    requests = [request for asked in rounds for request in asked]
    assert [request.adapter for request in requests] == ["fr"] * 4
    assert {request.params.values["temperature"] for request in requests} == {0.5}


def test_a_translation_is_truncated_even_if_its_segments_fit() -> None:
    """`max_tokens` limits the column, however the task splits it."""
    truncate = {"policy": "truncate", "column": "text", "max_tokens": 20, "marker": ""}
    keys = {"from": "en", "to": "fr", "column": "text", "prompt": TEXT, "second_try": False}
    tasks = tasks_of(a_job("translate", LENGTH=truncate, SAMPLING={"max_tokens": 20}, **keys))
    text = "\n\n".join(["words and words"] * 8)
    result, (asked,) = converse(tasks, {"text": text}, ["mots"] * 9)
    assert result.cells["truncated_tokens"] == 25
    assert len(asked) == 4


def test_a_completion_that_does_not_fit_has_no_reward() -> None:
    """The row is rejected only if none of its completions fits."""
    job = a_job("reward", completions="answers", prompt={"text": "{{ title }}"})
    rows = [
        {"title": "t", "answers": ["short", "long" * CONTEXT]},
        {"title": "t", "answers": ["long" * CONTEXT] * 2},
    ]
    some, none = answers(job, rows)
    assert some["error"] is None and some["best_index"] == 0 and some["rewards"][1] is None
    assert none["error"]["class"] == "prompt_too_long"
    entries = [entry for (entry,) in tasks_of(job).prepare(rows)]
    assert isinstance(entries[0], PreparedRow) and isinstance(entries[1], Reject)


def test_the_reject_names_the_model_whose_context_is_exceeded() -> None:
    """A task with its own model has its own context, and the message names the key to raise."""
    model = {"source": "fake", "engine": {"max_model_len": 20}}
    tasks = [
        {"kind": "generate", "name": "write"},
        {"kind": "reward", "name": "check", "model": model},
    ]
    job = make_job(tasks=tasks)
    auxiliary = {"tasks.check.model": TaskContext(FakeTokenizer(), 20)}
    ((write, check),) = tasks_of(job, auxiliary=auxiliary).prepare([{"text": "x" * 90}])
    assert isinstance(write, PreparedRow)
    assert isinstance(check, Reject) and check.reject_class is RejectClass.PROMPT_TOO_LONG
    assert "30 tokens and 0 for the answer exceed the context of 20" in check.message
    assert "raise tasks.check.model.engine.max_model_len or set length" in check.message


TRANSLATE = {"from": "en", "to": "fr", "column": "text"}
LOCATE = {"json_schema": NAMES, "locate": {"column": "text", "fields": ["names"]}}
STOP = {**ASK, "sampling": {"max_tokens": 9, "stop": ["."]}}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            a_job("embed", LENGTH={**CHUNK, "join": ASK}, prompt=TEXT),
            "length.join: embed joins its chunks by mean, not by a prompt",
        ),
        (
            a_job("tag", LENGTH={**CHUNK, "join": "mean"}, choices=CHOICES),
            "length.join: tag joins its chunks by union, or by a prompt, not by mean",
        ),
        (
            a_job("translate", LENGTH={**CHUNK, "join": "concatenate"}, **TRANSLATE),
            "length.join: this translate task cannot join chunks; use another policy",
        ),
        (
            a_job("score", LENGTH={**CHUNK, "join": "mean"}, completion="{{ title }}"),
            "length.join: this score task cannot join chunks",
        ),
        (
            a_job("reward", LENGTH={**CHUNK, "join": "mean"}, completions="answers"),
            "length.join: this reward task cannot join chunks",
        ),
        (
            a_job(
                "classify",
                LENGTH={**CHUNK, "join": {**ASK, "sampling": {"max_tokens": 1}}},
                choices=CHOICES,
            ),
            "length.join.sampling: the task writes no text; remove this key",
        ),
        (
            a_job("generate", LENGTH={**CHUNK, "join": STOP}),
            "length.join.sampling: the joined answer would have other columns than a chunk's",
        ),
        (
            a_job("generate", LENGTH={**CHUNK, "join": "concatenate"}, n=2),
            "length.join: generate joins its chunks by a prompt, not by concatenate",
        ),
        (
            a_job("extract", LENGTH={**CHUNK, "join": "union"}, **LOCATE),
            "length.join: extract joins its chunks by a prompt, not by union",
        ),
        (
            a_job(
                "extract",
                LENGTH={"policy": "truncate", "column": "text", "keep": "middle"},
                **LOCATE,
            ),
            "length.keep: task.locate gives offsets in text, which would be wrong in the truncated",
        ),
        (
            a_job("extract", CLEAN={"columns": ["text"], "steps": ["nfc"]}, **LOCATE),
            "clean.columns: task.locate returns offsets in text, which would refer to its cleaned",
        ),
    ],
)
def test_keys_that_cannot_be_combined_are_an_error(job: Job, message: str) -> None:
    """The message starts with the key and says what to change."""
    with pytest.raises(UserError) as raised:
        check_job(job)
    assert str(raised.value).startswith(message)


def test_samples_of_a_second_prompt_need_a_temperature() -> None:
    """Its sampling is checked like that of the first prompt."""
    join = {**ASK, "sampling": {"max_tokens": 9, "temperature": 0}}
    with pytest.raises(ValueError, match="at temperature 0"):
        a_job("generate", LENGTH={**CHUNK, "join": join}, n=2)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ("{policy: chunk, colum: text}", "length.colum: unknown key; did you mean column?"),
        ("{policy: truncate, column: text, max_tokens: 0}", "length.max_tokens: Input should"),
    ],
)
def test_errors_name_the_keys_of_the_job_file(length: str, message: str, tmp_path: Path) -> None:
    """The policy selects the section, but is not part of the key."""
    with pytest.raises(UserError) as raised:
        load_job(written(tmp_path), [f"length={length}"])
    assert f": {message}" in str(raised.value)


def test_the_second_prompts_sampling_may_use_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable's value is parsed as YAML, so it can be a number."""
    monkeypatch.setenv("MAX_TOKENS", "20")
    join = '{prompt: {text: "{{ parts }}"}, sampling: {max_tokens: "${MAX_TOKENS}"}}'
    job = load_job(written(tmp_path), [f"length={{policy: chunk, column: text, join: {join}}}"])
    (step,) = job.steps
    assert step.final is not None and step.final.sampling.values == {"max_tokens": 20}


def written(folder: Path) -> Path:
    """A job file."""
    path = folder / "job.yaml"
    path.write_text(make_job().to_yaml())
    return path
