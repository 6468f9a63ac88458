"""Length policies: long rows are rejected, truncated or chunked, and others are unchanged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Request
from tokenmill.run.checks import check_job
from tokenmill.tasks.length.reject import needed_tokens
from tokenmill.tasks.row_tasks import RowResult, RowTasks
from tokenmill.tasks.task import PreparedRow, TaskContext

# 60 tokens of three bytes; the answer takes 10.
CONTEXT = 60
TRUNCATE = {"policy": "truncate", "column": "text", "marker": "|"}
CHUNK = {"policy": "chunk", "column": "text", "join": "concatenate"}
ASK = {"prompt": {"text": "{{ title }}: {{ parts | join('+') }}"}}
TEXTS = st.text(st.sampled_from("ab .\n\n。é🧑\0"), max_size=600)


def a_job(**changes: Any) -> Job:
    """A job with the fake engine over the columns `title` and `text`."""
    return Job.model_validate(
        {
            "name": "long",
            "input": {"path": "in/*.parquet"},
            "model": {"source": "fake"},
            "prompt": {"text": "{{ title }}\n{{ text }}?"},
            "sampling": {"max_tokens": 10},
            "output": {"path": "out"},
            **changes,
        }
    )


def tasks(context: int = CONTEXT, **changes: Any) -> RowTasks:
    return RowTasks(a_job(**changes).steps, TaskContext(FakeTokenizer(), context))


def text_of(request: Request) -> str:
    data = b"".join(token.to_bytes(3) for token in request.prompt_token_ids)
    return data.rstrip(b"\xff").decode()


def upper(request: Request) -> Answer:
    """An answer that repeats the prompt in capitals."""
    text = text_of(request)
    return Completion(0, text.upper(), "stop", len(request.prompt_token_ids), 2, -3.0)


def run(
    row_tasks: RowTasks, row: Mapping[str, Any], reply: Callable[[Request], Answer] = upper
) -> tuple[RowResult, list[list[Request]]]:
    """A row's result, and the requests of each round."""
    (entries,) = row_tasks.prepare([row])
    late = {name: row[name] for name in row_tasks.late_columns}
    dialogue = row_tasks.answer(entries, late)
    rounds: list[list[Request]] = []
    answers: Sequence[Answer] | None = None
    try:
        while True:
            rounds.append(list(dialogue.send(answers)))  # type: ignore[arg-type]
            answers = [reply(request) for request in rounds[-1]]
    except StopIteration as end:
        return end.value, rounds


def prompts(rounds: Sequence[Sequence[Request]]) -> list[list[str]]:
    return [[text_of(request) for request in asked] for asked in rounds]


@pytest.mark.parametrize("length", [None, {"policy": "reject"}], ids=["no policy", "reject"])
def test_without_a_policy_a_long_row_is_rejected_before_it_is_sent(
    length: dict[str, Any] | None,
) -> None:
    """A row that just fits is prepared, and no column is added."""
    changes = {} if length is None else {"length": length}
    row_tasks = tasks(**changes)
    fitting, too_long = row_tasks.prepare(
        [{"title": "t", "text": "x" * 147}, {"title": "t", "text": "x" * 148}]
    )
    assert isinstance(fitting[0], PreparedRow) and len(fitting[0].prompts[0]) == CONTEXT - 10
    assert isinstance(too_long[0], Reject)
    assert too_long[0].reject_class is RejectClass.PROMPT_TOO_LONG
    assert "51 tokens and 10 for the answer exceed the context of 60" in too_long[0].message
    assert [field.name for field in row_tasks.fields][-1] == "mean_logprob"


@pytest.mark.parametrize("policy", [TRUNCATE, CHUNK, {**CHUNK, "join": ASK}])
def test_a_row_that_fits_is_answered_as_without_a_policy(policy: dict[str, Any]) -> None:
    """Its prompt and cells are the same, it has no notes, and two columns are added."""
    row = {"title": "t", "text": "short text"}
    plain, plain_rounds = run(tasks(), row)
    row_tasks = tasks(length=policy)
    result, rounds = run(row_tasks, row)
    assert prompts(rounds) == prompts(plain_rounds)
    assert result.cells == {**plain.cells, "truncated_tokens": 0, "num_chunks": 1}
    ((entry,),) = row_tasks.prepare([row])
    assert isinstance(entry, PreparedRow) and not entry.notes


@pytest.mark.parametrize(
    ("keep", "head", "tail"),
    [("head", "ti\naa", "|?"), ("tail", "ti\n|", "zz?"), ("middle", "ti\naa", "zz?")],
)
def test_a_truncated_prompt_fills_the_context(keep: str, head: str, tail: str) -> None:
    """The chosen end stays, a marker replaces the rest, and the answer has room."""
    text = "a" * 300 + "z" * 300
    result, rounds = run(tasks(length={**TRUNCATE, "keep": keep}), {"title": "ti", "text": text})
    ((request,),) = rounds
    assert CONTEXT - 5 <= needed_tokens(request) <= CONTEXT
    prompt = text_of(request)
    assert prompt.startswith(head) and prompt.endswith(tail) and prompt.count("|") == 1
    kept = len(prompt) - len("ti\n|?")
    assert result.cells["truncated_tokens"] == 200 - kept // 3
    assert result.cells["num_chunks"] == 1 and result.reject is None


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(["head", "tail", "middle"]), st.integers(0, 100), st.booleans())
def test_a_truncated_prompt_never_exceeds_the_context(
    text: str, keep: str, title: int, twice: bool
) -> None:
    """This holds for any text, even if the template uses it twice. Blank texts are rejected."""
    template = "{{ title }}{{ text }}{{ text }}" if twice else "{{ title }}{{ text }}"
    row_tasks = tasks(length={**TRUNCATE, "keep": keep}, prompt={"text": template})
    result, rounds = run(row_tasks, {"title": "t" * title + "x", "text": text})
    assert all(needed_tokens(request) <= CONTEXT for asked in rounds for request in asked)
    if result.reject is None:
        whole = len(f"{'t' * title}x{text}{text if twice else ''}".encode()) <= 150
        assert (result.cells["truncated_tokens"] == 0) == whole
    else:
        assert result.reject.reject_class is RejectClass.EMPTY_INPUT


def test_a_text_used_twice_is_not_cut_more_than_needed() -> None:
    """Each token takes two tokens of the context, and the prompt still fills it."""
    row_tasks = tasks(length=TRUNCATE, prompt={"text": "{{ text }}{{ text }}"})
    _, rounds = run(row_tasks, {"title": "t", "text": "x" * 900})
    ((request,),) = rounds
    assert CONTEXT - 6 <= needed_tokens(request) <= CONTEXT


def test_max_tokens_includes_the_marker() -> None:
    """The limit holds even if the context has room for more."""
    row_tasks = tasks(length={**TRUNCATE, "max_tokens": 5}, prompt={"text": "{{ text }}"})
    result, rounds = run(row_tasks, {"title": "t", "text": "x" * 60})
    assert prompts(rounds) == [["x" * 12 + "|"]]
    assert result.cells["truncated_tokens"] == 16
    result, rounds = run(row_tasks, {"title": "t", "text": "x" * 15})
    assert prompts(rounds) == [["x" * 15]] and result.cells["truncated_tokens"] == 0


def test_a_prompt_that_is_too_long_without_its_text_is_rejected() -> None:
    """The same holds if the column to cut has no text."""
    for policy in (TRUNCATE, CHUNK):
        result, _ = run(tasks(length=policy), {"title": "t" * 600, "text": "x"})
        assert result.reject is not None and "almost no text" in result.reject.message
        result, _ = run(tasks(length=policy), {"title": "t", "text": ["x"] * 600})
        assert result.reject is not None and "holds no text" in result.reject.message
        assert result.reject.reject_class is RejectClass.PROMPT_TOO_LONG


def test_each_row_is_truncated_independently() -> None:
    """Short, long, empty and rejected rows stay in their order."""
    row_tasks = tasks(length=TRUNCATE)
    texts = ["x", "y" * 900, "", "z" * 400, "w"]
    rows = [{"title": "t", "text": text} for text in texts]
    rows[-1]["title"] = "t" * 900
    entries = [entry for (entry,) in row_tasks.prepare(rows)]
    first = [
        text_of(Request(entry.prompts[0], a_job().params[0]))[2:3]
        if isinstance(entry, PreparedRow)
        else str(entry.reject_class)
        for entry in entries
    ]
    assert first == ["x", "y", "empty_input", "z", "prompt_too_long"]


def test_chunks_are_sent_together_and_concatenated() -> None:
    """All chunks are in one round, and their answers are joined by the separator."""
    text = "aaaa\n\nbbbb\n\ncccc"
    policy = {**CHUNK, "max_tokens": 8, "separator": " / "}
    row_tasks = tasks(length=policy, prompt={"text": "{{ text | trim }}"})
    result, rounds = run(row_tasks, {"title": "t", "text": text * 2})
    assert prompts(rounds) == [["aaaa\n\nbbbb\n\nccccaaaa", "bbbb\n\ncccc"]]
    assert result.cells == {
        "generated_text": "AAAA\n\nBBBB\n\nCCCCAAAA / BBBB\n\nCCCC",
        "finish_reason": "stop",
        "cumulative_logprob": -6.0,
        "mean_logprob": -1.5,
        "truncated_tokens": 0,
        "num_chunks": 2,
    }


@settings(max_examples=150, deadline=None)
@given(
    TEXTS,
    st.sampled_from(["paragraphs", "sentences", "tokens"]),
    st.none() | st.integers(8, 40),
    st.integers(0, 4),
)
def test_chunks_prompts_never_exceed_the_context(
    text: str, by: str, max_tokens: int | None, overlap: int
) -> None:
    """Together they hold all of the text except blank chunks."""
    policy = {**CHUNK, "by": by, "max_tokens": max_tokens, "overlap": overlap}
    row_tasks = tasks(length=policy, prompt={"text": "{{ title }}{{ text }}"})
    result, rounds = run(row_tasks, {"title": "t", "text": text})
    assert all(needed_tokens(request) <= CONTEXT for asked in rounds for request in asked)
    if result.reject is not None:
        assert result.reject.reject_class is RejectClass.EMPTY_INPUT and not text.strip()
        return
    (asked,) = prompts(rounds)
    assert len(asked) == result.cells["num_chunks"]
    if overlap == 0:
        joined = "".join(prompt[1:] for prompt in asked)
        assert "".join(joined.split()) == "".join(text.split())


def test_chunks_that_do_not_fit_are_made_smaller() -> None:
    """A template may expand one part of a text more than another. Every chunk fits."""
    prompt = {"text": "{{ text | replace('b', 'bbbb') }}"}
    result, rounds = run(
        tasks(length=CHUNK, prompt=prompt), {"title": "t", "text": "a" * 300 + "b" * 300}
    )
    assert result.reject is None
    assert all(needed_tokens(request) <= CONTEXT for asked in rounds for request in asked)
    assert "".join(prompts(rounds)[0]) == "a" * 300 + "b" * 1_200


def test_a_failed_chunk_rejects_its_row() -> None:
    """The reject is that of the chunk, and its message has the chunk's number."""

    def reply(request: Request) -> Answer:
        if "b" in text_of(request):
            return Reject(RejectClass.ENGINE_ERROR, "no", attempts=2)
        return upper(request)

    row_tasks = tasks(length={**CHUNK, "max_tokens": 8})
    result, _ = run(row_tasks, {"title": "t", "text": "a" * 24 + "b" * 24}, reply)
    assert result.reject == Reject(RejectClass.ENGINE_ERROR, "chunk 2 of 2: no", attempts=2)
    assert result.cells == {}


def test_a_second_prompt_joins_the_partial_answers() -> None:
    """It can use the list of answers and the row's columns."""
    policy = {**CHUNK, "max_tokens": 8, "join": {**ASK, "sampling": {"max_tokens": 20}}}
    row_tasks = tasks(length=policy, prompt={"text": "{{ text }}"})
    assert row_tasks.late_columns == ["title"] and set(row_tasks.columns) == {"title", "text"}
    result, rounds = run(row_tasks, {"title": "t", "text": "a" * 24 + "b" * 3})
    assert prompts(rounds) == [["a" * 24, "bbb"], [f"t: {'A' * 24}+BBB"]]
    assert rounds[1][0].params.max_tokens == 20
    assert result.cells["generated_text"] == f"T: {'A' * 24}+BBB"
    assert result.cells["num_chunks"] == 2


def test_partial_answers_that_do_not_fit_reject_the_row() -> None:
    """A second prompt that is too long is not cut silently."""
    policy = {**CHUNK, "max_tokens": 8, "join": ASK}
    result, rounds = run(tasks(length=policy), {"title": "t", "text": "a" * 240})
    assert len(rounds) == 1
    assert result.reject is not None
    assert result.reject.message.startswith("joining 10 chunks: the prompt's ")
    assert result.reject.reject_class is RejectClass.PROMPT_TOO_LONG


def test_each_task_has_its_own_policy_or_the_jobs() -> None:
    """A prompt that uses the answer of an earlier task fits too."""
    row_tasks = tasks(
        prompt=None,
        length=TRUNCATE,
        tasks=[
            {"kind": "generate", "name": "first", "prompt": {"text": "1{{ text }}"}},
            {
                "kind": "generate",
                "name": "second",
                "prompt": {"text": "2{{ first_generated_text }}{{ text }}"},
                "length": {**CHUNK, "column": "first_generated_text", "max_tokens": 20},
            },
        ],
    )
    result, rounds = run(row_tasks, {"text": "x" * 60})
    assert [field.name for field in row_tasks.fields if "tokens" in field.name] == [
        "first_truncated_tokens",
        "second_truncated_tokens",
    ]
    assert prompts(rounds) == [["1" + "x" * 60], ["2" + "1" + "X" * 59 + "x" * 60, "2X" + "x" * 60]]
    assert result.cells["first_num_chunks"] == 1 and result.cells["second_num_chunks"] == 2
    _, rounds = run(row_tasks, {"text": "x" * 120})
    assert all(needed_tokens(request) <= CONTEXT for asked in rounds for request in asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"length": {**TRUNCATE, "column": "body"}},
            "length.column: the task does not read body; it reads text, title",
        ),
        (
            {"length": {**CHUNK, "join": "mean"}},
            "length.join: generate joins its chunks by concatenate, or by a prompt",
        ),
        (
            {"length": {**CHUNK, "join": {"prompt": {"text": "{{ title }}"}}}},
            "length.join.prompt: no template uses parts, the list of the chunks' answers",
        ),
        (
            {"length": {**CHUNK, "join": {"prompt": {"text": "{{ parts"}}}},
            "length.join.prompt.text, line 1: unexpected end of template",
        ),
    ],
)
def test_a_policy_that_the_task_cannot_have_is_an_error(
    changes: dict[str, Any], message: str
) -> None:
    """The message names the key and the alternatives."""
    with pytest.raises(UserError) as raised:
        check_job(a_job(**changes))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({**TRUNCATE, "max_tokens": 50}, "leave nothing of the context of 60"),
        ({**TRUNCATE, "max_tokens": 1}, "no room for text next to the marker of 1 tokens"),
    ],
)
def test_max_tokens_must_leave_room(length: dict[str, Any], message: str) -> None:
    """There must be room for the rest of the prompt, and for text next to the marker."""
    with pytest.raises(UserError, match=message):
        tasks(length=length)


def test_the_answer_or_the_text_needs_a_limit() -> None:
    """Otherwise the text would leave a single token for the answer."""
    with pytest.raises(UserError, match=r"one of sampling.max_tokens and length.max_tokens"):
        tasks(length=TRUNCATE, sampling={"max_tokens": None})
    tasks(length={**TRUNCATE, "max_tokens": 20}, sampling={"max_tokens": None})


@pytest.mark.parametrize(
    ("length", "message"),
    [
        ({**CHUNK, "max_tokens": 20, "overlap": 11}, "more than half of max_tokens"),
        ({**CHUNK, "join": ASK, "separator": "x"}, "separator goes with join: concatenate"),
        ({**CHUNK, "join": {**ASK, "sampling": {}}}, "sampling.max_tokens is missing"),
        ({**CHUNK, "marker": "x"}, "marker"),
        ({"policy": "truncate"}, "column"),
        ({"policy": "shrink"}, "'reject', 'truncate', 'chunk'"),
    ],
)
def test_an_invalid_policy_is_an_invalid_job(length: dict[str, Any], message: str) -> None:
    """Keys of another policy, a missing column and impossible numbers are errors."""
    with pytest.raises(ValidationError, match=message):
        a_job(length=length)


def test_the_policy_is_part_of_the_fingerprint() -> None:
    """Changing the policy changes it; writing out the default does not."""
    assert a_job(length=TRUNCATE).fingerprint != a_job().fingerprint
    assert a_job(length={"policy": "reject"}).fingerprint == a_job().fingerprint


@pytest.mark.parametrize("policy", [TRUNCATE, CHUNK, {**CHUNK, "join": ASK}])
def test_a_job_with_a_policy_survives_json(policy: dict[str, Any]) -> None:
    """Processes exchange jobs as JSON, with all defaults."""
    job = a_job(length=policy, clean={"columns": ["text"], "steps": ["nfc"]})
    assert Job.model_validate_json(job.model_dump_json()) == job
