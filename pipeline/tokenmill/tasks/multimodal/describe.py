"""Describe: a question about a row's image, answered by a model that sees."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from tokenmill.errors import UserError
from tokenmill.prompt.media.decode import image_media
from tokenmill.prompt.media.fetch import read_media
from tokenmill.prompt.template import PromptTemplates, compile_templates
from tokenmill.reject import Reject
from tokenmill.request import Completion
from tokenmill.tasks.multimodal.media_section import MediaSection
from tokenmill.tasks.retries import ask_until_valid, cut_off
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

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The text and how it ended; with stops in the sampling, by which."""
        fields = (pa.field("description", pa.string()), pa.field("finish_reason", pa.string()))
        return (*fields, pa.field("stop_reason", pa.string())) if self.has_stops else fields

    @property
    def columns(self) -> Mapping[str, str]:
        return {self.image: self.place_of("image"), **self.compiled.columns}

    def compile_at(self, place: str) -> PromptTemplates:
        """The prompt, which may use no column: the image differs from row to row."""
        prompt = self.own_prompt
        sources = {f"{place}prompt.{name}": source for name, source in prompt.templates.items()}
        return compile_templates(sources, tuple(turn.role for turn in prompt.turns))

    def build(self, tools: TaskContext) -> "Describer":
        if not any(word in key.lower() for key in tools.config for word in _SEEING):
            raise UserError(
                f"{self.model_place or 'model'}: its config.json tells of no images; describe "
                "needs a model that takes them"
            )
        return Describer(self, tools)


class Describer:
    """One request a row: the prompt, and its image in the place that the prompt has for it."""

    def __init__(self, section: Describe, tools: TaskContext) -> None:
        self._section = section
        self._storage = tools.storage
        self._prompter = section.prompter(tools)
        self._samplings = section.own_samplings
        self._stop_token_ids = frozenset(self._samplings[0].values.get("stop_token_ids") or ())

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        section = self._section
        decode = partial(image_media, max_pixels=section.max_pixels)
        images = read_media(
            [row[section.image] for row in rows],
            section.image,
            section.media,
            self._storage,
            decode,
        )
        prompts = self._prompter.encode_with_image(rows)
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
        if self._section.has_stops:
            cells["stop_reason"] = answer.job_stop(self._stop_token_ids)
        return cells


def _prepared(prompt: Any, media: Any) -> PreparedRow | Reject:
    """The row, or the first reason why it is none."""
    for part in (media, prompt):
        if isinstance(part, Reject):
            return part
    return PreparedRow([prompt], media=media)
