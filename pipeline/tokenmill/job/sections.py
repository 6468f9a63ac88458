"""The sections of a job file that are not a task: input, model, output, notify."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tokenmill.config.model_source import ModelSource
from tokenmill.config.section import Section
from tokenmill.plan.diff import ChangePolicy


def _without_credentials(url: str) -> str:
    if "@" in urlsplit(url).netloc:
        raise ValueError(
            "a name or password in it would be stored with the output; credentials come from the "
            "AWS chain"
        )
    return url


EndpointUrl = Annotated[str, AfterValidator(_without_credentials)]


class Input(Section):
    """What is read."""

    path: str = Field(description="A Parquet file, a folder, a glob, or the same on s3://.")
    keep: tuple[str, ...] = Field(
        default=(), description="Columns carried to the output as they are."
    )
    where: str | None = Field(
        default=None, description="Row filter in SQL, e.g. section = 'games' AND lang IS NULL."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Only the first rows of the corpus, for a try."
    )
    on_bad_shard: Literal["stop", "skip"] = Field(
        default="stop", description="A shard that cannot be read: stop before the run, or skip it."
    )
    on_new_shard: Literal["leave", "add"] = Field(
        default="leave",
        description="A shard that came after the plan was made: leave it out, or add its units.",
    )
    on_changed_shard: Literal["stop", "redo"] = Field(
        default="stop",
        description="A shard that was changed after the plan was made: stop, or answer its rows "
        "anew and drop their former answers.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="S3 endpoint; by default AWS_ENDPOINT_URL."
    )

    @model_validator(mode="after")
    def _whole_if_it_grows(self) -> "Input":
        if self.limit is not None and self.follows:
            raise ValueError(
                "limit: the first rows do not grow; leave it out, or on_new_shard and "
                "on_changed_shard"
            )
        return self

    @property
    def change_policy(self) -> ChangePolicy:
        """What is done about shards that differ from the plan."""
        return ChangePolicy(self.on_new_shard == "add", self.on_changed_shard == "redo")

    @property
    def follows(self) -> bool:
        """Whether the plan follows what happens to the input's shards."""
        policy = self.change_policy
        return policy.add_new or policy.redo_changed


class ReplicaRange(Section):
    """A pool that grows with its queue."""

    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class Model(ModelSource):
    """What answers, and how much of it."""

    replicas: Annotated[int, Field(ge=1)] | ReplicaRange = Field(
        default=1, description="Engines in the pool: a number, or {min, max}."
    )
    gpus_per_replica: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Ignored on a machine without GPUs."
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="In your currency; with it the cost is told before a run."
    )
    adapters: dict[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] = (
        Field(
            default_factory=dict,
            description="LoRA adapters by name: a folder, an s3:// prefix or a hub id each.",
        )
    )

    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=1800.0,
        description="A request that takes longer is aborted, and its row rejected; an engine that "
        "does not move for so long is given up.",
    )
    deduplicate: bool = Field(
        default=True,
        description="Compute only once, by all replicas, what is asked again with nothing left to "
        "chance.",
    )

    @property
    def most_replicas(self) -> int:
        """How many engines there may be at a time."""
        return self.replicas.max if isinstance(self.replicas, ReplicaRange) else self.replicas


class Output(Section):
    """Where the result stands."""

    path: str = Field(
        min_length=1, description="A folder or an s3:// prefix, new or a former run's."
    )
    publish: str | None = Field(
        default=None,
        pattern=r".\.json$",
        description="A small object, say s3://bucket/current.json, that names the output once it "
        "is finished and verified.",
    )
    endpoint_url: EndpointUrl | None = Field(
        default=None, description="S3 endpoint; by default AWS_ENDPOINT_URL."
    )


class Notify(Section):
    """Who is told how a run ended: its summary as JSON."""

    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A program and its arguments; it gets the summary on its standard input.",
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the URL to which the summary is posted; "
        "such URLs are secrets.",
    )

    @model_validator(mode="after")
    def _someone(self) -> "Notify":
        if self.command is None and self.webhook is None:
            raise ValueError("give command, webhook, or both")
        return self
