"""Kinds of tasks: the generic parts work for a kind that is defined in a test."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import pyarrow as pa
import pytest
from helpers.asking import make_job
from helpers.dialogues import hold
from pydantic import Field, ValidationError
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject
from tokenmill.request import Answer, Completion, Request, Sampling
from tokenmill.tasks.kind import Join, TaskKind, TaskStep
from tokenmill.tasks.kinds import TASK_KINDS, step_of
from tokenmill.tasks.row_tasks import RowResult, RowTasks, answer_fields, input_columns
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

CONTEXT = TaskContext(FakeTokenizer(), 60)
LONG = "call Ann. " * 12


class Redact(TaskSection):
    """`task: {kind: redact, mask: X}`: the section of the new kind."""

    kind: Literal["redact"] = "redact"
    mask: str = Field(default="X")


class Redactor:
    """One request a row; the mask replaces the first word of the answer."""

    def __init__(self, encoder: PromptEncoder, sampling: Sampling, mask: str) -> None:
        self._encoder = encoder
        self._sampling = sampling
        self._mask = mask

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            prompt if isinstance(prompt, Reject) else PreparedRow([prompt])
            for prompt in self._encoder.encode(rows)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (answer,) = yield [Request(prepared.prompts[0], self._sampling)]
        if isinstance(answer, Reject):
            return answer
        _, _, rest = answer.text.partition(" ")
        return {"redacted": f"{self._mask} {rest}", "num_masked": 1}


def joined(parts: Sequence[Cells]) -> Cells:
    """The concatenated texts, and the sum of masked words."""
    texts = "".join(part["redacted"] for part in parts)
    return {"redacted": texts, "num_masked": sum(part["num_masked"] for part in parts)}


REDACT = TaskKind(
    name="redact",
    section=Redact,
    fields=lambda _: (pa.field("redacted", pa.string()), pa.field("num_masked", pa.int32())),
    build=lambda step, context: Redactor(step.encoder(context), step.sampling, step.section.mask),
    join=lambda _: Join("concatenate", joined),
    starter=Starter("redactions", "prompt: {text: $text}\nsampling: {max_tokens: 9}\n"),
)


def redact(**keys: Any) -> TaskStep[Redact]:
    """A step of the new kind; its prompt prints the row's text."""
    values = {"prompt": {"text": "{{ text }}"}, "sampling": {"max_tokens": 10}, **keys}
    return TaskStep(REDACT, Redact.model_validate(values))


def upper(text: str) -> Answer:
    """An engine that answers in capital letters."""
    return Completion(0, text.upper(), "stop", 7, 2, -1.0)


def run(
    step: TaskStep[Redact], row: Mapping[str, Any], answer: Callable[[str], Answer] = upper
) -> tuple[RowResult, list[list[str]]]:
    """A row's result, and the texts of its requests, round by round."""
    tasks = RowTasks([step], CONTEXT)
    (entries,) = tasks.prepare([row])
    return hold(tasks.answer(entries, {name: row[name] for name in tasks.late_columns}), answer)


def test_a_new_kind_answers_rows() -> None:
    """It needs a section, output fields and a task; everything else has defaults."""
    step = redact(name="safe", mask="_")
    step.check()
    result, rounds = run(step, {"text": "Ann called"})
    assert rounds == [["Ann called"]]
    assert result == RowResult({"safe_redacted": "_ CALLED", "safe_num_masked": 1}, None)
    assert [field.name for field in answer_fields([step])] == list(result.cells)
    assert input_columns([step]) == {"text": "tasks.safe.prompt.text"}
    assert [params.max_tokens for params in step.params] == [10]


def test_a_new_kind_takes_overrides_and_adapters() -> None:
    """Columns for sampling parameters and adapters work for every kind."""
    step = redact(overrides={"temperature": "heat"}, adapter="style")
    assert input_columns([step]) == {"heat": "overrides", "style": "adapter", "text": "prompt.text"}
    context = TaskContext(FakeTokenizer(), 60, adapters=("fr",))
    tasks = RowTasks([step], context)
    (entries,) = tasks.prepare([{"text": "a", "heat": 0.5, "style": "fr"}])
    (request,) = next(tasks.answer(entries, {}))
    assert (request.params.values["temperature"], request.adapter) == (0.5, "fr")


def test_a_new_kinds_long_texts_are_truncated() -> None:
    """The prompt is cut to the context, and the row records how many tokens are missing."""
    step = redact(length={"policy": "truncate", "column": "text", "marker": ""})
    result, ((prompt,),) = run(step, {"text": LONG})
    assert LONG.startswith(prompt) and len(prompt) <= 150
    assert result.cells["num_masked"] == result.cells["num_chunks"] == 1


def test_a_new_kinds_chunks_are_joined_by_its_join() -> None:
    """Each chunk is answered like a row, and `join` makes one row of them."""
    chunk = {"policy": "chunk", "column": "text", "max_tokens": 20, "join": "concatenate"}
    result, (prompts,) = run(redact(length={**chunk, "separator": "|"}), {"text": LONG})
    assert "".join(prompts) == LONG and len(prompts) > 1
    assert result.cells["num_masked"] == result.cells["num_chunks"] == len(prompts)
    assert result.cells["redacted"].count("|") == len(prompts) - 1
    with pytest.raises(UserError, match=r"redact joins its chunks by concatenate, or by a prompt"):
        input_columns([redact(length={**chunk, "join": "mean"})])


def test_a_new_kinds_chunks_are_joined_by_a_prompt() -> None:
    """A second prompt reads the first column of the chunks' answers."""
    join = {"prompt": {"text": "{{ parts | length }} of {{ title }}"}}
    step = redact(length={"policy": "chunk", "column": "text", "max_tokens": 20, "join": join})
    assert input_columns([step]) == {"title": "length.join.prompt.text", "text": "prompt.text"}
    result, (chunks, last) = run(step, {"text": LONG, "title": "calls"})
    assert last == [f"{len(chunks)} of calls"]
    assert result.cells["redacted"] == "X OF CALLS"


def test_templates_are_compiled_once_a_step() -> None:
    """Each access to a step's columns uses the same compiled templates."""
    step = redact()
    assert step.columns == step.all_columns == {"text": "prompt.text"}
    assert step.templates is step.templates


@pytest.mark.parametrize("kind", TASK_KINDS, ids=lambda kind: kind.name)
def test_a_kind_and_its_section_have_the_same_name(kind: TaskKind[Any]) -> None:
    """The `kind` of the job file identifies exactly one of them."""
    assert get_args(kind.section.model_fields["kind"].annotation) == (kind.name,)
    assert [other.name for other in TASK_KINDS].count(kind.name) == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"kind": "score", "prompt": {"text": "{{ text }}"}, "retries": {"times": 1}},
            "retries: the task generates no text",
        ),
        (
            {"kind": "transcribe", "audio": "a", "language": "en", "prompt": {"text": "{{ a }}"}},
            "prompt: transcribe tasks have no prompt",
        ),
    ],
)
def test_a_key_that_a_kind_does_not_use_is_an_error(task: dict[str, Any], message: str) -> None:
    """It would be ignored, although the user expects an effect."""
    with pytest.raises(ValidationError) as refused:
        make_job(task=task, prompt=None)
    assert message in str(refused.value)


def test_a_step_names_its_missing_keys() -> None:
    """Prompt and sampling come from the job or the task; the error names the missing one."""
    step = step_of(TASK_KINDS[0].section(name="topic"))
    with pytest.raises(ValueError, match=r"tasks\.topic\.prompt is missing"):
        _ = step.prompt
    with pytest.raises(ValueError, match=r"tasks\.topic\.sampling is missing"):
        _ = step.sampling


@pytest.mark.parametrize(("name", "prefix"), [(None, ""), ("topic", "tasks.topic.")])
def test_a_step_names_the_key_of_each_column(name: str | None, prefix: str) -> None:
    """It is the key of the template that uses the column, with the task's name."""
    step = redact(name=name, prompt={"system": "{{ a }}", "user": "{{ b }}{{ a }}"})
    assert step.columns == {"a": f"{prefix}prompt.system", "b": f"{prefix}prompt.user"}
