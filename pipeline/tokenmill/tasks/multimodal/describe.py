"""Describe: a question about a row's image, answered by a model that sees."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from tokenmill.errors import UserError
from tokenmill.prompt.media.decode import decode_image
from tokenmill.prompt.media.fetch import read_media
from tokenmill.prompt.template import compile_templates
from tokenmill.reject import Reject
from tokenmill.request import Completion
from tokenmill.tasks.kind import TaskKind, TaskStep, Templates, template_columns
from tokenmill.tasks.multimodal.media_section import MediaSection, check_media
from tokenmill.tasks.retries import ask_until_valid, cut_off
from tokenmill.tasks.section import has_stops
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# What config.json calls the part that sees, by model: vision_config, img_processor, visual, …
_SEEING = ("vision", "image", "img", "visual")


class Describe(MediaSection):
    """`task: {kind: describe}`: text about an image."""

    kind: Literal["describe"]
    image: str = Field(min_length=1, description="The column with an image's bytes or path.")
    max_pixels: int = Field(
        default=2**22, ge=1, description="Images with more are scaled down before the model's own."
    )


def _fields(section: Describe) -> tuple[pa.Field, ...]:
    """The text and how it ended; if the sampling has stops, by which."""
    fields = (pa.field("description", pa.string()), pa.field("finish_reason", pa.string()))
    return (*fields, pa.field("stop_reason", pa.string())) if has_stops(section) else fields


def _templates(step: TaskStep[Describe]) -> Templates:
    """The prompt, which may use no column: the image differs from row to row."""
    prompt = step.prompt
    prefix = f"{step.prompt_prefix}prompt."
    sources = {f"{prefix}{name}": source for name, source in prompt.templates.items()}
    return {"prompt": compile_templates(sources, tuple(turn.role for turn in prompt.turns))}


def _build(step: TaskStep[Describe], context: TaskContext) -> "Describer":
    if not any(word in key.lower() for key in context.config for word in _SEEING):
        raise UserError(
            f"{step.model_key or 'model'}: its config.json tells of no images; describe "
            "needs a model that takes them"
        )
    return Describer(step, context)


DESCRIBE = TaskKind(
    name="describe",
    section=Describe,
    fields=_fields,
    build=_build,
    joins_by_prompt=False,
    templates=_templates,
    columns=lambda step: {
        step.section.image: step.key_of("image"),
        **template_columns(step),
    },
    check=check_media,
    starter=Starter(
        "descriptions",
        """\
prompt: {user: Describe this image in one sentence.}
sampling: {temperature: 0, max_tokens: 64}
task:
  kind: describe
  image: $column                  # bytes, or paths relative to the input's folder
""",
        StarterModel("HuggingFaceTB/SmolVLM-256M-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        reads="image",
        cuts=False,
    ),
)


class Describer:
    """One request a row: the prompt, and its image in the place that the prompt has for it."""

    def __init__(self, step: TaskStep[Describe], context: TaskContext) -> None:
        self._section = step.section
        self._storage = context.storage
        self._encoder = step.encoder(context)
        self._samplings = step.samplings
        self._stop_token_ids = frozenset(self._samplings[0].values.get("stop_token_ids") or ())

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        section = self._section
        decode = partial(decode_image, max_pixels=section.max_pixels)
        images = read_media(
            [row[section.image] for row in rows],
            section.image,
            section.media,
            self._storage,
            decode,
        )
        prompts = self._encoder.encode_with_image(rows)
        return [_prepared(*row) for row in zip(prompts, images, strict=True)]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        return (
            yield from ask_until_valid(
                prepared.prompts[0], self._samplings, self._cells, prepared.media[0]
            )
        )

    def _cells(self, answer: Completion) -> Cells | Reject:
        cut = cut_off(answer) if self._section.complete else None
        if cut is not None:
            return cut
        cells: dict[str, Any] = {"description": answer.text, "finish_reason": answer.finish_reason}
        if has_stops(self._section):
            cells["stop_reason"] = answer.job_stop(self._stop_token_ids)
        return cells


def _prepared(prompt: Any, media: Any) -> PreparedRow | Reject:
    """The row, or the first reason why it is none."""
    for part in (media, prompt):
        if isinstance(part, Reject):
            return part
    return PreparedRow([prompt], media=media)
