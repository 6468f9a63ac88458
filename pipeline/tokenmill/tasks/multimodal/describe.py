"""The `describe` task: asks a vision model about a row's image."""

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

# Parts of the config.json keys of vision models: vision_config, img_processor, visual, …
_VISION_WORDS = ("vision", "image", "img", "visual")


class Describe(MediaSection):
    """`task: {kind: describe}`: a text about an image."""

    kind: Literal["describe"]
    image: str = Field(min_length=1, description="Column with the bytes or path of an image.")
    max_pixels: int = Field(
        default=2**22,
        ge=1,
        description="Larger images are scaled down to this before the model's own scaling.",
    )


def _fields(section: Describe) -> tuple[pa.Field, ...]:
    """The text, its finish reason and, if the sampling has stops, its stop reason."""
    fields = (pa.field("description", pa.string()), pa.field("finish_reason", pa.string()))
    return (*fields, pa.field("stop_reason", pa.string())) if has_stops(section) else fields


def _templates(step: TaskStep[Describe]) -> Templates:
    """Compile the prompt, which need not use a column, because the image differs by row."""
    prompt = step.prompt
    prefix = f"{step.prompt_prefix}prompt."
    sources = {f"{prefix}{name}": source for name, source in prompt.templates.items()}
    return {"prompt": compile_templates(sources, tuple(turn.role for turn in prompt.turns))}


def _build(step: TaskStep[Describe], context: TaskContext) -> "Describer":
    if not any(word in key.lower() for key in context.config for word in _VISION_WORDS):
        raise UserError(
            f"{step.model_key or 'model'}: config.json has no vision settings; describe "
            "needs a model that reads images"
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
    media_column=lambda section: section.image,
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
    """Sends one request per row: the prompt with its image."""

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
    """Combine a row's prompt and media, or return the first reject."""
    for item in (media, prompt):
        if isinstance(item, Reject):
            return item
    return PreparedRow([prompt], media=media)
