"""Splits the reasoning of a reasoning model from its answer, by the markers around it.

Both markers may be in the generated text. If the chat template opens the reasoning, the start
marker is at the end of the prompt. If the markers are special tokens, vLLM would omit them from the
text. The request then asks for special tokens, and the splitter removes the other ones.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from tokenmill.config.section import Section
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason

# A prompt that opens the reasoning ends with the marker and perhaps white space, in fewer tokens.
_TAIL_TOKENS = 32
# The end of unfinished reasoning that is kept in the reject's message.
_KEPT_CHARACTERS = 2000


class ThinkingMarkers(Section):
    """The markers before and after a model's reasoning."""

    start: str = Field(default="<think>", min_length=1)
    end: str = Field(default="</think>", min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> "ThinkingMarkers":
        if self.start in self.end or self.end in self.start:
            raise ValueError("start and end must differ, and neither may contain the other")
        return self


@dataclass(frozen=True, slots=True)
class Thought:
    """An answer, and the reasoning before it; None if the answer has no reasoning."""

    reasoning: str | None
    answer: str


class Splitter:
    """Splits the completions of one model.

    `needs_special_tokens` says whether a marker is a special token, so that requests must keep them
    in the text.
    """

    def __init__(self, markers: ThinkingMarkers, tokenizer: Tokenizer) -> None:
        self._markers = markers
        self._tokenizer = tokenizer
        special = tokenizer.special_tokens
        self.needs_special_tokens = markers.start in special or markers.end in special
        other_tokens = [
            re.escape(token) for token in sorted(special - {markers.start, markers.end})
        ]
        # `$^` matches no text.
        self._other_tokens = re.compile(
            "|".join(other_tokens) if self.needs_special_tokens and other_tokens else "$^"
        )

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends with the start marker, so the answer continues the reasoning."""
        return self._tokenizer.decode(prompt[-_TAIL_TOKENS:]).rstrip().endswith(self._markers.start)

    def split(self, completion: Completion, *, is_open: bool) -> Thought | Reject:
        """Split reasoning and answer. Rejects reasoning that does not end.

        `is_open` says whether the prompt has opened the reasoning.
        """
        text, start, end = completion.text, self._markers.start, self._markers.end
        before, marker, inside = text.partition(start)
        if marker and not before.strip():
            text = inside
        elif not is_open and end not in text:
            return Thought(None, self._clean(text))
        reasoning, marker, answer = text.partition(end)
        if not marker:
            return self._unfinished(reasoning, completion)
        return Thought(self._clean(reasoning).strip(), self._clean(answer).lstrip())

    def _unfinished(self, reasoning: str, completion: Completion) -> Reject:
        if completion.finish_reason == FinishReason.LENGTH:
            problem = f"no answer within {completion.num_generated_tokens:,} tokens of reasoning"
            advice = "; raise sampling.max_tokens"
        else:
            problem, advice = "the model stopped before the end of its reasoning", ""
        kept = self._clean(reasoning).strip()[-_KEPT_CHARACTERS:]
        return Reject(
            RejectClass.TRUNCATED_ANSWER, f"{problem}{advice}; its end: {kept}", attempts=1
        )

    def _clean(self, text: str) -> str:
        return self._other_tokens.sub("", text)
