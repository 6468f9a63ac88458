"""Several tasks for one row: at the same time or one after another, each with its own columns."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from helpers.dialogues import echo, hold
from helpers.factories import completion, row_tasks, text_of, tools
from tokenmill.errors import UserError
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer
from tokenmill.tasks.generation.generate import GENERATE, Generate
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.row_tasks import RowResult, RowTasks, answer_fields, input_columns
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext

REFUSED = Reject(RejectClass.ENGINE_ERROR, "the engine refuses this prompt", attempts=1)


def generate(name: str | None, prompt: str) -> TaskStep[Generate]:
    """A task with a plain prompt."""
    section = Generate(name=name, prompt={"text": prompt}, sampling={"max_tokens": 4})
    return TaskStep(GENERATE, section)


class FaultyTask:
    """A task that raises: in its dialogue, or already while it prepares rows."""

    def __init__(self, task: Task, where: str) -> None:
        self._task = task
        self._where = where

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        if self._where == "prepare":
            raise ZeroDivisionError("division\nby zero")
        return self._task.prepare(rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        yield from self._task.answer(prepared)
        raise KeyError("label")


def faulty(name: str, prompt: str, where: str = "answer") -> TaskStep[Generate]:
    def build(step: TaskStep[Generate], context: TaskContext) -> FaultyTask:
        return FaultyTask(GENERATE.build(step, context), where)

    return replace(generate(name, prompt), kind=replace(GENERATE, build=build))


def with_fields(step: TaskStep[Generate], *fields: pa.Field) -> TaskStep[Generate]:
    """The step with other output columns than those of its task."""
    return replace(step, kind=replace(GENERATE, fields=lambda _: fields))


def run_row(
    steps: Sequence[TaskStep[Any]],
    row: dict[str, Any],
    answer: Callable[[str], Answer] = echo,
) -> tuple[RowResult, list[list[str]]]:
    """A row's result, and the texts of its requests, round by round."""
    tasks = row_tasks(steps)
    (entries,) = tasks.prepare([row])
    late = {name: row[name] for name in tasks.late_columns}
    return hold(tasks.answer(entries, late), answer)


def names(cells: Cells, ending: str = "generated_text") -> dict[str, Any]:
    return {name: cell for name, cell in cells.items() if name.endswith(ending)}


def test_the_columns_of_an_unnamed_task_have_no_prefix() -> None:
    """A job of one task has the task's columns."""
    steps = [generate(None, "{{ x }}")]
    result, rounds = run_row(steps, {"x": "hi"})
    assert rounds == [["hi"]]
    assert result == RowResult(
        {
            "generated_text": "<hi>",
            "finish_reason": "stop",
            "cumulative_logprob": -1.0,
            "mean_logprob": -0.5,
        },
        None,
    )
    assert [field.name for field in answer_fields(steps)] == list(result.cells)


def test_columns_have_the_name_of_their_task_as_prefix() -> None:
    """They are in the order of the tasks, with the types of the tasks."""
    steps = [generate("topic", "{{ x }}"), generate("mood", "{{ x }}")]
    fields = answer_fields(steps)
    own = ["generated_text", "finish_reason", "cumulative_logprob", "mean_logprob"]
    assert [field.name for field in fields] == [
        *(f"topic_{name}" for name in own),
        *(f"mood_{name}" for name in own),
    ]
    assert fields[4].type == pa.string() and fields[6].type == pa.float64()
    result, _ = run_row(steps, {"x": "hi"})
    assert list(result.cells) == [field.name for field in fields]
    assert row_tasks(steps).fields == fields


def test_independent_tasks_share_a_round() -> None:
    """Their prompts, which share a prefix, are in the engine at the same time."""
    steps = [generate(name, f"{{{{ x }}}} {name}?") for name in "abc"]
    result, rounds = run_row(steps, {"x": "doc"})
    assert rounds == [["doc a?", "doc b?", "doc c?"]]
    assert names(result.cells) == {f"{name}_generated_text": f"<doc {name}?>" for name in "abc"}


def test_a_task_can_read_the_columns_of_an_earlier_task() -> None:
    """Translate, then judge the translation, with columns of the input as well."""
    steps = [
        generate("french", "Translate {{ text }}"),
        generate("judge", "{{ french_generated_text }} of {{ text }} in {{ tone }}?"),
    ]
    result, rounds = run_row(steps, {"text": "cat", "tone": "slang"})
    assert rounds == [["Translate cat"], ["<Translate cat> of cat in slang?"]]
    assert names(result.cells)["judge_generated_text"] == "<<Translate cat> of cat in slang?>"
    assert result.reject is None


def test_tasks_that_wait_for_the_same_task_share_a_round() -> None:
    """A task sends its requests as soon as the tasks that it follows have answered."""
    steps = [
        generate("a", "{{ x }}"),
        generate("b", "B {{ a_generated_text }}"),
        generate("c", "C {{ a_generated_text }}"),
        generate("d", "D {{ b_generated_text }} {{ c_generated_text }}"),
    ]
    _, rounds = run_row(steps, {"x": "x"})
    assert rounds == [["x"], ["B <x>", "C <x>"], ["D <B <x>> <C <x>>"]]


def test_a_task_can_only_follow_an_earlier_task() -> None:
    """A column with the name of a later task's column is one of the input."""
    steps = [generate("a", "{{ b_generated_text }}"), generate("b", "{{ x }}")]
    assert input_columns(steps) == {
        "b_generated_text": "tasks.a.prompt.text",
        "x": "tasks.b.prompt.text",
    }
    assert row_tasks(steps).late_columns == []


@pytest.mark.parametrize(
    ("prompts", "columns", "late_columns"),
    [
        (["{{ x }}"], {"x": "a"}, []),
        (["{{ x }}", "{{ y }}"], {"x": "a", "y": "b"}, []),
        (["{{ x }}", "{{ x }}{{ y }}"], {"x": "a", "y": "b"}, []),
        (["{{ x }}", "{{ a_finish_reason }}"], {"x": "a"}, []),
        (["{{ x }}", "{{ a_finish_reason }}{{ x }}{{ z }}"], {"x": "a", "z": "b"}, ["x", "z"]),
        (
            ["{{ x }}", "{{ a_finish_reason }}{{ z }}", "{{ z }}{{ w }}"],
            {"x": "a", "z": "b", "w": "c"},
            ["z"],
        ),
    ],
)
def test_the_input_columns_are_those_that_no_task_writes(
    prompts: list[str], columns: dict[str, str], late_columns: list[str]
) -> None:
    """Each has the first key that names it; late columns are read by a task that waits."""
    steps = [generate(name, text) for name, text in zip("abc", prompts, strict=False)]
    places = {column: f"tasks.{task}.prompt.text" for column, task in columns.items()}
    assert list(input_columns(steps).items()) == list(places.items())
    tasks = row_tasks(steps)
    assert (tasks.columns, tasks.late_columns) == (places, late_columns)


def test_a_failed_task_keeps_the_answers_of_the_others() -> None:
    """The error names the task and the reason; the other task's cells are present."""
    steps = [generate("topic", "T {{ x }}"), generate("mood", "M {{ x }}")]
    for failing, other in (("topic", "mood"), ("mood", "topic")):
        first = failing[0].upper()
        result, _ = run_row(
            steps,
            {"x": "x"},
            lambda text, first=first: REFUSED if text.startswith(first) else echo(text),
        )
        assert names(result.cells) == {f"{other}_generated_text": f"<{other[0].upper()} x>"}
        assert result.reject == Reject(
            RejectClass.ENGINE_ERROR, f"{failing}: {REFUSED.message}", attempts=1
        )


def test_of_several_failures_the_first_is_the_error() -> None:
    """A row has one error: that of the first task in the job's order."""
    steps = [generate("a", "{{ x }}"), generate("b", "{{ y }}"), generate("c", "{{ x }}")]
    result, rounds = run_row(steps, {"x": "x", "y": None}, lambda _: REFUSED)
    assert rounds == [["x", "x"]]
    assert result.cells == {}
    assert result.reject is not None and result.reject.message.startswith("a: ")
    result, _ = run_row(steps, {"x": "x", "y": None})
    assert result.reject is not None and result.reject.message.startswith("b: the column y is null")
    assert result.reject.reject_class is RejectClass.EMPTY_INPUT
    assert result.reject.attempts == 0


def test_the_reject_of_an_unnamed_task_has_no_prefix() -> None:
    """In a job with one task, the reject is that of the task."""
    result, _ = run_row([generate(None, "{{ x }}")], {"x": "x"}, lambda _: REFUSED)
    assert result == RowResult({}, REFUSED)


def test_a_task_that_follows_a_failed_task_sends_no_request() -> None:
    """It fails for the same reason; independent tasks continue."""
    steps = [
        generate("a", "A {{ x }}"),
        generate("b", "B {{ x }}"),
        generate("after_a", "{{ a_generated_text }}"),
        generate("after_both", "{{ b_generated_text }}{{ a_finish_reason }}"),
        generate("after_b", "{{ b_generated_text }}"),
    ]
    result, rounds = run_row(
        steps, {"x": "x"}, lambda text: REFUSED if text.startswith("A") else echo(text)
    )
    assert rounds == [["A x", "B x"], ["<B x>"]]
    assert list(names(result.cells)) == ["b_generated_text", "after_b_generated_text"]
    assert result.reject == Reject(RejectClass.ENGINE_ERROR, f"a: {REFUSED.message}", attempts=1)


def test_a_later_task_may_be_rejected_by_its_own_prompt() -> None:
    """An earlier answer can be empty, or make its template fail; that is its own reject."""
    for prompt, what in (
        ("{{ a_generated_text }}", RejectClass.EMPTY_INPUT),
        ("{% if 1 / (a_generated_text | length) %}{% endif %}", RejectClass.TEMPLATE_ERROR),
    ):
        steps = [generate("a", "{{ x }}"), generate("b", prompt)]
        empty = completion(text="", tokens=0)
        result, rounds = run_row(steps, {"x": "x"}, lambda _, empty=empty: empty)
        assert rounds == [["x"]]
        assert result.cells["a_generated_text"] == ""
        assert result.reject is not None
        assert result.reject.reject_class is what
        assert result.reject.message.startswith("b: ")


@pytest.mark.parametrize("position", [0, 1])
def test_a_task_that_raises_keeps_the_answers_of_the_others(position: int) -> None:
    """The exception becomes the task's reject, in one line."""
    steps: list[TaskStep[Any]] = [generate("good", "{{ x }}")]
    steps.insert(position, faulty("bad", "{{ x }}"))
    result, _ = run_row(steps, {"x": "x"})
    assert names(result.cells) == {"good_generated_text": "<x>"}
    assert result.reject == Reject(RejectClass.TASK_ERROR, "bad: KeyError: 'label'", attempts=1)


def test_a_task_that_raises_before_its_first_request_has_no_attempt() -> None:
    """The reject counts no attempt."""
    steps = [generate("a", "{{ x }}"), faulty("b", "{{ a_generated_text }}", "prepare")]
    result, _ = run_row(steps, {"x": "x"})
    assert names(result.cells) == {"a_generated_text": "<x>"}
    assert result.reject == Reject(
        RejectClass.TASK_ERROR, "b: ZeroDivisionError: division by zero", attempts=0
    )


def test_a_cell_without_a_field_rejects_the_task() -> None:
    """A task may only return cells for its fields."""
    whole = generate("a", "{{ x }}")
    talkative = with_fields(whole, *whole.fields[:2])
    result, _ = run_row([talkative, generate("b", "{{ x }}")], {"x": "x"})
    assert names(result.cells) == {"b_generated_text": "<x>"}
    assert result.reject is not None and "cumulative_logprob" in result.reject.message


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_rows_are_prepared_together(num_rows: int) -> None:
    """Every row has one entry a task, at its position; None if the task waits."""
    steps = [generate("a", "A{{ x }}"), generate("b", "{{ a_generated_text }}")]
    tasks = row_tasks(steps)
    rows = [{"x": None if number == 1 else str(number)} for number in range(num_rows)]
    prepared = tasks.prepare(rows)
    assert len(tasks) == 2
    assert [entries[1] for entries in prepared] == [None] * num_rows
    assert [
        text_of(*entry.prompts) if isinstance(entry, PreparedRow) else "rejected"
        for entry, _ in prepared
    ] == ["rejected" if number == 1 else f"A{number}" for number in range(num_rows)]


@pytest.mark.parametrize(
    "steps",
    [
        [generate("a", "{{ x }}"), generate("a", "{{ x }}")],
        [generate(None, "{{ x }}"), generate(None, "{{ x }}")],
    ],
    ids=["same name", "no names"],
)
def test_two_tasks_cannot_write_the_same_column(steps: list[TaskStep[Any]]) -> None:
    """The error names the column."""
    with pytest.raises(UserError, match=r"two tasks have the output column .*generated_text"):
        answer_fields(steps)
    with pytest.raises(UserError, match="two tasks have the output column"):
        RowTasks(steps, tools())


def test_prefixes_can_make_two_columns_equal() -> None:
    """Task `a` with a field `b_c` and task `a_b` with a field `c` is an error."""
    other = with_fields(generate("a", "{{ x }}"), pa.field("b_generated_text", pa.string()))
    message = "tasks.a_b.name: two tasks have the output column a_b_generated_text"
    with pytest.raises(UserError, match=re.escape(message)):
        answer_fields([other, generate("a_b", "{{ x }}")])
