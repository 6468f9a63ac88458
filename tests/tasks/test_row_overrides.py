"""Sampling parameters and adapters from columns of the input."""

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from helpers.asking import Asked, completion, make_job, one_step
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.config.sampling import OVERRIDABLE
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request, Sampling
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.stages.render import Renderer
from tokenmill.tasks.row_overrides import WithRowOverrides
from tokenmill.tasks.row_tasks import RowTasks, input_columns
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext
from tokenmill.tasks.unit_tables import RenderedRows

WARM = {"max_tokens": 16, "temperature": 0.7, "seed": 5}


def ask(row: dict[str, Any], adapters: tuple[str, ...] = (), **keys: Any) -> Asked:
    return Asked(
        one_step(**keys),
        {"text": "a", **row},
        lambda _request, _at: completion(),
        adapters=adapters,
    )


def test_a_rows_values_replace_the_jobs() -> None:
    """Cells become sampling parameters of the row's request; the others are those of the job."""
    overrides = {"temperature": "warmth", "max_tokens": "length", "stop": "until"}
    asked = ask({"warmth": 1, "length": 40.0, "until": "."}, overrides=overrides, sampling=WARM)
    (request,) = asked.requests
    assert request.params.values == {
        "max_tokens": 40,
        "temperature": 1.0,
        "seed": 5,
        "stop": ["."],
    }
    assert request.params.max_tokens == 40


def test_a_null_cell_keeps_the_jobs_value() -> None:
    """A row without a value has exactly the parameters of a job without overrides."""
    asked = ask({"length": None}, overrides={"max_tokens": "length"}, sampling=WARM)
    assert asked.requests[0].params.values == WARM


def test_a_row_without_overrides_has_no_notes() -> None:
    """Nulls add nothing to the table that crosses to the engine's process."""
    tasks = RowTasks(make_job(overrides={"seed": "s"}).steps, TaskContext(FakeTokenizer(), 8192))
    ((entry,),) = tasks.prepare([{"text": "a", "s": None}])
    assert isinstance(entry, PreparedRow)
    assert entry.notes == {}


GOOD = {
    "temperature": [0, 0.7, 2, Decimal("0.5")],
    "top_p": [0.1, 1],
    "top_k": [-1, 0, 50],
    "min_p": [0, 1],
    "max_tokens": [1, 16.0, Decimal(3)],
    "min_tokens": [0, 3],
    "seed": [-(2**63), 0, 2**63 - 1],
    "presence_penalty": [-2, 2.0],
    "frequency_penalty": [-2, 2.0],
    "repetition_penalty": [0.1, 5],
    "stop": ["a", ["a", "b"], []],
    "structured_outputs": [
        '{"json": {"type": "object"}}',
        '{"json_object": true}',
        '{"choice": ["a", "b"]}',
    ],
}
BAD = {
    "temperature": [-0.1, 2.1, math.nan, math.inf, "0.5", True],
    "top_p": [0, 1.1, math.nan],
    "top_k": [-2, 0.5],
    "min_p": [-0.1, 1.1],
    "max_tokens": [0, -1, 1.5, "16", False, math.nan, math.inf],
    "min_tokens": [-1],
    "seed": [2**63, 0.5, "1"],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1, math.inf],
    "stop": ["", ["a", ""], [None], 5],
    "structured_outputs": [
        *("", "{", "[1]", '{"json": "a"}', '{"regex": "a"}', "[" * 10**5, {}),
        *('{"choice": []}', '{"choice": [""]}', '{"choice": [1]}', '{"choice": "a"}'),
    ],
}
#: What a value is called in the request, where that is not the value itself.
IN_REQUEST: dict[str, Any] = {
    "a": ["a"],
    '{"json": {"type": "object"}}': {"json": '{"type": "object"}'},
    '{"json_object": true}': {"json_object": True},
    '{"choice": ["a", "b"]}': {"choice": ["a", "b"]},
}


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_valid_values_reach_the_request(name: str) -> None:
    """Every value that vLLM accepts is accepted, whole numbers as floats and decimals as well."""
    for value in GOOD[name]:
        asked = ask({"own": value}, overrides={name: "own"})
        (found,) = asked.sampled(name)
        wanted = IN_REQUEST[value] if isinstance(value, str) else value
        assert found == wanted, value
        json.dumps(found)


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_an_invalid_value_rejects_its_row(name: str) -> None:
    """A value that vLLM would reject or misread gives a reject that names the column."""
    for value in BAD[name]:
        reject = ask({"own": value}, overrides={name: "own"}).reject
        assert reject.reject_class is RejectClass.BAD_OVERRIDE, value
        assert reject.message.startswith("the column own is "), value
        assert f"{name} must be " in reject.message, value
        assert reject.attempts == 0


@given(st.lists(st.none() | st.integers(-3, 3) | st.text(max_size=2), max_size=8))
def test_an_invalid_row_does_not_affect_the_others(cells: list[Any]) -> None:
    """Every row is prepared or rejected at its own position."""
    tasks = RowTasks(
        make_job(overrides={"max_tokens": "own"}).steps, TaskContext(FakeTokenizer(), 8192)
    )
    entries = tasks.prepare([{"text": f"row {at}", "own": own} for at, own in enumerate(cells)])
    for at, ((entry,), own) in enumerate(zip(entries, cells, strict=True)):
        if own is None or (isinstance(own, int) and own >= 1):
            assert isinstance(entry, PreparedRow)
            assert FakeTokenizer().decode(entry.prompts[0]) == f"row {at}"
        else:
            assert isinstance(entry, Reject)


def test_a_rows_seed_gives_its_samples_different_seeds() -> None:
    """The seeds of samples follow the row's seed as they follow the job's."""
    task = {"kind": "generate", "n": 3}
    asked = ask({"own": 100}, task=task, overrides={"seed": "own"}, sampling=WARM)
    assert asked.sampled("seed") == [100, 101, 102]


class Retrying:
    """A task with a second request that has more tokens and another seed."""

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [PreparedRow([[1]]) for _ in rows]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (prompt,) = prepared.prompts
        yield [Request(prompt, Sampling(WARM))]
        again = {**WARM, "max_tokens": 32, "seed": 6}
        yield [Request(prompt, Sampling(again))]
        return {}


def test_a_tasks_own_changes_have_precedence() -> None:
    """A second try keeps its own max_tokens; its seed keeps its distance to the row's."""
    overrides = {"max_tokens": "m", "seed": "s", "temperature": "t"}
    task = WithRowOverrides(Retrying(), one_step(overrides=overrides, sampling=WARM), ())
    (prepared,) = task.prepare([{"m": 8, "s": 100, "t": 1}])
    assert isinstance(prepared, PreparedRow)
    dialogue = task.answer(prepared)
    asked = [next(dialogue), dialogue.send([completion()])]
    assert [request.params.values for (request,) in asked] == [
        {"max_tokens": 8, "seed": 100, "temperature": 1},
        {"max_tokens": 32, "seed": 101, "temperature": 1},
    ]


def test_a_greedy_row_cannot_have_several_samples() -> None:
    """Temperature 0 in a row of a job with n > 1 is a reject: all samples would be equal."""
    task = {"kind": "generate", "n": 2}
    row = {"warmth": 0}
    overrides = {"temperature": "warmth"}
    reject = ask(row, task=task, overrides=overrides, sampling=WARM).reject
    assert reject.reject_class is RejectClass.BAD_OVERRIDE
    assert "equal" in reject.message
    assert ask(row, overrides=overrides, sampling=WARM).sampled("temperature") == [0]


def test_a_request_has_the_adapter_of_its_row() -> None:
    """The column's value is the name of an adapter; null is the model itself."""
    model = {"source": "fake", "adapters": {"fr": "somewhere"}}
    keys: dict[str, Any] = {"model": model, "adapter": "style"}
    assert ask({"style": "fr"}, ("fr",), **keys).requests[0].adapter == "fr"
    assert ask({"style": None}, ("fr",), **keys).requests[0].adapter is None


@pytest.mark.parametrize("name", ["de", "", "FR", 3, ["fr"]])
def test_an_unknown_adapter_rejects_its_row(name: Any) -> None:
    """A name that is not in the job never falls back to the model."""
    model = {"source": "fake", "adapters": {"fr": "somewhere"}}
    reject = ask({"style": name}, ("fr",), model=model, adapter="style").reject
    assert reject.reject_class is RejectClass.UNKNOWN_ADAPTER
    assert "the column style is" in reject.message


def test_the_columns_of_overrides_and_adapters_are_read() -> None:
    """They are read with the prompt's columns, and have their keys."""
    model = {"source": "fake", "adapters": {"fr": "somewhere"}}
    steps = make_job(model=model, adapter="style", overrides={"seed": "s"}).steps
    assert input_columns(steps) == {"text": "prompt.text", "s": "overrides", "style": "adapter"}


def test_overrides_cross_to_the_engines_process() -> None:
    """The table between the processes contains a row's values and adapter."""
    model = {"source": "fake", "adapters": {"fr": "somewhere"}}
    steps = make_job(model=model, adapter="style", overrides={"max_tokens": "m"}).steps
    tasks = RowTasks(steps, TaskContext(FakeTokenizer(), 8192, adapters=("fr",)))
    rows = pa.table(
        {
            "text": ["a", "b", "c"],
            "m": pa.array([3, None, 0], pa.int16()),
            "style": pa.array(["fr", None, None], pa.string()).dictionary_encode(),
            ROW_COLUMN: pa.array([0, 1, 2], pa.int64()),
        }
    )
    rendered = RenderedRows(Renderer(tasks, ()).render(rows))
    asked = []
    for row in range(3):
        dialogue = tasks.answer(rendered.entries(row), rendered.late(row))
        try:
            ((request,),) = (next(dialogue),)
        except StopIteration as end:
            asked.append(end.value.reject.reject_class)
        else:
            asked.append((request.params.max_tokens, request.adapter))
    assert asked == [(3, "fr"), (16, None), RejectClass.BAD_OVERRIDE]


def test_a_task_can_have_its_own_overrides() -> None:
    """In a list of tasks each has its own columns; a column may be that of an earlier task."""
    tasks = [
        {"kind": "generate", "name": "a", "overrides": {"seed": "s"}},
        {"kind": "generate", "name": "b", "overrides": {"stop": "a_generated_text"}},
        {"kind": "generate", "name": "c"},
    ]
    steps = make_job(tasks=tasks, overrides={"top_k": "k"}).steps
    assert [step.section.overrides for step in steps] == [
        {"seed": "s"},
        {"stop": "a_generated_text"},
        {"top_k": "k"},
    ]
    assert input_columns(steps).keys() == {"text", "s", "k"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"overrides": {"logprobs": "l"}}, "logprobs cannot be set by row"),
        ({"adapter": "style"}, "adapter: model.adapters is empty"),
        (
            {"model": {"source": "fake", "adapters": {"fr": "x"}}},
            "model.adapters: no task uses one",
        ),
        ({"model": {"source": "fake", "adapters": {"": "x"}}, "adapter": "a"}, "at least 1"),
    ],
)
def test_overrides_that_no_row_can_use_are_errors_of_the_job(
    keys: dict[str, Any], said: str
) -> None:
    """They are found when the job is loaded."""
    with pytest.raises(ValidationError) as caught:
        make_job(**keys)
    assert said in str(caught.value)


def test_adapters_are_part_of_the_fingerprint() -> None:
    """Another adapter under the same name is another job; the number of loaded ones is not."""

    def fingerprint(path: str, **engine: Any) -> str:
        model = {"source": "bundled:smollm2-135m", "adapters": {"fr": path}, "engine": engine}
        return make_job(model=model, adapter="style").fingerprint

    assert fingerprint("one") != fingerprint("two")
    assert fingerprint("one") == fingerprint("one", max_loras=4, max_cpu_loras=9)
    assert fingerprint("one") != fingerprint("one", max_lora_rank=64)
