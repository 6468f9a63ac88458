"""Reasoning models: the thinking told from the answer by its marks.

The marks may stand in the generated text or, where the chat template opens the thinking, the first
of them at the prompt's end. Where a tokenizer holds them as special tokens, vLLM would leave them
out of the text; then the request asks for special tokens, and the others are taken out here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from tokenmill.config.section import Section
from tokenmill.prompt.tokenizer import Tokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Completion, FinishReason

# A prompt that opens the thinking ends with the mark and at most some white space.
_TAIL_TOKENS = 32
#: Of unfinished thinking, so much of its end stays in the reject's message.
_KEPT_CHARACTERS = 2000


class ThinkingMarkers(Section):
    """What stands around a model's thinking."""

    start: str = Field(default="<think>", min_length=1)
    end: str = Field(default="</think>", min_length=1)

    @model_validator(mode="after")
    def _differ(self) -> "ThinkingMarkers":
        if self.start in self.end or self.end in self.start:
            raise ValueError("one of start and end holds the other; they must tell where it ends")
        return self


@dataclass(frozen=True, slots=True)
class Thought:
    """An answer, and the thinking before it; None for an answer without any."""

    reasoning: str | None
    answer: str


class Splitter:
    """Splits completions of one model, by its marks and its special tokens."""

    def __init__(self, marks: ThinkingMarkers, tokenizer: Tokenizer) -> None:
        self._marks = marks
        self._tokenizer = tokenizer
        special = tokenizer.special_tokens
        self.needs_special_tokens = marks.start in special or marks.end in special
        others = [re.escape(token) for token in sorted(special - {marks.start, marks.end})]
        # No text is matched where there are none.
        self._others = re.compile(
            "|".join(others) if self.needs_special_tokens and others else "$^"
        )

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside of the thinking that the answer goes on with."""
        return self._tokenizer.decode(prompt[-_TAIL_TOKENS:]).rstrip().endswith(self._marks.start)

    def split(self, completion: Completion, *, is_open: bool) -> Thought | Reject:
        """The thinking and the answer; a reject for thinking that comes to no answer."""
        text, start, end = completion.text, self._marks.start, self._marks.end
        before, mark, inside = text.partition(start)
        if mark and not before.strip():
            text = inside
        elif not is_open and end not in text:
            return Thought(None, self._clean(text))
        thinking, mark, answer = text.partition(end)
        if not mark:
            return self._unfinished(thinking, completion)
        return Thought(self._clean(thinking).strip(), self._clean(answer).lstrip())

    def _unfinished(self, thinking: str, completion: Completion) -> Reject:
        if completion.finish_reason == FinishReason.LENGTH:
            why = f"no answer within {completion.num_generated_tokens:,} tokens of thinking"
            help_ = "; raise sampling.max_tokens"
        else:
            why, help_ = "the model ended inside of its thinking", ""
        kept = self._clean(thinking).strip()[-_KEPT_CHARACTERS:]
        return Reject(RejectClass.TRUNCATED_ANSWER, f"{why}{help_}; its end: {kept}", attempts=1)

    def _clean(self, text: str) -> str:
        return self._others.sub("", text)
