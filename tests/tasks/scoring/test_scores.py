"""The score, embed, reward and rerank tasks, on scripted engines and on the fake engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenmill.engine.base import EngineInfo
from tokenmill.engine.fake import FakeEngine, FakeSettings, fake_config
from tokenmill.engine.multi_model import MultiModelEngine
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Pooling, Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.stages.load import resolve
from tokenmill.stages.render import Renderer
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.kinds import AnyTask, step_of
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.scoring.reward import RewardJudge, best_index
from tokenmill.tasks.scoring.score import score_cells, scoring_windows
from tokenmill.tasks.task import PreparedRow, Task, TaskContext
from tokenmill.tasks.unit_tables import answered_table

SETTINGS = FakeSettings()
CONTEXT = TaskContext(FakeTokenizer(), 64, fake_config(SETTINGS))
TEXT = {"prompt": {"text": "{{ text }}"}}


def step(kind: str, **keys: Any) -> TaskStep[Any]:
    """A task as it is in a resolved job."""
    return step_of(TypeAdapter(AnyTask).validate_python({"kind": kind, **keys}))


def joined(parts: Sequence[Mapping[str, Any]], kind: str, **keys: Any) -> Any:
    """The cells of chunks, combined by the kind's own join."""
    join = step(kind, **keys).join
    assert join is not None
    return join.cells(parts)


def job(**keys: Any) -> Job:
    """A job with the fake engine."""
    data = {
        "name": "numbers",
        "input": {"path": "corpus"},
        "model": {"source": "fake"},
        "output": {"path": "out"},
    }
    return Job.model_validate(data | keys)


def likely(request: Request) -> Completion:
    """A language model whose log-probability for the token at position i is -i."""
    logprobs = [-float(position) for position in range(1, len(request.prompt_token_ids))]
    return Completion(0, "", "length", 1, 1, None, prompt_logprobs=logprobs)


def number(request: Request) -> Completion:
    """A pooling model that returns the number of tokens."""
    vector = np.array([len(request.prompt_token_ids)], np.float32)
    return Completion(0, "", "stop", 1, 0, None, vector=vector)


def hold(task: Task, entry: PreparedRow | Reject, engine: Callable[[Request], Answer]) -> Any:
    """The result of a prepared row, with `engine` answering its requests; rejects pass through."""
    if isinstance(entry, Reject):
        return entry
    dialogue = task.answer(entry)
    requests = dialogue.send(None)  # type: ignore[arg-type]
    while True:
        try:
            requests = dialogue.send([engine(request) for request in requests])
        except StopIteration as end:
            return end.value


def ask(task: Task, row: dict[str, Any], engine: Callable[[Request], Answer]) -> Any:
    """The cells of a row, or its reject."""
    (entry,) = task.prepare([row])
    return hold(task, entry, engine)


@settings(deadline=None)
@given(data=st.data())
def test_windows_score_each_token_once_with_enough_context(data: st.DataObject) -> None:
    """Windows fit the length, cover each scored token once, and keep the promised context."""
    length = data.draw(st.integers(2, 40))
    stride = data.draw(st.integers(1, length - 1))
    end = data.draw(st.integers(2, 200))
    start = data.draw(st.integers(1, end - 1))
    windows = list(scoring_windows(start, end, length, stride))
    scored = [token for window in windows for token in range(window.first, window.end)]
    assert scored == list(range(start, end))
    for window in windows:
        assert window.end - window.begin <= length
        assert window.begin < window.first < window.end
        assert window.first - window.begin >= min(length - stride, window.first)


@settings(deadline=None)
@given(end=st.integers(2, 120), length=st.integers(2, 40))
def test_a_text_that_fits_is_one_window(end: int, length: int) -> None:
    """A text is divided only if it exceeds the window."""
    windows = list(scoring_windows(1, end, length, max(1, length // 2)))
    assert (len(windows) == 1) == (end <= length)
    assert windows[0].begin == 0


def test_a_text_is_scored_from_its_second_token() -> None:
    """Without a begin-of-text token, the first token and its bytes are not counted."""
    task = step("score", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "abcdefghi"}, likely)
    # Three tokens of three bytes each. The first has no prediction; the others have -1 and -2.
    assert row["num_scored_tokens"] == 2
    assert row["mean_logprob"] == -1.5
    assert row["perplexity"] == pytest.approx(math.exp(1.5))
    assert row["bits_per_byte"] == pytest.approx(3 / math.log(2) / 6)


def test_bits_per_byte_count_utf8_bytes() -> None:
    """A character outside ASCII counts all of its UTF-8 bytes."""
    task = step("score", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "日本語"}, likely)
    assert row["bits_per_byte"] == pytest.approx(3 / math.log(2) / 6)


def test_a_long_text_is_scored_in_windows() -> None:
    """Each window is a request that includes the overlap but scores only the new tokens."""
    task = step("score", window=4, stride=2, **TEXT).build(CONTEXT)
    (entry,) = task.prepare([{"text": "abc" * 7}])
    assert isinstance(entry, PreparedRow)
    assert [len(prompt) for prompt in entry.prompts] == [4, 4, 3]
    row = hold(task, entry, likely)
    # -1, -2, -3, then the last two tokens of the second window and the last one of the third.
    assert row["num_scored_tokens"] == 6
    assert row["mean_logprob"] == pytest.approx((-1 - 2 - 3 - 2 - 3 - 2) / 6)


def test_a_completion_is_scored_without_its_prompt() -> None:
    """Only the completion's tokens and bytes count; the prompt is context."""
    task = step("score", completion="{{ answer }}", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "abcdef", "answer": "xyzuvw"}, likely)
    assert row["num_scored_tokens"] == 2
    assert row["mean_logprob"] == -2.5
    assert row["bits_per_byte"] == pytest.approx(5 / math.log(2) / 6)


def test_a_completion_of_a_chat_starts_the_assistants_turn() -> None:
    """The completion follows the chat template's generation prompt."""
    task = step("score", prompt={"user": "{{ text }}"}, completion="{{ answer }}").build(CONTEXT)
    row = {"text": "a question", "answer": "xyzuvw"}
    (entry,) = task.prepare([row])
    assert isinstance(entry, PreparedRow)
    (chat,) = FakeTokenizer().encode_chats([[("user", "a question")]])
    (answer,) = FakeTokenizer().encode_continuations(["xyzuvw"])
    assert not isinstance(chat, Reject)
    assert entry.prompts == [[*chat, *answer]]
    assert hold(task, entry, likely)["num_scored_tokens"] == 2


def test_texts_too_short_to_score_are_rejected() -> None:
    """A text of one token or none has no prediction to score. Other rows are not affected."""
    task = step("score", prompt={"text": "{% if text %}{{ text }}{% endif %}"}).build(CONTEXT)
    short, empty, good = task.prepare([{"text": "abc"}, {"text": ""}, {"text": "abcdef"}])
    assert isinstance(short, Reject)
    assert isinstance(empty, Reject)
    assert {short.reject_class, empty.reject_class} == {RejectClass.EMPTY_INPUT}
    assert isinstance(good, PreparedRow)


@pytest.mark.parametrize("answer", [None, "", " "])
def test_a_row_without_a_completion_is_rejected(answer: str | None) -> None:
    """A null or blank completion is an empty input."""
    task = step("score", completion="{{ answer }}", **TEXT).build(CONTEXT)
    reject = ask(task, {"text": "abc", "answer": answer}, likely)
    assert reject.reject_class is RejectClass.EMPTY_INPUT


def test_a_failed_window_rejects_its_row() -> None:
    """A score of only some windows would not be the score of the text."""
    failure = Reject(RejectClass.ENGINE_ERROR, "no", 1)
    task = step("score", window=4, stride=2, **TEXT).build(CONTEXT)
    answers = iter([likely(Request([1] * 4, Pooling("embed"))), failure, failure])
    assert ask(task, {"text": "abc" * 7}, lambda _request: next(answers)) is failure


def test_impossible_text_has_infinite_perplexity() -> None:
    """A perplexity beyond the range of floats is infinite and does not stop the run."""
    task = step("score", **TEXT).build(CONTEXT)

    def impossible(_request: Request) -> Completion:
        return Completion(0, "", "length", 1, 1, None, prompt_logprobs=[-1000.0])

    assert ask(task, {"text": "abcdef"}, impossible)["perplexity"] == math.inf


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-20, -0.01), st.integers(1, 50), st.integers(1, 200)),
        min_size=1,
        max_size=5,
    )
)
def test_chunk_scores_combine_into_the_score_of_the_text(
    parts: Sequence[tuple[float, int, int]],
) -> None:
    """Means are weighted by tokens, and bits per byte by bytes."""
    cells = [score_cells(mean * count, count, size) for mean, count, size in parts]
    whole = joined(cells, "score", **TEXT)
    total = sum(mean * count for mean, count, _ in parts)
    tokens, size = sum(part[1] for part in parts), sum(part[2] for part in parts)
    assert whole["mean_logprob"] == pytest.approx(total / tokens)
    assert whole["bits_per_byte"] == pytest.approx(-total / math.log(2) / size)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": {"user": "{{ text }}"}}, "write prompt.text"),
        ({**TEXT, "window": 8, "stride": 8}, "stride (8) must be below window (8)"),
    ],
)
def test_impossible_score_jobs_are_errors(keys: dict[str, Any], message: str) -> None:
    """Scoring needs a plain text or a completion, and windows must overlap."""
    with pytest.raises(ValidationError) as failure:
        job(task={"kind": "score", **keys})
    assert message in str(failure.value)


@pytest.mark.parametrize(("keys", "key"), [({"window": 64}, "window"), ({"stride": 63}, "stride")])
def test_a_window_has_to_fit_the_model(keys: dict[str, Any], key: str) -> None:
    """The context must hold the window and one generated token; checked before an engine starts."""
    with pytest.raises(UserError, match=rf"task\.{key}: "):
        step("score", **keys, **TEXT).build(CONTEXT)


def test_errors_in_a_completion_template_name_its_key() -> None:
    """An error names the key and line of the completion's template, as do its columns."""
    with pytest.raises(UserError, match=r"task\.completion, line 1: "):
        _ = step("score", completion="{{ answer", **TEXT).columns
    assert step("score", completion="{{ answer }}", **TEXT).columns == {
        "answer": "task.completion",
        "text": "prompt.text",
    }


def test_the_schema_has_the_models_dimensions() -> None:
    """Dimensions come from the model's config.json, or from the job if it sets them."""
    (field,) = resolve(job(task={"kind": "embed", **TEXT})).steps[0].fields
    assert field.type == pa.list_(pa.float32(), 8)
    (field,) = step("embed", dimensions=384, dtype="float16", **TEXT).fields
    assert field.type == pa.list_(pa.float16(), 384)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_are_fixed_size_lists(dtype: str) -> None:
    """Vectors become a column of fixed-size lists, null for rejected rows."""
    resolved = resolve(job(task={"kind": "embed", "dtype": dtype, **TEXT}))
    table = run(resolved, FakeEngine(SETTINGS), pa.table({"text": ["one", None, "three"]}))
    vectors = table.column("embedding")
    assert vectors.type == pa.list_(pa.type_for_alias(dtype), 8)
    assert vectors.is_null().to_pylist() == [False, True, False]
    lengths = [np.linalg.norm(np.array(cell, np.float64)) for cell in vectors.to_pylist() if cell]
    assert lengths == pytest.approx([1, 1], abs=2e-3)


def test_an_embedding_that_overflows_its_type_is_rejected() -> None:
    """The largest float16 is 65,504; a vector with infinities is rejected."""
    task = step("embed", dtype="float16", normalize=False, **TEXT).build(CONTEXT)
    vector = np.array([1e6] * 8, np.float32)
    reject = ask(
        task, {"text": "abc"}, lambda _: Completion(0, "", "stop", 1, 0, None, vector=vector)
    )
    assert reject.reject_class is RejectClass.TASK_ERROR
    assert "float16" in reject.message


def test_only_shorter_embeddings_send_dimensions() -> None:
    """Models without Matryoshka support reject `dimensions`, so the full length is not sent."""
    full = step("embed", dimensions=8, **TEXT).build(CONTEXT)
    shorter = step("embed", dimensions=4, **TEXT).build(CONTEXT)
    sent = [next(task.answer(PreparedRow([[1]])))[0].params.values for task in (full, shorter)]
    assert [values.get("dimensions") for values in sent] == [None, 4]


@pytest.mark.parametrize(
    "config",
    [
        {"embedding_size": 8},
        {"embedding_size": 8, "matryoshka_dimensions": [2, 8]},
        {"embedding_size": 3, "is_matryoshka": True},
        {},
    ],
)
def test_unsupported_dimensions_are_an_error(config: dict[str, Any]) -> None:
    """The error comes before the first row, so that not every row is rejected."""
    with pytest.raises(UserError, match=r"task\.dimensions: "):
        step("embed", dimensions=4, **TEXT).build(TaskContext(FakeTokenizer(), 64, config))


def test_chunk_vectors_are_averaged() -> None:
    """The mean of the chunks' vectors is scaled to length 1."""
    parts = [{"embedding": np.array([1, 0])}, {"embedding": np.array([0, 1])}]
    vector = joined(parts, "embed", **TEXT)["embedding"]
    assert vector.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_a_reward_covers_the_prompt_and_the_completion() -> None:
    """The completion is the chat's last turn, or follows the plain text."""
    chat = step("reward", prompt={"user": "{{ text }}"}, completion="{{ answer }}").build(CONTEXT)
    row = {"text": "a question", "answer": "an answer"}
    turns = [("user", "a question"), ("assistant", "an answer")]
    (tokens,) = FakeTokenizer().encode_answered_chats([turns])
    assert not isinstance(tokens, Reject)
    assert ask(chat, row, number) == {"reward": len(tokens)}
    plain = step("reward", completion="{{ answer }}", **TEXT).build(CONTEXT)
    assert ask(plain, {"text": "abc", "answer": "defghi"}, number) == {"reward": 3}


def test_a_text_alone_has_a_reward() -> None:
    """Quality models judge a text without a completion."""
    task = step("reward", **TEXT).build(CONTEXT)
    assert ask(task, {"text": "abcdef"}, number) == {"reward": 2}


def test_a_list_of_completions_has_rewards_and_a_best_index() -> None:
    """A null completion has a null reward and is never the best."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    row = {"text": "abc", "answers": ["abc", None, "abcdefghi", "abcdef"]}
    assert ask(task, row, number) == {"rewards": [2, None, 4, 3], "best_index": 2}


def test_a_failed_completion_does_not_affect_the_others() -> None:
    """A row is rejected only if none of its completions can be judged."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    failure = Reject(RejectClass.PROMPT_TOO_LONG, "too long")

    def short_sighted(request: Request) -> Answer:
        return failure if len(request.prompt_token_ids) > 3 else number(request)

    row = {"text": "abc", "answers": ["abc", "abcdefghi"]}
    assert ask(task, row, short_sighted) == {"rewards": [2, None], "best_index": 0}
    assert ask(task, {**row, "answers": ["abcdefghi"]}, short_sighted) is failure


@pytest.mark.parametrize("answers", [None, [], [None]])
def test_a_row_without_completions_is_rejected(answers: list[str | None] | None) -> None:
    """A null list, an empty list, and a list of nulls are empty inputs."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    reject = ask(task, {"text": "abc", "answers": answers}, number)
    assert reject.reject_class is RejectClass.EMPTY_INPUT


def test_a_text_column_as_completions_is_an_error() -> None:
    """Otherwise each character would be judged. An error in the job stops the run."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    with pytest.raises(UserError, match=r"task\.completions: the column answers is not a list"):
        task.prepare([{"text": "abc", "answers": "abc"}])


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_the_best_is_the_first_of_the_largest_rewards(rewards: list[float | None]) -> None:
    """`best_index` is None if no completion was judged."""
    best = best_index(rewards)
    present = [reward for reward in rewards if reward is not None]
    if best is None:
        assert not present
    else:
        assert rewards[best] == max(present)
        assert rewards.index(max(present)) == best


@pytest.mark.parametrize("kind", ["reward", "rerank"])
def test_a_model_with_several_labels_is_an_error(kind: str) -> None:
    """The score of a classifier's first label would pass for a reward."""
    keys = TEXT if kind == "reward" else {"query": "{{ q }}", "document": "{{ d }}"}
    context = TaskContext(FakeTokenizer(), 64, {"num_labels": 3})
    with pytest.raises(UserError, match="3"):
        step(kind, **keys).build(context)


def test_a_token_reward_model_uses_the_last_token() -> None:
    """These models return one reward per token."""
    config = {"architectures": ["Qwen2ForRewardModel"], "num_labels": 2}
    task = step("reward", **TEXT).build(TaskContext(FakeTokenizer(), 64, config))
    requests: list[Request] = []

    def by_token(request: Request) -> Completion:
        requests.append(request)
        vector = np.array([[1], [2], [5]], np.float32)
        return Completion(0, "", "stop", 3, 0, None, vector=vector)

    assert ask(task, {"text": "abc"}, by_token) == {"reward": 5}
    assert isinstance(requests[0].params, Pooling)
    assert requests[0].params.task == "token_classify"


def test_a_pair_is_one_prompt_with_token_types() -> None:
    """Token types mark where the document begins."""
    task = step("rerank", query="{{ q }}", document="{{ d }}").build(CONTEXT)
    (entry,) = task.prepare([{"q": "abcdef", "d": "ghi"}])
    assert isinstance(entry, PreparedRow)
    (request,) = next(task.answer(entry))
    assert len(request.prompt_token_ids) == 3
    assert request.params.values["extra_kwargs"] == {"compressed_token_type_ids": 2}
    assert hold(task, entry, number) == {"relevance": 3}
    parts = [{"relevance": 1.0}, {"relevance": 2.0}]
    assert joined(parts, "rerank", query="{{ q }}", document="{{ d }}") == {"relevance": 2.0}


def test_rerank_has_no_prompt() -> None:
    """A rerank task has a query and a document; a prompt as well is an error."""
    keys = {"kind": "rerank", "query": "{{ q }}", "document": "{{ d }}"}
    rerank = job(task=keys)
    assert rerank.steps[0].columns == {"q": "task.query", "d": "task.document"}
    with pytest.raises(ValidationError, match="rerank tasks have no prompt"):
        job(task={**keys, **TEXT})
    with pytest.raises(ValidationError, match="no task of the job has a prompt"):
        job(task=keys, **TEXT)


def test_rewards_of_chunks_are_averaged() -> None:
    """Every chunk has the same weight."""
    assert joined([{"reward": 1.0}, {"reward": 2.0}], "reward", **TEXT) == {"reward": 1.5}


def run(job: Job, engine: Any, rows: pa.Table) -> pa.Table:
    """Run a table through render, scheduler and table stages, without Ray."""
    auxiliary = TaskContext(FakeTokenizer(), 64, fake_config(FakeSettings()))
    context = TaskContext(
        FakeTokenizer(),
        8192,
        auxiliary.config,
        dict.fromkeys(job.auxiliary_models, auxiliary),
    )
    tasks = RowTasks(job.steps, context)
    rows = rows.append_column(ROW_COLUMN, pa.array(range(len(rows)), pa.int64()))
    rendered = Renderer(tasks, []).render(rows)
    scheduler = Scheduler(engine, tasks)
    unit = scheduler.submit(rendered)
    while scheduler.has_work:
        scheduler.step()
    answers = [answer for answer in unit.answers if answer is not None]
    return answered_table(rendered, answers, tasks.fields)


TWO_MODELS: dict[str, Any] = {
    "prompt": {"user": "{{ text }}"},
    "sampling": {"max_tokens": 4},
    "tasks": [
        {"name": "draft", "kind": "generate"},
        {
            "name": "check",
            "kind": "reward",
            "model": {"source": "fake", "engine": {"max_model_len": 64}},
            "completion": "{{ draft_generated_text }}",
        },
    ],
}


def test_a_second_model_judges_the_answers_of_the_first() -> None:
    """Each request goes to the engine of its task's model."""
    two_models = job(**TWO_MODELS)
    assert list(two_models.auxiliary_models) == ["tasks.check.model"]
    assert two_models.runner == "generate"
    requests: dict[str, list[Request]] = {"writer": [], "judge": []}
    engine = MultiModelEngine(
        _RecordingEngine(SETTINGS, requests["writer"]),
        {"tasks.check.model": _RecordingEngine(FakeSettings(max_model_len=64), requests["judge"])},
    )
    table = run(two_models, engine, pa.table({"text": ["one", "two"]}))
    assert table.column("error").null_count == 2
    assert all(isinstance(reward, float) for reward in table.column("check_reward").to_pylist())
    assert {type(request.params).__name__ for request in requests["writer"]} == {"Sampling"}
    assert {type(request.params).__name__ for request in requests["judge"]} == {"Pooling"}
    assert len(requests["judge"]) == 2


def test_each_model_has_its_own_context() -> None:
    """A row too long for the judge is rejected, and the message names the judge's key."""
    engine = MultiModelEngine(
        FakeEngine(SETTINGS), {"tasks.check.model": FakeEngine(FakeSettings(max_model_len=10))}
    )
    assert engine.info.auxiliary == {"tasks.check.model": 10}
    table = run(job(**TWO_MODELS), engine, pa.table({"text": ["one " * 20]}))
    (error,) = table.column("error").to_pylist()
    assert error["class"] == "prompt_too_long"
    assert "tasks.check.model.engine.max_model_len" in error["message"]


def test_a_judge_next_to_a_writer_needs_its_own_model() -> None:
    """One engine cannot both write and judge, and some task must use the job's own model."""
    with pytest.raises(ValidationError, match="one model cannot both generate text"):
        job(
            tasks=[{**task, "model": None} for task in TWO_MODELS["tasks"]],
            prompt={"text": "{{ t }}"},
            sampling={"max_tokens": 1},
        )
    with pytest.raises(ValidationError, match="model: every task has its own"):
        job(task={"kind": "embed", "model": {"source": "fake"}, **TEXT})


def test_a_second_models_speed_is_not_in_the_fingerprint() -> None:
    """Answers do not depend on its memory, but they depend on its context."""
    first, faster, other = (
        job(
            **{
                **TWO_MODELS,
                "tasks": [
                    TWO_MODELS["tasks"][0],
                    {**TWO_MODELS["tasks"][1], "model": {"source": "a/b", "engine": engine}},
                ],
            }
        ).fingerprint
        for engine in ({}, {"gpu_memory_utilization": 0.3}, {"max_model_len": 32})
    )
    assert first == faster
    assert first != other


def test_a_judge_sends_requests_to_its_model() -> None:
    """A judge with a model key addresses that model and passes rejects through."""
    judge = RewardJudge(CONTEXT, model="task.best_of.reward")
    dialogue = judge.rewards([[1, 2], Reject(RejectClass.BAD_TEXT, "no"), [1, 2, 3]])
    requests = next(dialogue)
    assert {request.model for request in requests} == {"task.best_of.reward"}
    with pytest.raises(StopIteration) as end:
        dialogue.send([number(request) for request in requests])
    assert end.value.value == [2, Reject(RejectClass.BAD_TEXT, "no"), 3]


class _RecordingEngine(FakeEngine):
    """The fake engine, recording its requests."""

    info: EngineInfo

    def __init__(self, settings: FakeSettings, requests: list[Request]) -> None:
        super().__init__(settings)
        self._requests = requests

    def add(self, key: int, request: Request) -> None:
        self._requests.append(request)
        super().add(key, request)
