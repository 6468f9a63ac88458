"""Classify: which one of the labels, how sure, and how all of them compare.

A label's likelihood is that of its tokens as the answer to the prompt; a sequence-classification
model has a number for each label instead. Either way the scores are a softmax over the labels.
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

# Stands for every column in the prompt that asks about nothing (Zhao et al. 2021).
_CONTENT_FREE = "N/A"
# `label_scores` sums to 1; `margin` is the best score less the second; `entropy` is in nats.
_FIELDS = (
    pa.field("label", pa.string()),
    pa.field("label_score", pa.float64()),
    pa.field("label_scores", pa.map_(pa.string(), pa.float64())),
    pa.field("margin", pa.float64()),
    pa.field("entropy", pa.float64()),
)
# Logits: the scores are a softmax, whatever the model's own activation.
_LOGITS = Pooling("classify", {"use_activation": False})


class Classify(TaskSection):
    """`task: {kind: classify, choices: [a, b]}`."""

    kind: Literal["classify"] = "classify"
    choices: Choices | None = Field(
        default=None,
        description="Labels, labels with descriptions, or a file; a model's own by default.",
    )
    method: Literal["sequence", "first_token", "model"] = Field(
        default="sequence",
        description="All of a label's tokens, its first alone, or a sequence-classification model.",
    )
    normalize: bool = Field(
        default=False, description="Mean log-probability per token, for labels of unlike lengths."
    )
    calibrate: bool = Field(
        default=False, description="Divide by the probabilities under a prompt without content."
    )
    abstain_below: Share | None = Field(
        default=None, description="No label for a row whose best score is lower."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Classify":
        if self.method == "model":
            if self.normalize or self.calibrate:
                raise ValueError("normalize and calibrate do not go with method: model")
        elif self.choices is None:
            raise ValueError("choices is missing: say which labels there are")
        if self.normalize and self.method == "first_token":
            raise ValueError("normalize goes with method: sequence")
        if self.choices is not None and len(self.choices) == 1:
            raise ValueError("choices: a single label leaves nothing to choose")
        return self


def _params(step: TaskStep[Classify]) -> tuple[Params, ...]:
    """Without a model the labels have no token ids yet."""
    return (_LOGITS,) if step.section.method == "model" else (token_logprobs([]),)


def _templates(step: TaskStep[Classify]) -> Templates:
    """The prompt with `choices`; a chat that does not name the labels gets a list of them."""
    prompt, choices = step.prompt, step.section.choices or ()
    if step.section.method != "model":
        prompt = with_listing(prompt, choices, step.prompt_prefix)
    given = {CHOICES: ChoiceList(choices)}
    return {"prompt": compile_prompt(prompt, step.prompt_prefix, given)}


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
        sequences = _ended(sequences, context, key)
    baseline = _content_free(encoder, step.key_of("calibrate")) if section.calibrate else None
    lengths = [len(tokens) if section.normalize else 1 for tokens in sequences]
    return LabelChooser(encoder, labels, LabelTrie(sequences), lengths, baseline, judge)


def _content_free(encoder: PromptEncoder, key: str) -> Sequence[int]:
    """The prompt with no content in its columns."""
    row = dict.fromkeys(encoder.templates.columns, _CONTENT_FREE)
    (prompt,) = encoder.encode([row])
    if isinstance(prompt, Reject):
        raise UserError(
            f"{key}: the prompt cannot be asked about the text {_CONTENT_FREE!r} in every column: "
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
  # calibrate: true               # subtract what the model prefers without a text
  # abstain_below: 0.4            # no label if the most likely one is less probable than this
""",
    ),
)


class LabelJudge:
    """Turns labels' scores into cells."""

    def __init__(self, abstain_below: float | None) -> None:
        self._abstain_below = abstain_below

    def cells(self, scores: Mapping[str, float]) -> Cells:
        """The columns for scores that sum to 1; of equal ones the job's first label wins."""
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
        """Of a text's parts: the mean of their scores."""
        sums: dict[str, float] = {}
        for part in parts:
            for label, score in dict(part["label_scores"]).items():
                sums[label] = sums.get(label, 0.0) + score
        total = math.fsum(sums.values())
        return self.cells({label: score / total for label, score in sums.items()})


class LabelChooser:
    """A round of requests a row, one for each inner node of the labels' trie.

    `lengths` divide the labels' log-probabilities; `baseline` is the prompt without content.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - built in one place
        self,
        prompter: PromptEncoder,
        labels: Sequence[str],
        trie: LabelTrie,
        lengths: Sequence[int],
        baseline: Sequence[int] | None,
        judge: LabelJudge,
    ) -> None:
        self._prompter = prompter
        self._labels = labels
        self._trie = trie
        self._lengths = lengths
        self._baseline = baseline
        # The labels' log-probabilities behind `baseline`, once the first row has asked for them.
        self._bias: Sequence[float] | None = None
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return _prepared(self._prompter, rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        logprobs = yield from self._logprobs(prepared.prompts[0])
        if isinstance(logprobs, Reject):
            return logprobs
        if self._baseline is not None:
            # Rows that begin before the first has its answer ask too: the prefix is cached.
            bias = self._bias or (yield from self._logprobs(self._baseline))
            if isinstance(bias, Reject):
                return bias
            self._bias = self._bias or bias
            logprobs = [one - other for one, other in zip(logprobs, self._bias, strict=True)]
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
    """A sequence-classification model: one request a row."""

    def __init__(self, prompter: PromptEncoder, labels: Sequence[str], judge: LabelJudge) -> None:
        self._prompter = prompter
        self._labels = labels
        self._judge = judge

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return _prepared(self._prompter, rows)

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        (answer,) = yield [Request(prepared.prompts[0], _LOGITS)]
        if isinstance(answer, Reject):
            return answer
        if answer.vector is None:
            raise ValueError("the engine gave no logits")
        scores = softmax(answer.vector.tolist())
        return self._judge.cells(dict(zip(self._labels, scores, strict=True)))


def _prepared(prompter: PromptEncoder, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
    return [
        prompt if isinstance(prompt, Reject) else PreparedRow([prompt])
        for prompt in prompter.encode(rows)
    ]


def softmax(values: Sequence[float]) -> list[float]:
    """Positive numbers that sum to 1, in proportion to the exponentials of the values."""
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def entropy(probabilities: Any) -> float:
    """In nats: 0 for a sure one, the logarithm of their number where all are equal."""
    return math.fsum(-p * math.log(p) for p in probabilities if p > 0)


def label_tokens(
    labels: Sequence[str], prompter: PromptEncoder, text: str | None, place: str
) -> list[Sequence[int]]:
    """The labels' token ids as answers: at the start of the assistant's turn, or behind `text`.

    A space goes before them behind a text that does not end in white space.
    """
    tokenizer = prompter.tokenizer
    if text is not None:
        space = "" if text[-1:].isspace() else " "
        return encode_after(tokenizer, text[-1:], [space + label for label in labels])
    chat = [(role, "x") for role in prompter.templates.roles]
    (before,) = tokenizer.render_chats([chat])
    if isinstance(before, Reject):
        raise UserError(f"{place}prompt: the model's chat template refuses it: {before.message}")
    return encode_after(tokenizer, before, labels)


def _first_tokens(
    labels: Sequence[str], sequences: Sequence[Sequence[int]], place: str
) -> list[Sequence[int]]:
    by_token: dict[int, list[str]] = {}
    for label, tokens in zip(labels, sequences, strict=True):
        by_token.setdefault(tokens[0], []).append(label)
    for same in by_token.values():
        if len(same) > 1:
            raise UserError(
                f"{place}: {', '.join(same)} begin with the same token of this model; "
                "use method: sequence"
            )
    return [tokens[:1] for tokens in sequences]


def _ended(
    sequences: Sequence[Sequence[int]], context: TaskContext, place: str
) -> list[Sequence[int]]:
    """The sequences with the end of the answer behind each, so that none is another's start."""
    end = context.tokenizer.end_of_turn
    ended = sequences if end is None else [[*tokens, end] for tokens in sequences]
    if not is_prefix_free(ended):
        raise UserError(
            f"{place}: to this model's tokenizer a label is the start of another, or the same; "
            "use other words"
        )
    return list(ended)


def _unnamed(config: Mapping[str, Any]) -> dict[str, str]:
    """What transformers calls labels that the file leaves out; by its default there are two."""
    architectures = config.get("architectures") or ()
    default = 2 if any("SequenceClassification" in name for name in architectures) else 0
    return {str(at): f"LABEL_{at}" for at in range(config.get("num_labels", default))}


def model_labels(
    config: Mapping[str, Any], choices: Sequence[str] | None, prefix: str
) -> list[str]:
    """The labels of a sequence-classification model's outputs, in their order.

    The job's choices are the same labels, or names for labels that have none (`LABEL_0`).
    """
    by_id = config.get("id2label") or _unnamed(config)
    if not by_id:
        raise UserError(
            f"{prefix}method: the model's config.json names no labels (id2label), so it is no "
            "sequence-classification model; use method: sequence"
        )
    labels = [str(by_id[key]) for key in sorted(by_id, key=int)]
    if len(labels) == 1 or config.get("problem_type") == "multi_label_classification":
        raise UserError(f"{prefix}method: the model does not choose one label of several")
    if choices is None or set(choices) == set(labels):
        return labels
    if len(choices) == len(labels) and labels == [f"LABEL_{at}" for at in range(len(labels))]:
        return list(choices)
    raise UserError(f"{prefix}choices: the model's labels are others: {', '.join(labels)}")
