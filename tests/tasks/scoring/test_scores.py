"""Tasks that give numbers: score, embed, reward, rerank; by scripted engines and the fake one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tokenmill.engine.base import EngineInfo, EngineResources
from tokenmill.engine.fake import FakeEngine, FakeSettings, fake_config
from tokenmill.engine.multi_model import MultiModelEngine, memory_shares
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Pooling, Request
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.stages import load as loading
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
    """A task as a job holds it."""
    return step_of(TypeAdapter(AnyTask).validate_python({"kind": kind, **keys}))


def joined(parts: Sequence[Mapping[str, Any]], kind: str, **keys: Any) -> Any:
    """The cells of chunks, joined as the kind joins them."""
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
    """A language model to which a token's log-probability is its place in the prompt, negative."""
    places = range(1, len(request.prompt_token_ids))
    return Completion(0, "", "length", 1, 1, None, prompt_logprobs=[-float(at) for at in places])


def number(request: Request) -> Completion:
    """A judge that counts tokens."""
    vector = np.array([len(request.prompt_token_ids)], np.float32)
    return Completion(0, "", "stop", 1, 0, None, vector=vector)


def hold(task: Task, entry: PreparedRow | Reject, engine: Callable[[Request], Answer]) -> Any:
    """A prepared row's result from an engine that is a function; a reject as it is."""
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
    """A row's cells, or its reject."""
    (entry,) = task.prepare([row])
    return hold(task, entry, engine)


@settings(deadline=None)
@given(data=st.data())
def test_windows_score_each_token_once_behind_enough_others(data: st.DataObject) -> None:
    """Windows fit the length, cover each scored token once, and leave the promised context."""
    length = data.draw(st.integers(2, 40))
    stride = data.draw(st.integers(1, length - 1))
    end = data.draw(st.integers(2, 200))
    start = data.draw(st.integers(1, end - 1))
    cuts = list(scoring_windows(start, end, length, stride))
    assert [at for cut in cuts for at in range(cut.first, cut.end)] == list(range(start, end))
    for cut in cuts:
        assert cut.end - cut.begin <= length
        assert cut.begin < cut.first < cut.end
        assert cut.first - cut.begin >= min(length - stride, cut.first)


@settings(deadline=None)
@given(end=st.integers(2, 120), length=st.integers(2, 40))
def test_a_text_that_fits_is_one_window(end: int, length: int) -> None:
    """The context is cut only where it must be."""
    cuts = list(scoring_windows(1, end, length, max(1, length // 2)))
    assert (len(cuts) == 1) == (end <= length)
    assert cuts[0].begin == 0


def test_a_text_is_scored_from_its_second_token_on() -> None:
    """Without a token for the beginning, the first one and its bytes do not count."""
    task = step("score", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "abcdefghi"}, likely)
    # Three tokens of three bytes, the first without a prediction: -1 and -2.
    assert row["num_scored_tokens"] == 2
    assert row["mean_logprob"] == -1.5
    assert row["perplexity"] == pytest.approx(math.exp(1.5))
    assert row["bits_per_byte"] == pytest.approx(3 / math.log(2) / 6)


def test_bytes_are_those_of_utf8() -> None:
    """A letter outside of ASCII counts as what it costs to store."""
    task = step("score", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "日本語"}, likely)
    assert row["bits_per_byte"] == pytest.approx(3 / math.log(2) / 6)


def test_a_long_text_is_scored_in_windows() -> None:
    """One request a window; each holds the overlap, and only what is new in it is counted."""
    task = step("score", window=4, stride=2, **TEXT).build(CONTEXT)
    (entry,) = task.prepare([{"text": "abc" * 7}])
    assert isinstance(entry, PreparedRow)
    assert [len(prompt) for prompt in entry.prompts] == [4, 4, 3]
    row = hold(task, entry, likely)
    # First -1 -2 -3, then the last two of the second window and the last of the third.
    assert row["num_scored_tokens"] == 6
    assert row["mean_logprob"] == pytest.approx((-1 - 2 - 3 - 2 - 3 - 2) / 6)


def test_a_completion_is_scored_without_its_prompt() -> None:
    """The prompt is read; only the completion's tokens and bytes count."""
    task = step("score", completion="{{ answer }}", **TEXT).build(CONTEXT)
    row = ask(task, {"text": "abcdef", "answer": "xyzuvw"}, likely)
    assert row["num_scored_tokens"] == 2
    assert row["mean_logprob"] == -2.5
    assert row["bits_per_byte"] == pytest.approx(5 / math.log(2) / 6)


def test_a_completion_of_a_chat_begins_at_the_assistants_turn() -> None:
    """The chat ends where the answer would begin."""
    task = step("score", prompt={"user": "{{ text }}"}, completion="{{ answer }}").build(CONTEXT)
    row = {"text": "a question", "answer": "xyzuvw"}
    (entry,) = task.prepare([row])
    assert isinstance(entry, PreparedRow)
    (chat,) = FakeTokenizer().encode_chats([[("user", "a question")]])
    (answer,) = FakeTokenizer().encode_continuations(["xyzuvw"])
    assert not isinstance(chat, Reject)
    assert entry.prompts == [[*chat, *answer]]
    assert hold(task, entry, likely)["num_scored_tokens"] == 2


def test_texts_without_a_prediction_are_rejected() -> None:
    """One token, or none: there is nothing to measure. The rows beside it are not touched."""
    task = step("score", prompt={"text": "{% if text %}{{ text }}{% endif %}"}).build(CONTEXT)
    short, empty, good = task.prepare([{"text": "abc"}, {"text": ""}, {"text": "abcdef"}])
    assert isinstance(short, Reject)
    assert isinstance(empty, Reject)
    assert {short.reject_class, empty.reject_class} == {RejectClass.EMPTY_INPUT}
    assert isinstance(good, PreparedRow)


@pytest.mark.parametrize("answer", [None, "", " "])
def test_a_row_without_a_completion_is_rejected(answer: str | None) -> None:
    """As one without a text."""
    task = step("score", completion="{{ answer }}", **TEXT).build(CONTEXT)
    reject = ask(task, {"text": "abc", "answer": answer}, likely)
    assert reject.reject_class is RejectClass.EMPTY_INPUT


def test_a_window_that_fails_rejects_its_row() -> None:
    """A mean over a part of the text would not be the text's."""
    failure = Reject(RejectClass.ENGINE_ERROR, "no", 1)
    task = step("score", window=4, stride=2, **TEXT).build(CONTEXT)
    answers = iter([likely(Request([1] * 4, Pooling("embed"))), failure, failure])
    assert ask(task, {"text": "abc" * 7}, lambda _request: next(answers)) is failure


def test_impossible_text_has_infinite_perplexity() -> None:
    """A number that no float holds does not stop the run."""
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
def test_chunks_join_to_the_score_of_the_whole(
    parts: Sequence[tuple[float, int, int]],
) -> None:
    """Means weigh as many tokens, bits per byte as many bytes, as they stand for."""
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
def test_a_job_that_cannot_score_is_refused(keys: dict[str, Any], message: str) -> None:
    """A chat is no text, and windows have to overlap."""
    with pytest.raises(ValidationError) as failure:
        job(task={"kind": "score", **keys})
    assert message in str(failure.value)


@pytest.mark.parametrize(
    ("keys", "place"), [({"window": 64}, "window"), ({"stride": 63}, "stride")]
)
def test_a_window_has_to_fit_the_model(keys: dict[str, Any], place: str) -> None:
    """Found before an engine starts: the context holds the window and the token that is written."""
    with pytest.raises(UserError, match=rf"task\.{place}: "):
        step("score", **keys, **TEXT).build(CONTEXT)


def test_a_completions_template_names_its_place() -> None:
    """A mistake in it is found where it stands."""
    with pytest.raises(UserError, match=r"task\.completion, line 1: "):
        _ = step("score", completion="{{ answer", **TEXT).columns
    assert step("score", completion="{{ answer }}", **TEXT).columns == {
        "answer": "task.completion",
        "text": "prompt.text",
    }


def test_an_embedding_has_the_models_dimensions_in_the_schema() -> None:
    """They are read from the model before the first row, and a job without a model says them."""
    (field,) = resolve(job(task={"kind": "embed", **TEXT})).steps[0].fields
    assert field.type == pa.list_(pa.float32(), 8)
    (field,) = step("embed", dimensions=384, dtype="float16", **TEXT).fields
    assert field.type == pa.list_(pa.float16(), 384)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_stand_in_arrow(dtype: str) -> None:
    """A unit's vectors become a column of fixed-size lists; a rejected row is null."""
    resolved = resolve(job(task={"kind": "embed", "dtype": dtype, **TEXT}))
    table = run(resolved, FakeEngine(SETTINGS), pa.table({"text": ["one", None, "three"]}))
    vectors = table.column("embedding")
    assert vectors.type == pa.list_(pa.type_for_alias(dtype), 8)
    assert vectors.is_null().to_pylist() == [False, True, False]
    lengths = [np.linalg.norm(np.array(cell, np.float64)) for cell in vectors.to_pylist() if cell]
    assert lengths == pytest.approx([1, 1], abs=2e-3)


def test_an_embedding_that_its_type_cannot_hold_is_rejected() -> None:
    """Float16 ends at 65,504; an infinite number is no answer."""
    task = step("embed", dtype="float16", normalize=False, **TEXT).build(CONTEXT)
    vector = np.array([1e6] * 8, np.float32)
    reject = ask(
        task, {"text": "abc"}, lambda _: Completion(0, "", "stop", 1, 0, None, vector=vector)
    )
    assert reject.reject_class is RejectClass.TASK_ERROR
    assert "float16" in reject.message


def test_shorter_embeddings_are_asked_of_the_model() -> None:
    """Only where they differ from its own: other models refuse to be asked."""
    own = step("embed", dimensions=8, **TEXT).build(CONTEXT)
    shorter = step("embed", dimensions=4, **TEXT).build(CONTEXT)
    asked = [next(task.answer(PreparedRow([[1]])))[0].params.values for task in (own, shorter)]
    assert [values.get("dimensions") for values in asked] == [None, 4]


@pytest.mark.parametrize(
    "config",
    [
        {"embedding_size": 8},
        {"embedding_size": 8, "matryoshka_dimensions": [2, 8]},
        {"embedding_size": 3, "is_matryoshka": True},
        {},
    ],
)
def test_dimensions_that_the_model_does_not_have_are_refused(config: dict[str, Any]) -> None:
    """Before the first row, in place of every row's reject."""
    with pytest.raises(UserError, match=r"task\.dimensions: "):
        step("embed", dimensions=4, **TEXT).build(TaskContext(FakeTokenizer(), 64, config))


def test_chunks_join_to_one_vector() -> None:
    """The mean of the chunks', again of length 1."""
    parts = [{"embedding": np.array([1, 0])}, {"embedding": np.array([0, 1])}]
    vector = joined(parts, "embed", **TEXT)["embedding"]
    assert vector.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_a_reward_is_of_the_prompt_and_the_completion() -> None:
    """The completion is the chat's last turn, or follows the plain text."""
    chat = step("reward", prompt={"user": "{{ text }}"}, completion="{{ answer }}").build(CONTEXT)
    row = {"text": "a question", "answer": "an answer"}
    turns = [("user", "a question"), ("assistant", "an answer")]
    (tokens,) = FakeTokenizer().encode_answered_chats([turns])
    assert not isinstance(tokens, Reject)
    assert ask(chat, row, number) == {"reward": len(tokens)}
    plain = step("reward", completion="{{ answer }}", **TEXT).build(CONTEXT)
    assert ask(plain, {"text": "abc", "answer": "defghi"}, number) == {"reward": 3}


def test_a_text_alone_has_a_reward_too() -> None:
    """As a quality model gives it, which knows no prompt."""
    task = step("reward", **TEXT).build(CONTEXT)
    assert ask(task, {"text": "abcdef"}, number) == {"reward": 2}


def test_a_list_of_completions_has_a_list_of_rewards_and_a_best() -> None:
    """A null completion has a null reward and is never the best."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    row = {"text": "abc", "answers": ["abc", None, "abcdefghi", "abcdef"]}
    assert ask(task, row, number) == {"rewards": [2, None, 4, 3], "best_index": 2}


def test_a_completion_that_fails_leaves_the_others_their_rewards() -> None:
    """Only a row none of whose completions can be judged is rejected."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    failure = Reject(RejectClass.PROMPT_TOO_LONG, "too long")

    def short_sighted(request: Request) -> Answer:
        return failure if len(request.prompt_token_ids) > 3 else number(request)

    row = {"text": "abc", "answers": ["abc", "abcdefghi"]}
    assert ask(task, row, short_sighted) == {"rewards": [2, None], "best_index": 0}
    assert ask(task, {**row, "answers": ["abcdefghi"]}, short_sighted) is failure


@pytest.mark.parametrize("answers", [None, [], [None]])
def test_a_row_without_completions_is_rejected(answers: list[str | None] | None) -> None:
    """There is nothing to judge."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    reject = ask(task, {"text": "abc", "answers": answers}, number)
    assert reject.reject_class is RejectClass.EMPTY_INPUT


def test_a_column_of_texts_is_no_list_of_completions() -> None:
    """Else each letter would be judged; a mistake of the job stops the run."""
    task = step("reward", completions="answers", **TEXT).build(CONTEXT)
    with pytest.raises(UserError, match=r"task\.completions: the column answers holds no lists"):
        task.prepare([{"text": "abc", "answers": "abc"}])


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_the_best_is_the_first_of_the_largest(rewards: list[float | None]) -> None:
    """None where nothing was judged."""
    best = best_index(rewards)
    known = [reward for reward in rewards if reward is not None]
    if best is None:
        assert not known
    else:
        assert rewards[best] == max(known)
        assert rewards.index(max(known)) == best


@pytest.mark.parametrize("kind", ["reward", "rerank"])
def test_a_model_with_several_labels_gives_no_number(kind: str) -> None:
    """A classifier's label would be taken for a reward."""
    keys = TEXT if kind == "reward" else {"query": "{{ q }}", "document": "{{ d }}"}
    tools = TaskContext(FakeTokenizer(), 64, {"num_labels": 3})
    with pytest.raises(UserError, match="3 labels"):
        step(kind, **keys).build(tools)


def test_a_token_reward_model_is_read_at_the_last_token() -> None:
    """These models give a number a token."""
    config = {"architectures": ["Qwen2ForRewardModel"], "num_labels": 2}
    task = step("reward", **TEXT).build(TaskContext(FakeTokenizer(), 64, config))
    asked: list[Request] = []

    def by_token(request: Request) -> Completion:
        asked.append(request)
        vector = np.array([[1], [2], [5]], np.float32)
        return Completion(0, "", "stop", 3, 0, None, vector=vector)

    assert ask(task, {"text": "abc"}, by_token) == {"reward": 5}
    assert isinstance(asked[0].params, Pooling)
    assert asked[0].params.task == "token_classify"


def test_a_pair_is_one_prompt_with_token_types() -> None:
    """A cross-encoder knows by them where the document begins."""
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
    """Its query and document are what it asks by; a prompt beside them would be a mistake."""
    keys = {"kind": "rerank", "query": "{{ q }}", "document": "{{ d }}"}
    made = job(task=keys)
    assert made.steps[0].columns == {"q": "task.query", "d": "task.document"}
    with pytest.raises(ValidationError, match="rerank tasks have no prompt"):
        job(task={**keys, **TEXT})
    with pytest.raises(ValidationError, match="no task of the job has a prompt"):
        job(task=keys, **TEXT)


def test_rewards_of_chunks_are_averaged() -> None:
    """Each chunk weighs the same."""
    assert joined([{"reward": 1.0}, {"reward": 2.0}], "reward", **TEXT) == {"reward": 1.5}


def run(made: Job, engine: Any, rows: pa.Table) -> pa.Table:
    """A table through all stages but Ray's."""
    side = TaskContext(FakeTokenizer(), 64, fake_config(FakeSettings()))
    tools = TaskContext(
        FakeTokenizer(), 8192, side.config, dict.fromkeys(made.auxiliary_models, side)
    )
    tasks = RowTasks(made.steps, tools)
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


def test_a_second_model_judges_what_the_first_has_written() -> None:
    """Both stand in one job; a request goes to the engine of its task's model."""
    made = job(**TWO_MODELS)
    assert list(made.auxiliary_models) == ["tasks.check.model"]
    assert made.runner == "generate"
    asked: dict[str, list[Request]] = {"writer": [], "judge": []}
    team = MultiModelEngine(
        _Listener(SETTINGS, asked["writer"]),
        {"tasks.check.model": _Listener(FakeSettings(max_model_len=64), asked["judge"])},
    )
    table = run(made, team, pa.table({"text": ["one", "two"]}))
    assert table.column("error").null_count == 2
    assert all(isinstance(reward, float) for reward in table.column("check_reward").to_pylist())
    assert {type(request.params).__name__ for request in asked["writer"]} == {"Sampling"}
    assert {type(request.params).__name__ for request in asked["judge"]} == {"Pooling"}
    assert len(asked["judge"]) == 2


def test_each_model_has_its_own_context() -> None:
    """A row that is too long for the judge says so, by the judge's place in the job."""
    team = MultiModelEngine(
        FakeEngine(SETTINGS), {"tasks.check.model": FakeEngine(FakeSettings(max_model_len=10))}
    )
    assert team.info.beside == {"tasks.check.model": 10}
    table = run(job(**TWO_MODELS), team, pa.table({"text": ["one " * 20]}))
    (error,) = table.column("error").to_pylist()
    assert error["class"] == "prompt_too_long"
    assert "tasks.check.model.engine.max_model_len" in error["message"]


def test_an_engine_without_work_is_left_alone() -> None:
    """A step of vLLM with nothing to do would wait for ever in a process of its own."""

    class Waiting(FakeEngine):
        open = 0

        def add(self, key: int, request: Request) -> None:
            self.open += 1
            super().add(key, request)

        def step(self) -> Sequence[Completion]:
            assert self.open
            ended = super().step()
            self.open -= len(ended)
            return ended

    team = MultiModelEngine(Waiting(SETTINGS), {"judge": Waiting(SETTINGS)})
    ended = []
    for key, model in enumerate(["judge", None, "judge"]):
        team.add(key, Request([key], Pooling("classify"), model=model))
        ended += team.step()
    ended += team.step()
    assert [completion.key for completion in ended] == [0, 1, 2]


def test_a_judge_beside_a_writer_needs_a_model_of_its_own() -> None:
    """One engine cannot both write and judge; nor can a job do without its own model."""
    with pytest.raises(ValidationError, match="one model cannot both generate text"):
        job(
            tasks=[{**task, "model": None} for task in TWO_MODELS["tasks"]],
            prompt={"text": "{{ t }}"},
            sampling={"max_tokens": 1},
        )
    with pytest.raises(ValidationError, match="model: every task has its own"):
        job(task={"kind": "embed", "model": {"source": "fake"}, **TEXT})


def test_how_fast_a_second_model_is_may_change_between_runs() -> None:
    """Its memory is no part of what the answers depend on; its context is."""
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


def test_a_judge_sends_its_requests_to_its_model() -> None:
    """As a task does that chooses the best of its own answers."""
    judge = RewardJudge(CONTEXT, model="task.best_of.reward")
    dialogue = judge.rewards([[1, 2], Reject(RejectClass.BAD_TEXT, "no"), [1, 2, 3]])
    requests = next(dialogue)
    assert {request.model for request in requests} == {"task.best_of.reward"}
    with pytest.raises(StopIteration) as end:
        dialogue.send([number(request) for request in requests])
    assert end.value.value == [2, Reject(RejectClass.BAD_TEXT, "no"), 3]


def test_tasks_of_the_same_model_share_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places that name one model are one engine, which answers the requests of both."""
    loaded: list[FakeEngine] = []

    def load(settings: FakeSettings) -> FakeEngine:
        loaded.append(FakeEngine(settings))
        return loaded[-1]

    monkeypatch.setattr(loading, "FakeEngine", load)
    judges = [{**TWO_MODELS["tasks"][1], "name": name} for name in ("judge", "again")]
    two = job(**{**TWO_MODELS, "tasks": [TWO_MODELS["tasks"][0], *judges]})
    team = loading.load_engine(two, EngineResources(0, 1))
    assert len(loaded) == 2
    for key, name in enumerate(("judge", "again")):
        team.add(key, Request([1], Pooling("classify"), model=f"tasks.{name}.model"))
    ended: list[Completion] = []
    while len(ended) < 2:
        ended += team.step()
    assert sorted(completion.key for completion in ended) == [0, 1]


def test_models_share_a_gpus_memory() -> None:
    """What a job does not set is shared out; a job that leaves nothing is refused."""
    assert memory_shares({}, {}) == {None: 0.95}
    assert memory_shares({}, {"a": {}}) == {None: 0.7, "a": 0.25}
    assert memory_shares({}, {"a": {"gpu_memory_utilization": 0.5}}) == {None: 0.45, "a": 0.5}
    assert memory_shares({"gpu_memory_utilization": 0.6}, {"a": {}}) == {None: 0.6, "a": 0.25}
    with pytest.raises(UserError, match="leave no memory"):
        memory_shares({}, {"a": {"gpu_memory_utilization": 0.95}})


class _Listener(FakeEngine):
    """The fake engine, and what it was asked."""

    info: EngineInfo

    def __init__(self, settings: FakeSettings, asked: list[Request]) -> None:
        super().__init__(settings)
        self._asked = asked

    def add(self, key: int, request: Request) -> None:
        self._asked.append(request)
        super().add(key, request)
