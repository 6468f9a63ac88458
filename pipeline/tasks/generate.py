"""Generate: the prompt's answer as text, why it ended, and how likely the model found it."""

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
from pydantic import Field

from pipeline.length import JoinKind
from pipeline.prompter import Prompter
from pipeline.schema import Completion, Reject, Sampling
from pipeline.tasks.attempts import ask_until_valid, cut_off
from pipeline.tasks.base import Cells, Dialogue, Prepared, Row, TaskSection, Tools


class Generate(TaskSection):
    """`task: {kind: generate}`, the task of a job that names none."""

    kind: Literal["generate"] = "generate"
    complete: bool = Field(
        default=False, description="An answer that max_tokens cuts off does not do."
    )

    def check(self) -> None:
        super().check()
        if self.retries is not None and not self.complete:
            raise ValueError(
                f"{self.place}retries: every answer does; "
                "write complete: true to ask again for those that are cut off"
            )

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The text; log-probabilities are natural, `mean_logprob` is per generated token."""
        return (
            pa.field("generated_text", pa.string()),
            pa.field("finish_reason", pa.string()),
            pa.field("cumulative_logprob", pa.float64()),
            pa.field("mean_logprob", pa.float64()),
        )

    @property
    def join_kind(self) -> JoinKind:
        """Texts stand one after another."""
        return "concatenate"

    def build(self, tools: Tools) -> "Generator":
        return Generator(self.prompter(tools), self.own_samplings, complete=self.complete)


class Generator:
    """One request a row, and one more for each retry."""

    def __init__(
        self, prompter: Prompter, samplings: Sequence[Sampling], *, complete: bool
    ) -> None:
        self._prompter = prompter
        self._samplings = samplings
        self._complete = complete

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | Reject]:
        return [
            prompt if isinstance(prompt, Reject) else Prepared([prompt])
            for prompt in self._prompter.encode(rows)
        ]

    def answer(self, prepared: Prepared) -> Dialogue[Cells | Reject]:
        return (yield from ask_until_valid(prepared.prompts[0], self._samplings, self._cells))

    def _cells(self, answer: Completion) -> Cells | Reject:
        cut = cut_off(answer) if self._complete else None
        if cut is not None:
            return cut
        return {
            "generated_text": answer.text,
            "finish_reason": answer.finish_reason,
            "cumulative_logprob": answer.cumulative_logprob,
            "mean_logprob": mean_logprob(answer),
        }

    def join(self, parts: Sequence[Cells]) -> Cells:
        """The texts one after another; the reason is `length` where any part's is."""
        reasons = [part["finish_reason"] for part in parts]
        return {
            "generated_text": "".join(part["generated_text"] for part in parts),
            "finish_reason": "length" if "length" in reasons else reasons[0],
            **_joined_logprobs(parts),
        }


def _joined_logprobs(parts: Sequence[Cells]) -> dict[str, float | None]:
    """The sum, and its mean by token; a part's two figures tell how many tokens it has."""
    sums = [part["cumulative_logprob"] for part in parts]
    means = [part["mean_logprob"] for part in parts]
    if None in sums:
        return {"cumulative_logprob": None, "mean_logprob": None}
    num_tokens = sum(total / mean for total, mean in zip(sums, means, strict=True) if mean)
    total = sum(sums)
    return {
        "cumulative_logprob": total,
        "mean_logprob": total / num_tokens if num_tokens else total,
    }


def mean_logprob(completion: Completion) -> float | None:
    """Natural log-probability per generated token; None where there is none."""
    cumulative, num_tokens = completion.cumulative_logprob, completion.num_generated_tokens
    return None if cumulative is None or num_tokens == 0 else cumulative / num_tokens
