"""Several tasks in one row: side by side or one after another, each with its own columns."""

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
    """A task with a mistake in it: in its dialogue, or already when it is prepared."""

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
    """The step with other output columns than its task writes."""
    return replace(step, kind=replace(GENERATE, fields=lambda _: fields))


def run_row(
    steps: Sequence[TaskStep[Any]],
    row: dict[str, Any],
    answer: Callable[[str], Answer] = echo,
) -> tuple[RowResult, list[list[str]]]:
    """What a row comes to, and the texts that it asks round by round."""
    tasks = row_tasks(steps)
    (entries,) = tasks.prepare([row])
    late = {name: row[name] for name in tasks.late_columns}
    return hold(tasks.answer(entries, late), answer)


def names(cells: Cells, ending: str = "generated_text") -> dict[str, Any]:
    return {name: cell for name, cell in cells.items() if name.endswith(ending)}


def test_a_task_without_a_name_has_columns_without_one() -> None:
    """A job of one task has the task's columns as they are."""
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


def test_columns_have_their_tasks_name_before_them() -> None:
    """Each task's columns begin with its name; they stand in the tasks' order, with their types."""
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


def test_tasks_that_do_not_follow_each_other_ask_in_one_round() -> None:
    """Their prompts, which share a prefix, are in the engine at the same time."""
    steps = [generate(name, f"{{{{ x }}}} {name}?") for name in "abc"]
    result, rounds = run_row(steps, {"x": "doc"})
    assert rounds == [["doc a?", "doc b?", "doc c?"]]
    assert names(result.cells) == {f"{name}_generated_text": f"<doc {name}?>" for name in "abc"}


def test_a_later_task_reads_an_earlier_ones_columns() -> None:
    """Translate, then judge the translation: beside the earlier column also the input's."""
    steps = [
        generate("french", "Translate {{ text }}"),
        generate("judge", "{{ french_generated_text }} of {{ text }} in {{ tone }}?"),
    ]
    result, rounds = run_row(steps, {"text": "cat", "tone": "slang"})
    assert rounds == [["Translate cat"], ["<Translate cat> of cat in slang?"]]
    assert names(result.cells)["judge_generated_text"] == "<<Translate cat> of cat in slang?>"
    assert result.reject is None


def test_later_tasks_that_wait_for_the_same_one_ask_in_one_round() -> None:
    """A task asks as soon as those that it follows have answered, beside the others that can."""
    steps = [
        generate("a", "{{ x }}"),
        generate("b", "B {{ a_generated_text }}"),
        generate("c", "C {{ a_generated_text }}"),
        generate("d", "D {{ b_generated_text }} {{ c_generated_text }}"),
    ]
    _, rounds = run_row(steps, {"x": "x"})
    assert rounds == [["x"], ["B <x>", "C <x>"], ["D <B <x>> <C <x>>"]]


def test_a_task_can_follow_one_that_stands_before_it_only() -> None:
    """A column of a later task is the input's: the tasks' order says who follows whom."""
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
def test_the_inputs_columns_are_those_that_no_task_makes(
    prompts: list[str], columns: dict[str, str], late_columns: list[str]
) -> None:
    """Each has the first place that names it; late are those that a task reads which waits."""
    steps = [generate(name, text) for name, text in zip("abc", prompts, strict=False)]
    places = {column: f"tasks.{task}.prompt.text" for column, task in columns.items()}
    assert list(input_columns(steps).items()) == list(places.items())
    tasks = row_tasks(steps)
    assert (tasks.columns, tasks.late_columns) == (places, late_columns)


def test_one_task_that_fails_leaves_the_others_answers() -> None:
    """The error names the task and says what it was; the other's cells are there."""
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


def test_of_several_failures_the_first_is_told() -> None:
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


def test_an_only_task_without_a_name_is_not_named() -> None:
    """Where a job has one task, its reject is as the task gave it."""
    result, _ = run_row([generate(None, "{{ x }}")], {"x": "x"}, lambda _: REFUSED)
    assert result == RowResult({}, REFUSED)


def test_a_task_that_follows_a_failed_one_asks_nothing() -> None:
    """It has no answer for the same reason; a task that follows another goes on."""
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
    """An earlier answer that is empty, or that its template fails on, is its own reject."""
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
def test_a_task_that_raises_leaves_the_others_answers(position: int) -> None:
    """A mistake in one task's dialogue is its reject, in one line; the other's answer is kept."""
    steps: list[TaskStep[Any]] = [generate("good", "{{ x }}")]
    steps.insert(position, faulty("bad", "{{ x }}"))
    result, _ = run_row(steps, {"x": "x"})
    assert names(result.cells) == {"good_generated_text": "<x>"}
    assert result.reject == Reject(RejectClass.TASK_ERROR, "bad: KeyError: 'label'", attempts=1)


def test_a_task_that_raises_while_it_is_prepared_late_was_not_tried() -> None:
    """What goes wrong before a request is a reject without an attempt."""
    steps = [generate("a", "{{ x }}"), faulty("b", "{{ a_generated_text }}", "prepare")]
    result, _ = run_row(steps, {"x": "x"})
    assert names(result.cells) == {"a_generated_text": "<x>"}
    assert result.reject == Reject(
        RejectClass.TASK_ERROR, "b: ZeroDivisionError: division by zero", attempts=0
    )


def test_a_cell_without_a_column_is_a_mistake_of_its_task() -> None:
    """A task gives cells for its section's fields and for no others."""
    whole = generate("a", "{{ x }}")
    talkative = with_fields(whole, *whole.fields[:2])
    result, _ = run_row([talkative, generate("b", "{{ x }}")], {"x": "x"})
    assert names(result.cells) == {"b_generated_text": "<x>"}
    assert result.reject is not None and "cumulative_logprob" in result.reject.message


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_rows_are_prepared_together(num_rows: int) -> None:
    """Every row has an entry a task, in its place; None where a task waits."""
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
    """Columns that would be there twice are refused by their name."""
    with pytest.raises(UserError, match=r"two tasks have the output column .*generated_text"):
        answer_fields(steps)
    with pytest.raises(UserError, match="two tasks have the output column"):
        RowTasks(steps, tools())


def test_names_that_run_into_each_other_are_refused() -> None:
    """`a` with a field `b_c` and `a_b` with a field `c` would write one column."""
    other = with_fields(generate("a", "{{ x }}"), pa.field("b_generated_text", pa.string()))
    message = "tasks.a_b.name: two tasks have the output column a_b_generated_text"
    with pytest.raises(UserError, match=re.escape(message)):
        answer_fields([other, generate("a_b", "{{ x }}")])
