"""Log-probabilities of many short continuations of one prompt, by one round of requests.

The continuations' tokens form a trie that is known before the first request: for each inner node
one request asks, behind the prompt and the tokens so far, for the log-probabilities of all tokens
that go on. The requests share the prompt as a cached prefix, and write one token each.
"""

from collections.abc import Mapping, Sequence

from tokenmill.reject import Reject
from tokenmill.request import Answer, Completion, Request, Sampling

#: VLLM's `MAX_LOGPROB_TOKEN_IDS`.
MOST_TOKENS = 128
TokenTuple = tuple[int, ...]


def token_logprobs(tokens: Sequence[int]) -> Sampling:
    """Sampling that gives the log-probabilities of these tokens as the next one."""
    return Sampling(
        {
            "temperature": 0,
            "max_tokens": 1,
            "detokenize": False,
            "logprob_token_ids": list(tokens),
        }
    )


def inner_nodes(sequences: Sequence[Sequence[int]]) -> dict[TokenTuple, list[int]]:
    """The tokens that go on behind each prefix of the sequences, shorter prefixes first."""
    nodes: dict[TokenTuple, dict[int, None]] = {}
    for length in range(max(map(len, sequences))):
        for sequence in sequences:
            if length < len(sequence):
                nodes.setdefault(tuple(sequence[:length]), {})[sequence[length]] = None
    return {prefix: list(children) for prefix, children in nodes.items()}


def is_prefix_free(sequences: Sequence[Sequence[int]]) -> bool:
    """Whether no sequence is the start of another, so that one alone can be the answer."""
    nodes = inner_nodes(sequences)
    distinct = {tuple(sequence) for sequence in sequences}
    return len(distinct) == len(sequences) and not any(end in nodes for end in distinct)


class LabelTrie:
    """The sequences' trie, and what it asks of an engine."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = [tuple(sequence) for sequence in sequences]
        self._questions = [
            (prefix, token_logprobs(children[start : start + MOST_TOKENS]))
            for prefix, children in inner_nodes(self.sequences).items()
            for start in range(0, len(children), MOST_TOKENS)
        ]

    def requests(self, prompt: Sequence[int]) -> list[Request]:
        """One round's requests; the shortest, whose prefix the others share, first."""
        return [Request([*prompt, *prefix], sampling) for prefix, sampling in self._questions]

    def logprobs(self, answers: Sequence[Completion]) -> list[float]:
        """Each sequence's log-probability behind the prompt, from the answers to `requests`."""
        after: dict[TokenTuple, dict[int, float]] = {}
        for (prefix, _), answer in zip(self._questions, answers, strict=True):
            after.setdefault(prefix, {}).update(choice_logprobs(answer))
        return [
            sum(after[sequence[:at]][token] for at, token in enumerate(sequence))
            for sequence in self.sequences
        ]


def completions(answers: Sequence[Answer]) -> list[Completion] | Reject:
    """The answers, or the first of them that is none."""
    found = []
    for answer in answers:
        if isinstance(answer, Reject):
            return answer
        found.append(answer)
    return found


def choice_logprobs(answer: Completion) -> Mapping[int, float]:
    """Those of the tokens that the request asked for."""
    if answer.choice_logprobs is None:
        raise ValueError("the engine gave no log-probabilities of the tokens it was asked for")
    return answer.choice_logprobs
