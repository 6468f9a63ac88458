"""The `tag` task: finds all labels that fit, with one yes-or-no question per label.

The document comes first and is the same for all labels; each label's question follows it. The
document is tokenized once per row and the questions once per process, so that the requests of a row
share an identical prefix.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from tokenmill.config.section import Share
from tokenmill.errors import UserError
from tokenmill.prompt.encoder import PromptEncoder
from tokenmill.prompt.template import compile_prompt, compile_text
from tokenmill.prompt.tokenizer import Tokenizer, encode_after
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request
from tokenmill.tasks.kind import Join, TaskKind, TaskStep, Templates
from tokenmill.tasks.labels.choices import CHOICES, ChoiceList, Choices, labels_of
from tokenmill.tasks.labels.label_trie import (
    MAX_TOKENS,
    choice_logprobs,
    completions,
    token_logprobs,
)
from tokenmill.tasks.section import TaskSection
from tokenmill.tasks.starter import Starter
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext

# The tags in descending order of score; the probability of yes for each label.
_FIELDS = (
    pa.field("tags", pa.list_(pa.string())),
    pa.field("tag_scores", pa.map_(pa.string(), pa.float64())),
)
#: The question about each label, after the document.
QUESTION = (
    'Does the label "{{ label }}"{% if description %} ({{ description }}){% endif %} fit this '
    "text? Answer yes or no."
)
# A plain text has no assistant's turn, so the question must lead to the answer.
_TEXT_QUESTION = "Question: " + QUESTION + "\nAnswer:"
# Between the document and the question.
_GAP = "\n\n"
# Any word with which a question may begin.
_WORD = "Does"
# Placeholder for the question while a chat is rendered.
_MARK = "tokenmill-question"
# `math.exp` overflows above about 709.
_MAX_EXPONENT = 700.0
Words = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]


class Tag(TaskSection):
    """`task: {kind: tag, choices: [a, b]}`: any number of labels per row, with probabilities."""

    kind: Literal["tag"] = "tag"
    choices: Choices = Field(description="Labels, labels with descriptions, or a file of them.")
    question: str | None = Field(
        default=None,
        description="Template over label and description that follows the document.",
    )
    threshold: Share = Field(default=0.5, description="Minimum probability of a tag.")
    thresholds: dict[str, Share] = Field(
        default_factory=dict,
        description="Thresholds of single labels, which replace the common one.",
    )
    max_tags: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Keep at most this number of tags, the likeliest."
    )
    yes_words: Words = Field(
        default=("yes", "Yes"), description="Answers that mean yes, with or without a space before."
    )
    no_words: Words = Field(
        default=("no", "No"), description="Answers that mean no, with or without a space before."
    )

    @model_validator(mode="after")
    def _known_labels(self) -> "Tag":
        unknown = sorted(self.thresholds.keys() - set(labels_of(self.choices)))
        if unknown:
            raise ValueError(f"thresholds: {unknown[0]} is not one of the choices")
        return self


def _templates(step: TaskStep[Tag]) -> Templates:
    """Compile the document's prompt, with `choices`."""
    variables = {CHOICES: ChoiceList(step.section.choices)}
    return {"prompt": compile_prompt(step.prompt, step.prompt_prefix, variables)}


def _thresholds(section: Tag) -> "Thresholds":
    return Thresholds(section.threshold, section.thresholds, section.max_tags)


def _build(step: TaskStep[Tag], context: TaskContext) -> "Tagger":
    section = step.section
    heads = Heads(step.encoder(context), step.key_prefix)
    questions = [question + heads.tail for question in _questions(step)]
    tokens = encode_after(context.tokenizer, _GAP, questions)
    return Tagger(
        heads,
        dict(zip(labels_of(section.choices), tokens, strict=True)),
        answer_tokens(
            context.tokenizer, section.yes_words, section.no_words, step.key_of("yes_words")
        ),
        _thresholds(section),
    )


def _questions(step: TaskStep[Tag]) -> list[str]:
    default = QUESTION if step.prompt.turns else _TEXT_QUESTION
    key = step.key_of("question")
    template = compile_text(step.section.question or default, key, {"label", "description"})
    questions = [
        template.render(label=choice.label, description=choice.description)
        for choice in step.section.choices
    ]
    if len(set(questions)) != len(questions):
        raise UserError(f"{key}: two labels have the same question; use {{{{ label }}}} in it")
    return questions


TAG = TaskKind(
    name="tag",
    section=Tag,
    fields=lambda _: _FIELDS,
    build=_build,
    writes_text=False,
    join=lambda section: Join("union", _thresholds(section).join),
    templates=_templates,
    # Without a model, the answer words have no token ids yet.
    params=lambda _: (token_logprobs([]),),
    empty_advice="lower threshold, or keep the likeliest tags with threshold: 0 and max_tags",
    starter=Starter(
        "tags",
        """\
prompt:                           # Jinja2 templates over the row's columns
  system: You sort texts by topic.
  user: $text
task:
  kind: tag
  choices:                        # tag: description; a row can have several tags or none
    business: companies, money and trade
    science: research, nature and health
    sports: matches, races and their results
$labels  threshold: 0.5                  # smallest probability of a tag
  # max_tags: 2                   # with threshold: 0, the likeliest two of every row
""",
    ),
)


class Heads:
    """Encodes documents up to the question, which ends the last turn.

    `tail` is what the chat template writes after the question. It must be the same in every row.
    Raises `UserError` for a chat template that leaves the question out.
    """

    def __init__(self, encoder: PromptEncoder, key_prefix: str) -> None:
        self._encoder = encoder
        roles = encoder.templates.roles
        (self._word,) = encode_after(encoder.tokenizer, _GAP, [_WORD])
        self.tail = ""
        if roles:
            (parts,) = self._split([["x"] * len(roles)])
            if isinstance(parts, Reject):
                raise UserError(f"{key_prefix}prompt: {parts.message}")
            self.tail = parts[1]

    def encode(self, rows: Sequence[Row]) -> list[Sequence[int] | Reject]:
        """The token ids of each row up to the question."""
        contents = self._encoder.render(rows)
        rendered = [item for item in contents if not isinstance(item, Reject)]
        heads: list[str | Reject]
        if self._encoder.templates.is_chat:
            heads = [self._head(parts) for parts in self._split(rendered)]
        else:
            heads = [text + _GAP for (text,) in rendered]
        texts = [head for head in heads if isinstance(head, str)]
        return _refilled(contents, _refilled(heads, self._tokens(texts)))

    def _tokens(self, heads: Sequence[str]) -> list[Sequence[int] | Reject]:
        """Encode heads as if a question followed.

        Many tokenizers encode white space at the end of a text differently from white space before
        a word. So a word is appended, and its tokens are removed.
        """
        followed = self._encode([head + _WORD for head in heads])
        end = self._word
        trimmed = [
            ids[: -len(end)] if not isinstance(ids, Reject) and ids[-len(end) :] == end else None
            for ids in followed
        ]
        alone = (head for head, ids in zip(heads, trimmed, strict=True) if ids is None)
        rest = iter(self._encode(list(alone)))
        return [next(rest) if ids is None else ids for ids in trimmed]

    def _encode(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        tokenizer = self._encoder.tokenizer
        if self._encoder.templates.is_chat:
            return list(tokenizer.encode_continuations(texts))
        return tokenizer.encode_texts(texts)

    def _split(self, contents: Sequence[Sequence[str]]) -> list[tuple[str, str] | Reject]:
        """Render chats, and split each into the text before and after the question."""
        roles = self._encoder.templates.roles
        chats = []
        for item in contents:
            texts = list(item)
            texts[-1] += _GAP + _MARK
            chats.append(list(zip(roles, texts, strict=True)))
        return [
            chat if isinstance(chat, Reject) else _split_at_mark(chat)
            for chat in self._encoder.tokenizer.render_chats(chats)
        ]

    def _head(self, parts: tuple[str, str] | Reject) -> str | Reject:
        if isinstance(parts, Reject):
            return parts
        head, tail = parts
        if tail != self.tail:
            reason = "the chat template ends the question differently in this row"
            return Reject(RejectClass.CHAT_TEMPLATE_ERROR, reason)
        return head


def _split_at_mark(chat: str) -> tuple[str, str] | Reject:
    head, mark, tail = chat.rpartition(_MARK)
    if mark:
        return head, tail
    reason = "the model's chat template omits the question"
    return Reject(RejectClass.CHAT_TEMPLATE_ERROR, reason)


def _refilled(
    items: Sequence[object], values: Sequence[Sequence[int] | Reject]
) -> list[Sequence[int] | Reject]:
    """The items with everything but the rejects replaced, in order, by `values`."""
    rest = iter(values)
    return [item if isinstance(item, Reject) else next(rest) for item in items]


class Tagger:
    """Sends one request per label, all in one round.

    `questions` maps each label to the token ids of its question.
    """

    def __init__(
        self,
        heads: Heads,
        questions: Mapping[str, Sequence[int]],
        tokens: tuple[Sequence[int], Sequence[int]],
        thresholds: "Thresholds",
    ) -> None:
        self._heads = heads
        self._questions = questions
        self._yes, self._no = tokens
        self._sampling = token_logprobs([*self._yes, *self._no])
        self._thresholds = thresholds

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        return [
            head if isinstance(head, Reject) else PreparedRow([head])
            for head in self._heads.encode(rows)
        ]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        head = prepared.prompts[0]
        requests = [
            Request([*head, *tokens], self._sampling) for tokens in self._questions.values()
        ]
        answers = completions((yield requests))
        if isinstance(answers, Reject):
            return answers
        label_logprobs = [choice_logprobs(answer) for answer in answers]
        if not all(math.isfinite(value) for item in label_logprobs for value in item.values()):
            reason = "the log-probability of yes or no is not a finite number"
            return Reject(RejectClass.ENGINE_ERROR, reason, attempts=1)
        scores = [self._probability(logprobs) for logprobs in label_logprobs]
        return self._thresholds.cells(dict(zip(self._questions, scores, strict=True)))

    def _probability(self, logprobs: Mapping[int, float]) -> float:
        yes = _log_sum([logprobs[token] for token in self._yes])
        no = _log_sum([logprobs[token] for token in self._no])
        return 1 / (1 + math.exp(min(no - yes, _MAX_EXPONENT)))


class Thresholds:
    """Decides which probabilities make a tag. `overrides` are the thresholds of single labels."""

    def __init__(
        self, threshold: float, overrides: Mapping[str, float], max_tags: int | None
    ) -> None:
        self._threshold = threshold
        self._overrides = overrides
        self._max_tags = max_tags

    def cells(self, scores: Mapping[str, float]) -> Cells:
        """The cells for the labels' probabilities. In a tie, the job's first label comes first."""
        tags = [
            label
            for label, score in scores.items()
            if score >= self._overrides.get(label, self._threshold)
        ]
        tags.sort(key=lambda label: -scores[label])
        return {"tags": tags[: self._max_tags], "tag_scores": dict(scores)}

    def join(self, parts: Sequence[Cells]) -> Cells:
        """The cells of a text: each label has the highest of its chunks' probabilities."""
        scores: dict[str, float] = {}
        for part in parts:
            for label, score in dict(part["tag_scores"]).items():
                scores[label] = max(score, scores.get(label, 0.0))
        return self.cells(scores)


def answer_tokens(
    tokenizer: Tokenizer, yes_words: Sequence[str], no_words: Sequence[str], key: str
) -> tuple[list[int], list[int]]:
    """The first tokens of answers that mean yes, and of those that mean no.

    Raises `UserError` if a token would mean both, or if there are too many.
    """
    yes, no = _first_tokens(tokenizer, yes_words), _first_tokens(tokenizer, no_words)
    if yes & no:
        raise UserError(
            f"{key}: in this model, a word starts with the same token as one of "
            "no_words; use other words"
        )
    spaced_yes = _first_tokens(tokenizer, [" " + word for word in yes_words])
    spaced_no = _first_tokens(tokenizer, [" " + word for word in no_words])
    # If the space is a separate token, it may begin both answers; such tokens are left out.
    yes_tokens = sorted(yes | (spaced_yes - spaced_no - no))
    no_tokens = sorted(no | (spaced_no - spaced_yes - yes))
    if len(yes_tokens) + len(no_tokens) > MAX_TOKENS:
        raise UserError(
            f"{key}: yes_words and no_words have more than {MAX_TOKENS} tokens; use fewer words"
        )
    return yes_tokens, no_tokens


def _first_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> set[int]:
    # Encoded after a line break: some tokenizers add a space at the start of a text.
    return {tokens[0] for tokens in encode_after(tokenizer, "\n", texts)}


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
