"""The length policy `reject`, and whether a request fits its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext


def needed_tokens(request: Request) -> int:
    """The prompt's tokens and the longest answer's; an answer without a limit needs one."""
    max_tokens = request.params.max_tokens
    return len(request.prompt_token_ids) + (1 if max_tokens is None else max_tokens)


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """How many tokens each model holds.

    `own` is the limit of the model that answers requests that name none, and `model_key` its key
    in the job. `auxiliary` are those of the other models, by their keys.
    """

    own: int
    auxiliary: Mapping[str, int] = field(default_factory=dict)
    model_key: str = "model"

    def of(self, request: Request) -> int:
        """Those of the request's model."""
        return self.own if request.model is None else self.auxiliary[request.model]

    def excess(self, request: Request) -> int:
        """By how many tokens a request exceeds its context; at most 0 for one that fits."""
        return needed_tokens(request) - self.of(request)

    def too_long(self, request: Request) -> Reject | None:
        """The reject of a request that does not fit: vLLM would cut its answer without a word."""
        needed, num_tokens = needed_tokens(request), len(request.prompt_token_ids)
        if needed <= self.of(request):
            return None
        return Reject(
            RejectClass.PROMPT_TOO_LONG,
            f"the prompt's {num_tokens} tokens and {needed - num_tokens} for the answer exceed the "
            f"context of {self.of(request)}; raise {request.model or self.model_key}.engine."
            "max_model_len or set length",
        )


class FittedTask(Protocol):
    """A task with its length policy; `row` holds what the row's tasks read beside the engine."""

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        """One entry a row, in order."""

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:
        """The dialogue that ends with a cell for each of the task's and the policy's fields."""


class Whole:
    """The policy `reject`: what does not fit is found before it is sent anywhere."""

    def __init__(self, task: Task, step: TaskStep[Any], context: TaskContext) -> None:
        self._task = task
        self._contexts = contexts_of(step, context)
        # Below it nothing is looked at more closely: the scheduler finds the rest.
        self._sure = context.max_model_len - longest_answer(step)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [self._checked(entry) for entry in self._task.prepare(rows)]

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG002
        return self._task.answer(prepared)

    def _checked(self, entry: PreparedRow | Reject) -> PreparedRow | Reject:
        if isinstance(entry, Reject) or longest_prompt(entry) <= self._sure:
            return entry
        outcome = self._unsent(entry)
        return outcome if isinstance(outcome, Reject) else entry

    def _unsent(self, entry: PreparedRow) -> Cells | Reject | None:
        """What the task makes of a row of whose first round nothing fits; None if it asks on."""
        dialogue = self._task.answer(entry)
        try:
            requests = next(dialogue)
            rejects = [self._contexts.too_long(request) for request in requests]
            answers = [reject for reject in rejects if reject is not None]
            if len(answers) == len(requests):
                dialogue.send(answers)
        except StopIteration as end:
            outcome: Cells | Reject = end.value
            return outcome
        except Exception:  # noqa: BLE001 - beside the engine it becomes this row's reject
            return None
        finally:
            dialogue.close()
        return None


def contexts_of(step: TaskStep[Any], context: TaskContext) -> ContextLimits:
    """Those of the models that a task asks, as its own requests name them."""
    auxiliary = {key: other.max_model_len for key, other in context.auxiliary.items()}
    return ContextLimits(context.max_model_len, auxiliary, step.model_key or "model")


def first_round(task: Task, prepared: PreparedRow) -> Sequence[Request]:
    """What the row's dialogue asks first; nothing is answered."""
    dialogue = task.answer(prepared)
    try:
        return next(dialogue)
    except StopIteration:
        return ()
    except Exception:  # noqa: BLE001 - beside the engine it becomes this row's reject
        return ()
    finally:
        dialogue.close()


def longest_prompt(prepared: PreparedRow) -> int:
    """The tokens of the longest of a row's prompts."""
    return max(map(len, prepared.prompts), default=0)


def longest_answer(step: TaskStep[Any]) -> int:
    """The most tokens that an answer may have; 1 where there is no limit."""
    return max(
        (1 if params.max_tokens is None else params.max_tokens for params in step.params),
        default=0,
    )
