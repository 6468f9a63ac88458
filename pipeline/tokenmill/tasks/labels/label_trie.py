"""Gets the log-probabilities of many short continuations of a prompt in one round of requests.

The continuations' tokens form a trie that is known before the first request. For each inner node,
one request asks for the log-probabilities of the node's children after the prompt and the tokens on
the path. The requests share the prompt as a cached prefix, and each generates one token.
"""

from collections.abc import Mapping, Sequence

from tokenmill.reject import Reject
from tokenmill.request import Answer, Completion, Request, Sampling

#: The most tokens in one request: vLLM's `MAX_LOGPROB_TOKEN_IDS`.
MAX_TOKENS = 128
TokenTuple = tuple[int, ...]


def token_logprobs(tokens: Sequence[int]) -> Sampling:
    """Sampling parameters that request the log-probabilities of these next tokens."""
    return Sampling(
        {
            "temperature": 0,
            "max_tokens": 1,
            "detokenize": False,
            "logprob_token_ids": list(tokens),
        }
    )


def inner_nodes(sequences: Sequence[Sequence[int]]) -> dict[TokenTuple, list[int]]:
    """Map each proper prefix of the sequences to its next tokens, shorter prefixes first."""
    nodes: dict[TokenTuple, dict[int, None]] = {}
    for length in range(max(map(len, sequences))):
        for sequence in sequences:
            if length < len(sequence):
                nodes.setdefault(tuple(sequence[:length]), {})[sequence[length]] = None
    return {prefix: list(children) for prefix, children in nodes.items()}


def is_prefix_free(sequences: Sequence[Sequence[int]]) -> bool:
    """Whether no sequence equals or starts another, so that exactly one can be the answer."""
    nodes = inner_nodes(sequences)
    distinct = {tuple(sequence) for sequence in sequences}
    return len(distinct) == len(sequences) and not any(end in nodes for end in distinct)


class LabelTrie:
    """The trie of several token sequences, and its requests."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = [tuple(sequence) for sequence in sequences]
        self._nodes = [
            (prefix, token_logprobs(children[start : start + MAX_TOKENS]))
            for prefix, children in inner_nodes(self.sequences).items()
            for start in range(0, len(children), MAX_TOKENS)
        ]

    def requests(self, prompt: Sequence[int]) -> list[Request]:
        """One round of requests. The shortest comes first, because the others share its prefix."""
        return [Request([*prompt, *prefix], sampling) for prefix, sampling in self._nodes]

    def logprobs(self, answers: Sequence[Completion]) -> list[float]:
        """The sequences' natural log-probabilities, from the answers to `requests`."""
        next_logprobs: dict[TokenTuple, dict[int, float]] = {}
        for (prefix, _), answer in zip(self._nodes, answers, strict=True):
            next_logprobs.setdefault(prefix, {}).update(choice_logprobs(answer))
        return [
            sum(next_logprobs[sequence[:i]][token] for i, token in enumerate(sequence))
            for sequence in self.sequences
        ]


def completions(answers: Sequence[Answer]) -> list[Completion] | Reject:
    """The answers, or the first reject among them."""
    completed = []
    for answer in answers:
        if isinstance(answer, Reject):
            return answer
        completed.append(answer)
    return completed


def choice_logprobs(answer: Completion) -> Mapping[int, float]:
    """The log-probabilities of the tokens that the request named."""
    if answer.choice_logprobs is None:
        raise ValueError("the engine returned no log-probabilities for the requested tokens")
    return answer.choice_logprobs
