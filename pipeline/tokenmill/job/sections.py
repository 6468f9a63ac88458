"""The sections `input`, `model`, `output` and `notify` of a job file."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from tokenmill.config.model_source import ModelSource
from tokenmill.config.section import Section
from tokenmill.plan.diff import ChangePolicy


def _without_credentials(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "the URL contains a user name or password, which would be stored with the output; use "
            "the AWS credential chain instead"
        )
    return url


EndpointUrl = Annotated[str, AfterValidator(_without_credentials)]


#: As the only entry of `input.keep`: all columns.
_ALL_COLUMNS = "*"


class Input(Section):
    """The corpus to read."""

    path: str = Field(
        description="A Parquet file, a folder or a glob pattern, local or on s3://. A name that "
        "exists is not a pattern; `[*]`, `[?]`, `[[]` and `[{]` match single characters."
    )
    keep: tuple[str, ...] = Field(
        default=(),
        description='Input columns to copy to the output. `["*"]` copies all: those that the '
        "shards have when the plan is made.",
    )
    where: str | None = Field(
        default=None, description="An SQL condition, e.g. section = 'games' AND lang IS NULL."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Read only this many rows, from the start of the corpus."
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop", description="If a shard cannot be read: stop before the run, or skip it."
    )
    on_new_shard: Literal["leave", "add"] = Field(
        default="leave",
        description="If a shard was added after the plan was made: ignore it, or add its units to "
        "the plan.",
    )
    on_changed_shard: Literal["stop", "redo"] = Field(
        default="stop",
        description="If a shard was changed after the plan was made: stop, or discard its answers "
        "and run its rows again.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="The URL of the S3 service. Default: AWS_ENDPOINT_URL."
    )

    @field_validator("keep")
    @classmethod
    def _all_or_some(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        if _ALL_COLUMNS in keep and len(keep) > 1:
            raise ValueError('"*" includes all columns; remove the others')
        return keep

    @model_validator(mode="after")
    def _limit_or_follow(self) -> "Input":
        if self.limit is not None and self.follows:
            raise ValueError(
                "limit cannot be combined with on_new_shard: add or on_changed_shard: redo; remove "
                "one of them"
            )
        return self

    @property
    def keeps_all(self) -> bool:
        """Whether all columns are kept; the plan says which these are."""
        return self.keep == (_ALL_COLUMNS,)

    @property
    def change_policy(self) -> ChangePolicy:
        """What happens to shards that differ from the plan."""
        return ChangePolicy(self.on_new_shard == "add", self.on_changed_shard == "redo")

    @property
    def follows(self) -> bool:
        """Whether the plan is updated if shards are added or changed."""
        policy = self.change_policy
        return policy.add_new or policy.redo_changed


class ReplicaRange(Section):
    """A number of replicas that follows the length of the queue."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class Model(ModelSource):
    """The model that runs the tasks, and its replicas."""

    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = Field(
        default=1, description="The number of engines, or a range {min, max}."
    )
    gpus_per_replica: Annotated[int, Field(ge=1)] = Field(
        default=1, description="GPUs of each engine. Ignored on a machine without GPUs."
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="In any currency; needed for the cost in estimates and reports."
    )
    adapters: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = (
        Field(
            default_factory=dict,
            description="LoRA adapters by name; each is a folder, an s3:// prefix or a Hub id.",
        )
    )

    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0,
        description="A request that takes longer is aborted, and its row is rejected. An engine "
        "that makes no progress for this time is restarted.",
    )
    deduplicate: bool = Field(
        default=True,
        description="Compute identical requests once for all replicas, if their sampling is "
        "deterministic.",
    )

    @property
    def max_replicas(self) -> int:
        """The largest number of engines at a time."""
        return self.replicas.max if isinstance(self.replicas, ReplicaRange) else self.replicas


class Output(Section):
    """Where the results are written."""

    path: str = Field(
        min_length=1, description="A folder or an s3:// prefix: new, or that of a run to resume."
    )
    columns: dict[str, Annotated[str, Field(min_length=1)]] | None = Field(
        default=None,
        description="Other names for answer columns, by the tasks' names for them. Example: "
        "{translation: text_fr}.",
    )
    publish: str | None = Field(
        default=None,
        pattern=r".\.json$",
        description="An object such as s3://bucket/current.json that will point to the output once "
        "it is complete and verified.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="The URL of the S3 service. Default: AWS_ENDPOINT_URL."
    )


class Notify(Section):
    """Where the summary of a run goes when it ends, as JSON."""

    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A program and its arguments. It receives the summary on standard input.",
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The name of an environment variable with a URL, to which the summary is "
        "posted. The job file must not contain the URL, which may be a secret.",
    )

    @model_validator(mode="after")
    def _any_target(self) -> "Notify":
        if self.command is None and self.webhook is None:
            raise ValueError("give command, webhook or both")
        return self
