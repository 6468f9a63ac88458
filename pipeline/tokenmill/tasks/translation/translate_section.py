"""The keys of `translate` in a job file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tokenmill.config.section import Section
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.translation.glossary import read_glossary
from tokenmill.tasks.translation.languages import base, language_name
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
        description="A language code, {column: NAME} with each row's, or null for any.",
    )
    to: str = Field(description="A language code such as fr or pt-BR.")
    column: str = Field(min_length=1, description="What is translated.")
    target: str | None = Field(
        default=None, description="Rows with a text in this column keep it and cost nothing."
    )
    glossary: dict[str, str] = Field(
        default={}, description="Translation by term, or a YAML, CSV or TSV file of them."
    )
    protect: tuple[Protected, ...] = tuple(Protected)
    part_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Longest piece; by default half of max_tokens, if the context fits.",
    )
    length_ratio: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = Field(
        default=(0.5, 2.5), description="Least and greatest length by that of the source."
    )
    second_try: bool = Field(
        default=True, description="Ask once more, less strictly, for what fails a check."
    )
    reject_failed: bool = Field(
        default=False, description="A row that fails its checks in the end is a reject."
    )

    @field_validator("glossary", mode="before")
    @classmethod
    def _read_glossary(cls, value: Any) -> Any:
        # The terms become a part of the job: with others in the same file its answers are others.
        return read_glossary(Path(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_languages(self) -> "Translate":
        for key, tag in (("from", self.from_), ("to", self.to)):
            if isinstance(tag, str) and language_name(tag) is None:
                raise ValueError(f"{key}: {tag} is no language code that is known, such as fr")
        if isinstance(self.from_, str) and base(self.from_) == base(self.to):
            raise ValueError("from and to are the same language")
        if self.length_ratio[0] >= self.length_ratio[1]:
            raise ValueError("length_ratio: the least is not below the greatest")
        return self
