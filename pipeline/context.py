"""Whether a request fits into the context of the model that answers it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.schema import Reject, RejectClass, Request


def needed_tokens(request: Request) -> int:
    """The prompt's tokens and the longest answer's; an answer without a limit needs one."""
    max_tokens = request.params.max_tokens
    return len(request.prompt_token_ids) + (1 if max_tokens is None else max_tokens)


@dataclass(frozen=True, slots=True)
class Contexts:
    """How many tokens each model holds.

    `own` are those of the model that answers where a request names none, which the job has at
    `place`; `beside` are those of the others, by their places.
    """

    own: int
    beside: Mapping[str, int] = field(default_factory=dict)
    place: str = "model"

    def of(self, request: Request) -> int:
        """Those of the request's model."""
        return self.own if request.model is None else self.beside[request.model]

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
            f"context of {self.of(request)}; raise {request.model or self.place}.engine."
            "max_model_len or set length",
        )
