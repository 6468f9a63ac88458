"""The `classify` task: chooses one label and scores all of them.

A generative model scores a label by the log-probability of its tokens as the answer to the prompt.
A sequence-classification model returns a logit per label. Either way, the scores are a softmax over
the labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.section import Share
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import compile_prompt
from tokenmill.prompt.tokenizer import encode_after
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Params, Pooling, Request
from tokenmill.tasks.kind import Join, TaskKind, TaskStep, Templates
from tokenmill.tasks.labels.choices import CHOICES, ChoiceList, Choices, labels_of, with_listing
from tokenmill.tasks.labels.label_trie import LabelTrie, completions, is_prefix_free, token_logprobs
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# The value of every column in the content-free prompt (Zhao et al. 2021, Calibrate Before Use).
_CONTENT_FREE = "N/A"
# `label_scores` sums to 1; `margin` is the best score minus the second; `entropy` is in nats.
_FIELDS = (
    pa.field("label", pa.string()),
    pa.field("label_score", pa.float64()),
    pa.field("label_scores", pa.map_(pa.string(), pa.float64())),
    pa.field("margin", pa.float64()),
    pa.field("entropy", pa.float64()),
)
# Logits, because the scores are a softmax whatever the model's own activation is.
_LOGITS = Pooling("classify", {"use_activation": False})


class Classify(TaskSection):
    """`task: {kind: classify, choices: [a, b]}`: one label per row, with scores."""

    kind: Literal["classify"] = "classify"
    choices: Choices | None = Field(
        default=None,
        description="Labels, labels with descriptions, or a file. method: model has its own.",
    )
    method: Literal["sequence", "first_token", "model"] = Field(
        default="sequence",
        description="Score all tokens of a label, only its first, or use a classification model.",
    )
    normalize: bool = Field(
        default=False, description="Use the mean per token, for labels of different lengths."
    )
    calibrate: bool = Field(
        default=False, description="Divide by the probabilities for a content-free prompt."
    )
    abstain_below: Share | None = Field(
        default=None, description="Leave the label null if the best score is lower."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Classify":
        if self.method == "model":
            if self.normalize or self.calibrate:
                raise ValueError("normalize and calibrate cannot be used with method: model")
        elif self.choices is None:
            raise ValueError("choices is missing: list the labels")
        if self.normalize and self.method == "first_token":
            raise ValueError("normalize requires method: sequence")
        if self.choices is not None and len(self.choices) == 1:
            raise ValueError("choices: give at least two labels")
        return self


def _params(step: TaskStep[Classify]) -> tuple[Params, ...]:
    """The requests' parameters; without a model the labels have no token ids yet."""
    return (_LOGITS,) if step.section.method == "model" else (token_logprobs([]),)


def _templates(step: TaskStep[Classify]) -> Templates:
    """Compile the prompt with `choices`, listing the labels in a chat that does not name them."""
    prompt, choices = step.prompt, step.section.choices or ()
    if step.section.method != "model":
        prompt = with_listing(prompt, choices, step.prompt_prefix)
    variables = {CHOICES: ChoiceList(choices)}
    return {"prompt": compile_prompt(prompt, step.prompt_prefix, variables)}


def _build(step: TaskStep[Classify], context: TaskContext) -> "LabelChooser | ModelChooser":
    section, key = step.section, step.key_of("choices")
    encoder, judge = step.encoder(context), LabelJudge(section.abstain_below)
    if section.method == "model":
        choices = None if section.choices is None else labels_of(section.choices)
        labels = model_labels(context.config, choices, step.key_of(""))
        return ModelChooser(encoder, labels, judge)
    labels = labels_of(section.choices or ())
    sequences: list[Sequence[int]] = label_tokens(
        labels, encoder, step.prompt.text, step.key_prefix
    )
    if section.method == "first_token":
        sequences = _first_tokens(labels, sequences, key)
    elif not is_prefix_free(sequences):
        sequences = _with_end(sequences, context, key)
    baseline = (
        _content_free_prompt(encoder, step.key_of("calibrate")) if section.calibrate else None
    )
    lengths = [len(tokens) if section.normalize else 1 for tokens in sequences]
    return LabelChooser(encoder, labels, LabelTrie(sequences), lengths, baseline, judge)


def _content_free_prompt(encoder: PromptEncoder, key: str) -> Sequence[int]:
    """The prompt's token ids with `_CONTENT_FREE` in every column."""
    row = dict.fromkeys(encoder.templates.columns, _CONTENT_FREE)
    (prompt,) = encoder.encode([row])
    if isinstance(prompt, Reject):
        raise UserError(
            f"{key}: the prompt cannot be rendered with {_CONTENT_FREE!r} in every column: "
            f"{prompt.message}"
        )
    return prompt


CLASSIFY = TaskKind(
    name="classify",
    section=Classify,
    fields=lambda _: _FIELDS,
    build=_build,
    writes_text=False,
    # A sequence-classification model is a pooling model.
    runner=lambda section: "pooling" if section.method == "model" else "generate",
    join=lambda section: Join("mean", LabelJudge(section.abstain_below).join),
    templates=_templates,
    params=_params,
    empty_advice="lower abstain_below",
    starter=Starter(
        "labels",
        """\
prompt:                           # Jinja2 templates over the row's columns
  system: You classify the mood of a text.
  user: $text
task:
  kind: classify
  choices:                        # label: description
    positive: the writer is pleased
    neutral: a plain report or question
    negative: the writer is angry, sad or worried
$labels  # calibrate: true               # subtract what the model prefers without a text
  # abstain_below: 0.4            # no label if the most likely one is less probable than this
""",
    ),
)


class LabelJudge:
    """Turns scores into cells."""

    def __init__(self, abstain_below: float | None) -> None:
        self._abstain_below = abstain_below

    def cells(self, scores: Mapping[str, float]) -> Cells:
        """The cells for scores that sum to 1. In a tie, the job's first label wins."""
        label = max(scores, key=lambda name: scores[name])
        best, second = sorted(scores.values(), reverse=True)[:2]
        abstains = self._abstain_below is not None and best < self._abstain_below
        return {
            "label": None if abstains else label,
            "label_score": best,
            "label_scores": dict(scores),
            "margin": best - second,
            "entropy": entropy(scores.values()),
        }

    def join(self, parts: Sequence[Cells]) -> Cells:
        """The cells of a text: the mean of its chunks' scores, scaled to sum to 1."""
        sums: dict[str, float] = {}
        for part in parts:
            for label, score in dict(part["label_scores"]).items():
                sums[label] = sums.get(label, 0.0) + score
        total = math.fsum(sums.values())
        return self.cells({label: score / total for label, score in sums.items()})


class LabelChooser:
    """Sends one round of requests per row, one for each inner node of the labels' trie.

    Each label's log-probability is divided by its entry in `lengths`. `baseline` holds the token
    ids of the content-free prompt.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - called only by `_build`
        self,
        encoder: PromptEncoder,
        labels: Sequence[str],
        trie: LabelTrie,
        lengths: Sequence[int],
        baseline: Sequence[int] | None,
        judge: LabelJudge,
    ) -> None:
        self._encoder = encoder
        self._labels = labels
        self._trie = trie
        self._lengths = lengths
        self._baseline = baseline
        # The labels' log-probabilities after `baseline`, once the first row has requested them.
        self._bias: Sequence[float] | None = None
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return _prepared(self._encoder, rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        logprobs = yield from self._logprobs(prepared.prompts[0])
        if isinstance(logprobs, Reject):
            return logprobs
        if self._baseline is not None:
            # Rows that start before the first one has its answer also ask; the prefix is cached.
            bias = self._bias or (yield from self._logprobs(self._baseline))
            if isinstance(bias, Reject):
                return bias
            self._bias = self._bias or bias
            logprobs = [
                logprob - offset for logprob, offset in zip(logprobs, self._bias, strict=True)
            ]
        values = [value / length for value, length in zip(logprobs, self._lengths, strict=True)]
        return self._judge.cells(dict(zip(self._labels, softmax(values), strict=True)))

    def _logprobs(self, prompt: Sequence[int]) -> Dialogue[list[float] | Reject]:
        answers = completions((yield self._trie.requests(prompt)))
        if isinstance(answers, Reject):
            return answers
        logprobs = self._trie.logprobs(answers)
        if not all(map(math.isfinite, logprobs)):
            reason = "a label's log-probability is not a finite number"
            return Reject(RejectClass.ENGINE_ERROR, reason, attempts=1)
        return logprobs


class ModelChooser:
    """Sends one request per row to a sequence-classification model."""

    def __init__(self, encoder: PromptEncoder, labels: Sequence[str], judge: LabelJudge) -> None:
        self._encoder = encoder
        self._labels = labels
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return _prepared(self._encoder, rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (answer,) = yield [Request(prepared.prompts[0], _LOGITS)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine returned no logits")
        scores = softmax(answer.vector.tolist())
        return self._judge.cells(dict(zip(self._labels, scores, strict=True)))


def _prepared(encoder: PromptEncoder, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
    return [
        prompt if isinstance(prompt, Reject) else PreparedRow([prompt])
        for prompt in encoder.encode(rows)
    ]


def softmax(values: Sequence[float]) -> list[float]:
    """Numbers that sum to 1, proportional to the exponentials of the values."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(probabilities: Any) -> float:
    """Entropy in nats: 0 for a certain outcome, log n for n equal probabilities."""
    return math.fsum(-p * math.log(p) for p in probabilities if p > 0)


def label_tokens(
    labels: Sequence[str], encoder: PromptEncoder, text: str | None, key_prefix: str
) -> list[Sequence[int]]:
    """Encode the labels as answers: at the start of the assistant's turn, or after `text`.

    After a text that does not end in white space, each label follows a space. Raises `UserError` if
    the chat template rejects the prompt.
    """
    tokenizer = encoder.tokenizer
    if text is not None:
        space = "" if text[-1:].isspace() else " "
        return encode_after(tokenizer, text[-1:], [space + label for label in labels])
    chat = [(role, "x") for role in encoder.templates.roles]
    (before,) = tokenizer.render_chats([chat])
    if isinstance(before, Reject):
        raise UserError(
            f"{key_prefix}prompt: the model's chat template rejects it: {before.message}"
        )
    return encode_after(tokenizer, before, labels)


def _first_tokens(
    labels: Sequence[str], sequences: Sequence[Sequence[int]], key: str
) -> list[Sequence[int]]:
    by_token: dict[int, list[str]] = {}
    for label, tokens in zip(labels, sequences, strict=True):
        by_token.setdefault(tokens[0], []).append(label)
    for clashing in by_token.values():
        if len(clashing) > 1:
            raise UserError(
                f"{key}: {', '.join(clashing)} start with the same token in this model; "
                "use method: sequence"
            )
    return [tokens[:1] for tokens in sequences]


def _with_end(
    sequences: Sequence[Sequence[int]], context: TaskContext, key: str
) -> list[Sequence[int]]:
    """Append the end of the turn to each sequence, so that none is a prefix of another."""
    end = context.tokenizer.end_of_turn
    ended = sequences if end is None else [[*tokens, end] for tokens in sequences]
    if not is_prefix_free(ended):
        raise UserError(
            f"{key}: in this model's tokens, one label equals another or is its start; "
            "rename one of them"
        )
    return list(ended)


def _unnamed(config: Mapping[str, Any]) -> dict[str, str]:
    """The names that transformers gives to unnamed labels; it assumes two by default."""
    architectures = config.get("architectures") or ()
    default = 2 if any("SequenceClassification" in name for name in architectures) else 0
    return {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", default))}


def model_labels(
    config: Mapping[str, Any], choices: Sequence[str] | None, prefix: str
) -> list[str]:
    """The labels of a sequence-classification model, in the order of its outputs.

    The job's choices must be the same labels, or names for unnamed labels (`LABEL_0`, …). Raises
    `UserError` for other choices, and for models without labels to choose from.
    """
    by_id = config.get("id2label") or _unnamed(config)
    if not by_id:
        raise UserError(
            f"{prefix}method: config.json has no labels (id2label), so the model is not a "
            "sequence-classification model; use method: sequence"
        )
    labels = [str(by_id[key]) for key in sorted(by_id, key=int)]
    if len(labels) == 1 or config.get("problem_type") == "multi_label_classification":
        raise UserError(f"{prefix}method: the model does not choose one of several labels")
    if choices is None or set(choices) == set(labels):
        return labels
    if len(choices) == len(labels) and labels == [f"LABEL_{i}" for i in range(len(labels))]:
        return list(choices)
    raise UserError(f"{prefix}choices: the model's labels differ; use {', '.join(labels)}")
