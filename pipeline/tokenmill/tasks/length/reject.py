"""The length policy `reject`, and the check whether a request fits the context of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, Task, TaskContext


def needed_tokens(request: Request) -> int:
    """The tokens of the prompt and of the longest answer. Without a limit, the answer needs one."""
    max_tokens = request.params.max_tokens
    return len(request.prompt_token_ids) + (1 if max_tokens is None else max_tokens)


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """The context length of each model, in tokens.

    `own` is the limit for requests that name no model, and `model_key` is the job key of the model
    that answers them. `auxiliary` has the limits of the other models, by job key.
    """

    own: int
    auxiliary: Mapping[str, int] = field(default_factory=dict)
    model_key: str = "model"

    def of(self, request: Request) -> int:
        """The context length of the request's model."""
        return self.own if request.model is None else self.auxiliary[request.model]

    def excess(self, request: Request) -> int:
        """By how many tokens a request exceeds its context. At most 0 if it fits."""
        return needed_tokens(request) - self.of(request)

    def too_long(self, request: Request) -> Reject | None:
        """The reject for a request that does not fit. vLLM would silently cut its answer."""
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
    """A task with its length policy. `row` holds the columns that later prompts read."""

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        """One entry per row, in order."""

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:
        """The dialogue that ends with a cell for each field of the task and of the policy."""


class RejectingTask:
    """The policy `reject`: rejects rows that do not fit before they are sent to an engine."""

    def __init__(self, task: Task, step: TaskStep[Any], context: TaskContext) -> None:
        self._task = task
        self._contexts = contexts_of(step, context)
        # Shorter prompts are not checked here, because the scheduler checks every request.
        self._fitting_prompt_tokens = context.max_model_len - longest_answer(step)

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [self._checked(entry) for entry in self._task.prepare(rows)]

    def answer(self, prepared: PreparedRow, row: Row) -> Dialogue[Cells | Reject]:  # noqa: ARG002
        return self._task.answer(prepared)

    def _checked(self, entry: PreparedRow | Reject) -> PreparedRow | Reject:
        if isinstance(entry, Reject) or longest_prompt(entry) <= self._fitting_prompt_tokens:
            return entry
        outcome = self._outcome_without_answers(entry)
        return outcome if isinstance(outcome, Reject) else entry

    def _outcome_without_answers(self, entry: PreparedRow) -> Cells | Reject | None:
        """The row's result if no request of its first round fits. None if the row must be sent."""
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
        except Exception:  # noqa: BLE001 - when the row is answered, it is rejected
            return None
        finally:
            dialogue.close()
        return None


def contexts_of(step: TaskStep[Any], context: TaskContext) -> ContextLimits:
    """The context limits of the models that a task uses, by the names in its requests."""
    auxiliary = {key: other.max_model_len for key, other in context.auxiliary.items()}
    return ContextLimits(context.max_model_len, auxiliary, step.model_key or "model")


def first_round(task: Task, prepared: PreparedRow) -> Sequence[Request]:
    """The first requests of the row's dialogue, which is then closed."""
    dialogue = task.answer(prepared)
    try:
        return next(dialogue)
    except StopIteration:
        return ()
    except Exception:  # noqa: BLE001 - when the row is answered, it is rejected
        return ()
    finally:
        dialogue.close()


def longest_prompt(prepared: PreparedRow) -> int:
    """The number of tokens of the row's longest prompt."""
    return max(map(len, prepared.prompts), default=0)


def longest_answer(step: TaskStep[Any]) -> int:
    """The largest `max_tokens` of the step's requests. 1 for a request without a limit."""
    return max(
        (1 if params.max_tokens is None else params.max_tokens for params in step.params),
        default=0,
    )
