"""The source, revision and engine arguments of a model."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tokenmill.config.section import Section

#: The `source` of the fake engine, which needs no model: for tests and dry runs.
FAKE_SOURCE = "fake"


class ModelSource(Section):
    """Where a model comes from, and how its engine is started."""

    source: str = Field(
        min_length=1,
        description="`bundled:NAME`, a local folder, a hub id, an s3:// prefix, or `fake`.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    engine: dict[str, Any] = Field(
        default_factory=dict, description="Engine arguments of vLLM, such as `max_model_len`."
    )

    @model_validator(mode="after")
    def _check_engine_and_revision(self) -> "ModelSource":
        for key in ("model", "revision", "tokenizer_revision"):
            if key in self.engine:
                raise ValueError(
                    f"engine.{key} is set by model.source and model.revision; remove it"
                )
        if isinstance(self.engine.get("hf_token"), str):
            raise ValueError(  # noqa: TRY004 - pydantic expects it
                "engine.hf_token would be stored with the output; set HF_TOKEN in the environment "
                "instead"
            )
        if self.revision is not None and not self.is_hub_id:
            raise ValueError(f"revision applies to hub ids only, not to {self.source}; remove it")
        return self

    @property
    def is_fake(self) -> bool:
        return self.source == FAKE_SOURCE

    @property
    def is_hub_id(self) -> bool:
        """Whether the source is `owner/name` on the hub: not a path, a URL or a local folder."""
        return not (
            self.is_fake
            or self.source.startswith(("bundled:", "/", "./", "../", "~"))
            or "://" in self.source
            or Path(self.source).is_dir()
        )

    @property
    def is_path(self) -> bool:
        """A path or URL, whether it exists or not, rather than the name of a model."""
        return not (self.is_fake or self.is_hub_id or self.source.startswith("bundled:"))
