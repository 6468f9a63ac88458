"""The keys of `translate` in a job file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tokenmill.config.section import Section
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.translation.glossary import read_glossary
from tokenmill.tasks.translation.languages import base_language, language_name
from tokenmill.tasks.translation.placeholders import Protected


class FromColumn(Section):
    """A column that holds each row's language code."""

    column: str = Field(min_length=1)


class Translate(TaskSection):
    """`task: {kind: translate, from: en, to: fr, column: text}`."""

    kind: Literal["translate"] = "translate"
    from_: str | FromColumn | None = Field(
        default=None,
        alias="from",
        description="The source language: a code such as en, {column: NAME} with a code for each "
        "row, or null if unknown.",
    )
    to: str = Field(description="The target language: a code such as fr or pt-BR.")
    column: str = Field(min_length=1, description="The column to translate.")
    target: str | None = Field(
        default=None,
        description="A column with existing translations. Rows that have one keep it, and "
        "nothing is sent to the model.",
    )
    glossary: dict[str, str] = Field(
        default={},
        description="A mapping of terms to translations, or the path of a YAML, CSV or TSV file.",
    )
    protect: tuple[Protected, ...] = Field(
        default=tuple(Protected), description="Kinds of spans that the model must not change."
    )
    part_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Longest segment, in tokens. By default, half of sampling.max_tokens, or "
        "less if the context is too small.",
    )
    length_ratio: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = Field(
        default=(0.5, 2.5),
        description="Minimum and maximum length of the translation, relative to the source.",
    )
    second_try: bool = Field(
        default=True,
        description="Translate segments that fail a check once more, with another seed and a "
        "higher temperature.",
    )
    reject_failed: bool = Field(
        default=False, description="Reject rows whose final translation fails a check."
    )

    @field_validator("glossary", mode="before")
    @classmethod
    def _read_glossary(cls, value: Any) -> Any:
        # The terms become part of the job, so that editing the file changes the job's fingerprint.
        return read_glossary(Path(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_languages_and_lengths(self) -> "Translate":
        for key, tag in (("from", self.from_), ("to", self.to)):
            if isinstance(tag, str) and language_name(tag) is None:
                raise ValueError(f"{key}: unknown language code {tag}; use one such as fr or pt-BR")
        if isinstance(self.from_, str) and base_language(self.from_) == base_language(self.to):
            raise ValueError("from and to are the same language; change one of them")
        if self.length_ratio[0] >= self.length_ratio[1]:
            raise ValueError("length_ratio: the minimum must be less than the maximum")
        return self
