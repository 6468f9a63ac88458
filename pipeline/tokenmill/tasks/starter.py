"""What a kind of task contributes to the job file that `tokenmill init` writes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StarterModel:
    """A small model to try a job with, and one for a GPU; each with its engine's arguments."""

    source: str
    on_gpu: str
    engine: str = ""
    engine_on_gpu: str = ""


CHAT_MODEL = StarterModel(
    "bundled:smollm2-135m", "Qwen/Qwen3-8B", "{max_model_len: 2048}", "{max_model_len: 8192}"
)


@dataclass(frozen=True, slots=True)
class Starter:
    """A kind's part of a new job file.

    `body` is YAML in which `$text` becomes a template that prints the column, `$column` its name,
    and `$labels` the values of a column of labels, as comments. `reads` is what the column holds.
    `cuts` says whether `length` may shorten its text.
    """

    name: str
    body: str
    model: StarterModel = CHAT_MODEL
    reads: Literal["text", "image", "audio"] = "text"
    cuts: bool = True
