"""All kinds of tasks. To add a kind, define it in a file of its own and list it here."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from tokenmill.tasks.extraction.extract import EXTRACT
from tokenmill.tasks.generation.generate import GENERATE
from tokenmill.tasks.kind import TaskKind, TaskStep
from tokenmill.tasks.labels.classify import CLASSIFY
from tokenmill.tasks.labels.tag import TAG
from tokenmill.tasks.multimodal.describe import DESCRIBE
from tokenmill.tasks.multimodal.transcribe import TRANSCRIBE
from tokenmill.tasks.scoring.embed import EMBED
from tokenmill.tasks.scoring.rerank import RERANK
from tokenmill.tasks.scoring.reward import REWARD
from tokenmill.tasks.scoring.score import SCORE
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.translation.translate import TRANSLATE

#: In the order of the job file's schema.
TASK_KINDS: tuple[TaskKind[Any], ...] = (
    GENERATE,
    CLASSIFY,
    TAG,
    EXTRACT,
    TRANSLATE,
    SCORE,
    EMBED,
    REWARD,
    RERANK,
    DESCRIBE,
    TRANSCRIBE,
)
#: The kind of a task that names none.
DEFAULT_KIND = GENERATE


def _with_kind(value: Any) -> Any:
    return {"kind": DEFAULT_KIND.name, **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    AnyTask = TaskSection
else:
    #: A task of any kind in a job file; its `kind` says which.
    AnyTask = Annotated[
        Annotated[
            Union[tuple(kind.section for kind in TASK_KINDS)],  # noqa: UP007 - made of a tuple
            Field(discriminator="kind"),
        ],
        BeforeValidator(_with_kind),
    ]


def step_of(section: TaskSection, *, is_only: bool = False) -> TaskStep[Any]:
    """The section as a step of its kind. `is_only` says that it is not in a list of tasks."""
    kind = next(kind for kind in TASK_KINDS if kind.name == section.kind)
    return TaskStep(kind, section, is_only=is_only)
