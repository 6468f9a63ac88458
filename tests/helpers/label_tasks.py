"""Label tasks with a scripted engine: a log-probability for each token."""

from collections.abc import Callable, Sequence
from typing import Any

from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import PreparedRow, TaskContext

from helpers.factories import job

CONTEXT = TaskContext(FakeTokenizer(), 8192)


BROKEN = Reject(RejectClass.ENGINE_ERROR, "the engine refuses this prompt", attempts=1)


LogProb = Callable[[Sequence[int], int], float]


def label_step(**task: Any) -> TaskStep[Any]:
    """A task with labels; by default classify with three of them."""
    task = {"kind": "classify", "choices": ["red", "green", "blue"], **task}
    prompt = task.pop("prompt", {"user": "{{ text }}"})
    (step,) = job({"prompt": prompt, "sampling": None, "task": task}).steps
    return step


def scripted(logprob: LogProb) -> Callable[[Request], Answer]:
    """An engine in which a token after a prompt has this log-probability."""

    def answer(request: Request) -> Answer:
        assert isinstance(request.params, Sampling)
        assert request.params.max_tokens == 1
        prompt, tokens = request.prompt_token_ids, request.params.values["logprob_token_ids"]
        found = {token: logprob(prompt, token) for token in tokens}
        return Completion(0, "", "length", len(prompt), 1, None, choice_logprobs=found)

    return answer


def rounds(task: Any, entry: Any, engine: Callable[[Request], Answer]) -> tuple[Any, list[Any]]:
    """The dialogue's result, and the requests of each of its rounds."""
    assert isinstance(entry, PreparedRow)
    dialogue, asked = task.answer(entry), []
    try:
        requests = next(dialogue)
        while True:
            asked.append(list(requests))
            requests = dialogue.send([engine(request) for request in requests])
    except StopIteration as end:
        return end.value, asked
