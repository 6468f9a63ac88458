"""Run one row of a task: built from the keys of a job, with answers from a function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from tokenmill.engine.fake import FakeSettings, fake_config
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.reject import Reject
from tokenmill.request import Answer, Completion, Request
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.row_overrides import with_row_overrides
from tokenmill.tasks.task import Cells, Row, TaskContext


def make_job(**keys: Any) -> Job:
    """A job on the fake engine; its prompt is the row's `text`."""
    return Job.model_validate(
        {
            "name": "job",
            "input": {"path": "in"},
            "model": {"source": "fake"},
            "prompt": {"text": "{{ text }}"},
            "sampling": {"max_tokens": 16},
            "output": {"path": "out"},
            **keys,
        }
    )


def one_step(**keys: Any) -> TaskStep[Any]:
    """The only task of `make_job`."""
    (step,) = make_job(**keys).steps
    return step


class Asked:
    """One row's requests, and its result: cells or a reject."""

    def __init__(
        self,
        step: TaskStep[Any],
        row: Row,
        answers: Callable[[Request, int], Answer],
        tokenizer: Tokenizer | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        auxiliary = {key: TaskContext(FakeTokenizer(), 8192) for key in step.auxiliary_models}
        context = TaskContext(
            tokenizer or FakeTokenizer(),
            8192,
            config=fake_config(FakeSettings()),
            auxiliary=auxiliary,
            adapters=tuple(adapters),
        )
        task = with_row_overrides(step, context)
        self.requests: list[Request] = []
        (prepared,) = task.prepare([row])
        self.result: Cells | Reject = (
            prepared if isinstance(prepared, Reject) else self._hold(task.answer(prepared), answers)
        )
        if not isinstance(self.result, Reject):
            # Every cell is of its column's type.
            assert self.result.keys() == {field.name for field in step.fields}
            for field in step.fields:
                pa.array([self.result[field.name]], field.type)

    def _hold(self, dialogue: Any, answers: Callable[[Request, int], Answer]) -> Cells | Reject:
        try:
            requests = next(dialogue)
            while True:
                begin = len(self.requests)
                self.requests += requests
                requests = dialogue.send(
                    [answers(request, begin + at) for at, request in enumerate(requests)]
                )
        except StopIteration as end:
            result: Cells | Reject = end.value
            return result

    @property
    def cells(self) -> Mapping[str, Any]:
        assert not isinstance(self.result, Reject), self.result
        return self.result

    @property
    def reject(self) -> Reject:
        assert isinstance(self.result, Reject), self.result
        return self.result

    def sampled(self, name: str) -> list[Any]:
        """The values of a sampling parameter, one for each request."""
        return [request.params.values.get(name) for request in self.requests]


def completion(text: str = "an answer", **facts: Any) -> Completion:
    """An answer of four tokens with a log-probability of -2, except for `facts`."""
    usual = {
        "key": 0,
        "finish_reason": "stop",
        "num_input_tokens": 7,
        "num_generated_tokens": 4,
        "cumulative_logprob": -2.0,
    }
    return Completion(text=text, **{**usual, **facts})
