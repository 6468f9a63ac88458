"""Builders of small, complete values, in which a test changes one fact."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from tokenmill.job.job import Job
from tokenmill.plan.plan import RowGroup, Shard
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject
from tokenmill.request import Completion, Request, Sampling
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.tasks.kind import TaskKind, TaskStep
from tokenmill.tasks.row_tasks import RowTasks
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext
from tokenmill.tasks.unit_tables import Entries, rendered_table

_JOB: dict[str, Any] = {
    "name": "summaries",
    "input": {"path": "corpus/*.parquet"},
    "model": {"source": "fake"},
    "prompt": {"user": "{{ text }}"},
    "sampling": {"max_tokens": 16},
    "output": {"path": "out/summaries"},
}


def job_data(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A valid job's keys, with other values at dotted names: `{"input.limit": 5}`."""
    data = copy.deepcopy(_JOB)
    for name, value in (changes or {}).items():
        *parents, last = name.split(".")
        section = data
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return data


def job(changes: Mapping[str, Any] | None = None) -> Job:
    """A valid job, with other values at dotted names."""
    return Job.model_validate(job_data(changes))


def shard(path: str, *rows: int, num_bytes: int = 0) -> Shard:
    """A shard whose row groups have these numbers of rows, and `num_bytes` of text each."""
    return Shard(path, 1000, "v1", tuple(RowGroup(count, num_bytes) for count in rows))


def tools(max_model_len: int = 8192) -> TaskContext:
    """What tasks are built with, of the fake model."""
    return TaskContext(FakeTokenizer(), max_model_len)


def row_tasks(steps: Sequence[TaskStep[Any]] | None = None) -> RowTasks:
    """These tasks as one; by default those of `job()`: one that generates."""
    return RowTasks(job().steps if steps is None else steps, tools())


def rendered(prompts: Iterable[Sequence[int] | Reject]) -> pa.Table:
    """A unit rendered for one task: each row a prompt's token ids, or a reject."""
    return rendered_rows(
        [prompt if isinstance(prompt, Reject) else PreparedRow([prompt])] for prompt in prompts
    )


def rendered_rows(entries: Iterable[Entries], late: pa.Table | None = None) -> pa.Table:
    """A rendered unit without kept columns; each row has an entry a task."""
    rows = list(entries)
    kept = pa.table({ROW_COLUMN: pa.array(range(len(rows)), pa.int64())})
    return rendered_table(kept, rows, kept.select([]) if late is None else late)


class Scripted(TaskSection):
    """The section of a task whose rows are scripts: see `script`."""

    kind: Literal["scripted"] = "scripted"


SCRIPTED = TaskKind(
    name="scripted",
    section=Scripted,
    fields=lambda _: (pa.field("texts", pa.list_(pa.string())),),
    build=lambda step, _: ScriptedTask(step.sampling),
    starter=Starter("scripts", ""),
)


def scripted_step(sampling: Mapping[str, Any] | None = None) -> TaskStep[Scripted]:
    """A task whose rows are scripts: see `script`."""
    values = {"prompt": {"text": "{{ text }}"}, "sampling": sampling or {"max_tokens": 1}}
    return TaskStep(SCRIPTED, Scripted.model_validate(values))


class ScriptedTask:
    """Asks the prompts of its rounds; its cell is what came back, for a reject the class."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        raise NotImplementedError

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        prompts = iter(prepared.prompts)
        texts: list[str] = []
        for length in prepared.notes["rounds"]:
            answers = yield [Request(next(prompts), self._sampling) for _ in range(length)]
            texts += [
                answer.reject_class if isinstance(answer, Reject) else answer.text
                for answer in answers
            ]
        if prepared.notes["raises"]:
            raise ValueError("a mistake\nin the task")
        return {"texts": texts}


def script(*rounds: Sequence[Sequence[int]], raises: bool = False) -> PreparedRow:
    """A row of `scripted_step`: the prompts of its rounds, and whether it raises after them."""
    prompts = [prompt for prompts in rounds for prompt in prompts]
    return PreparedRow(prompts, {"rounds": [len(prompts) for prompts in rounds], "raises": raises})


def completion(
    text: str = "an answer", tokens: int = 4, logprob: float | None = -2.0
) -> Completion:
    """An answer of `tokens` tokens, with the sum of their log-probabilities."""
    return Completion(0, text, "stop", 7, tokens, logprob)


def strings_of_bytes(cells: Sequence[bytes]) -> pa.Array:
    """An Arrow string column that holds these bytes, UTF-8 or not, as broken files do."""
    ends = [0]
    for cell in cells:
        ends.append(ends[-1] + len(cell))
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(
        pa.string(), len(cells), [None, offsets, pa.py_buffer(b"".join(cells))]
    )


def text_of(tokens: Sequence[int]) -> str:
    """The text behind token ids of the fake tokenizer."""
    return b"".join(token.to_bytes(3) for token in tokens).rstrip(b"\xff").decode()


def token_counts(num_input_tokens: int, num_generated_tokens: int) -> dict[str, int]:
    """A row's token counts, by their columns."""
    return {"num_input_tokens": num_input_tokens, "num_generated_tokens": num_generated_tokens}
