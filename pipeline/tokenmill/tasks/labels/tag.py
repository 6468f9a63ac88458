"""Tag: which of the labels fit, each asked about by itself.

The document comes first and is the same for all labels; behind it each label has its own question,
whose answer is yes or no. The document's tokens are made once a row, the questions' once a process:
what the requests of a row share is exactly the same.
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
    MOST_TOKENS,
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
#: Behind the document, for each label.
QUESTION = (
    'Does the label "{{ label }}"{% if description %} ({{ description }}){% endif %} fit this '
    "text? Answer yes or no."
)
# Behind a plain text there is no turn for the answer.
_TEXT_QUESTION = "Question: " + QUESTION + "\nAnswer:"
# Between the document and the question.
_GAP = "\n\n"
# Any word that a question may begin with.
_WORD = "Does"
# Stands for the question while a chat is rendered.
_MARK = "tokenmill-question"
# Beyond it `math.exp` overflows.
_MOST_EXPONENT = 700.0
Words = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]


class Tag(TaskSection):
    """`task: {kind: tag, choices: [a, b]}`."""

    kind: Literal["tag"] = "tag"
    choices: Choices = Field(description="Labels, labels with descriptions, or a file of them.")
    question: str | None = Field(
        default=None, description="A template over label and description, behind the document."
    )
    threshold: Share = Field(default=0.5, description="The least probability of a tag.")
    thresholds: dict[str, Share] = Field(
        default_factory=dict, description="Those of single labels, instead."
    )
    max_tags: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="At most so many, the likeliest."
    )
    yes_words: Words = Field(default=("yes", "Yes"), description="Each, and behind a space.")
    no_words: Words = Field(default=("no", "No"), description="Each, and behind a space.")

    @model_validator(mode="after")
    def _known_labels(self) -> "Tag":
        unknown = sorted(self.thresholds.keys() - set(labels_of(self.choices)))
        if unknown:
            raise ValueError(f"thresholds: {unknown[0]} is none of the choices")
        return self


def _templates(step: TaskStep[Tag]) -> Templates:
    """The document's prompt, with `choices`."""
    given = {CHOICES: ChoiceList(step.section.choices)}
    return {"prompt": compile_prompt(step.prompt, step.prompt_prefix, given)}


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
        raise UserError(f"{key}: two labels have the same question; write {{{{ label }}}}")
    return questions


TAG = TaskKind(
    name="tag",
    section=Tag,
    fields=lambda _: _FIELDS,
    build=_build,
    writes_text=False,
    join=lambda section: Join("union", _thresholds(section).join),
    templates=_templates,
    # Without a model the words have no token ids yet.
    params=lambda _: (token_logprobs([]),),
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
  threshold: 0.5                  # smallest probability of a tag
  # max_tags: 2
""",
    ),
)


class Heads:
    """Renders documents up to the question at the end of the last turn.

    `tail` is what the chat template writes behind it, the same in every row.
    """

    def __init__(self, prompter: PromptEncoder, place: str) -> None:
        self._prompter = prompter
        roles = prompter.templates.roles
        (self._word,) = encode_after(prompter.tokenizer, _GAP, [_WORD])
        self.tail = ""
        if roles:
            (parts,) = self._split([["x"] * len(roles)])
            if isinstance(parts, Reject):
                raise UserError(f"{place}prompt: {parts.message}")
            self.tail = parts[1]

    def encode(self, rows: Sequence[Row]) -> list[Sequence[int] | Reject]:
        """Each row's token ids up to the question."""
        contents = self._prompter.render(rows)
        rendered = [item for item in contents if not isinstance(item, Reject)]
        heads: list[str | Reject]
        if self._prompter.templates.is_chat:
            heads = [self._head(parts) for parts in self._split(rendered)]
        else:
            heads = [text + _GAP for (text,) in rendered]
        texts = [head for head in heads if isinstance(head, str)]
        return _refilled(contents, _refilled(heads, self._tokens(texts)))

    def _tokens(self, heads: Sequence[str]) -> list[Sequence[int] | Reject]:
        """The heads' token ids as they are where a question follows.

        Many tokenizers write the white space at a text's very end otherwise than before a word, so
        a word is put behind and its tokens are taken off.
        """
        followed = self._encode([head + _WORD for head in heads])
        end = self._word
        found = [
            ids[: -len(end)] if not isinstance(ids, Reject) and ids[-len(end) :] == end else None
            for ids in followed
        ]
        alone = (head for head, ids in zip(heads, found, strict=True) if ids is None)
        rest = iter(self._encode(list(alone)))
        return [next(rest) if ids is None else ids for ids in found]

    def _encode(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        tokenizer = self._prompter.tokenizer
        if self._prompter.templates.is_chat:
            return list(tokenizer.encode_continuations(texts))
        return tokenizer.encode_texts(texts)

    def _split(self, contents: Sequence[Sequence[str]]) -> list[tuple[str, str] | Reject]:
        """The chats before and behind the question."""
        roles = self._prompter.templates.roles
        chats = []
        for item in contents:
            texts = list(item)
            texts[-1] += _GAP + _MARK
            chats.append(list(zip(roles, texts, strict=True)))
        return [
            chat if isinstance(chat, Reject) else _parted(chat)
            for chat in self._prompter.tokenizer.render_chats(chats)
        ]

    def _head(self, parts: tuple[str, str] | Reject) -> str | Reject:
        if isinstance(parts, Reject):
            return parts
        head, tail = parts
        if tail != self.tail:
            reason = "the chat template ends the question otherwise in this row"
            return Reject(RejectClass.CHAT_TEMPLATE_ERROR, reason)
        return head


def _parted(chat: str) -> tuple[str, str] | Reject:
    head, mark, tail = chat.rpartition(_MARK)
    if mark:
        return head, tail
    reason = "the model's chat template leaves the question out"
    return Reject(RejectClass.CHAT_TEMPLATE_ERROR, reason)


def _refilled(
    items: Sequence[object], values: Sequence[Sequence[int] | Reject]
) -> list[Sequence[int] | Reject]:
    """The rejects of `items` in their places, and the values in the others."""
    rest = iter(values)
    return [item if isinstance(item, Reject) else next(rest) for item in items]


class Tagger:
    """A round of one request a label; `questions` maps each label to its question's token ids."""

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
        asked = [Request([*head, *tokens], self._sampling) for tokens in self._questions.values()]
        answers = completions((yield asked))
        if isinstance(answers, Reject):
            return answers
        logprobs = [choice_logprobs(answer) for answer in answers]
        if any(not math.isfinite(value) for each in logprobs for value in each.values()):
            reason = "the log-probability of yes or no is not a finite number"
            return Reject(RejectClass.ENGINE_ERROR, reason, attempts=1)
        scores = [self._probability(each) for each in logprobs]
        return self._thresholds.cells(dict(zip(self._questions, scores, strict=True)))

    def _probability(self, logprobs: Mapping[int, float]) -> float:
        yes = _log_sum([logprobs[token] for token in self._yes])
        no = _log_sum([logprobs[token] for token in self._no])
        return 1 / (1 + math.exp(min(no - yes, _MOST_EXPONENT)))


class Thresholds:
    """Which probabilities make a tag."""

    def __init__(self, threshold: float, own: Mapping[str, float], max_tags: int | None) -> None:
        self._threshold = threshold
        self._own = own
        self._max_tags = max_tags

    def cells(self, scores: Mapping[str, float]) -> Cells:
        """The columns for each label's probability; of equal ones the job's first label leads."""
        tags = [
            label
            for label, score in scores.items()
            if score >= self._own.get(label, self._threshold)
        ]
        tags.sort(key=lambda label: -scores[label])
        return {"tags": tags[: self._max_tags], "tag_scores": dict(scores)}

    def join(self, parts: Sequence[Cells]) -> Cells:
        """The cells of a text from those of its chunks: a tag of one chunk is a tag of the text."""
        scores: dict[str, float] = {}
        for part in parts:
            for label, score in dict(part["tag_scores"]).items():
                scores[label] = max(score, scores.get(label, 0.0))
        return self.cells(scores)


def answer_tokens(
    tokenizer: Tokenizer, yes_words: Sequence[str], no_words: Sequence[str], key: str
) -> tuple[list[int], list[int]]:
    """The tokens with which an answer of yes and of no begins. Raises `UserError`."""
    yes, no = _first_tokens(tokenizer, yes_words), _first_tokens(tokenizer, no_words)
    if yes & no:
        raise UserError(
            f"{key}: a word begins with the same token of this model as one of "
            "no_words; use other words"
        )
    spaced_yes = _first_tokens(tokenizer, [" " + word for word in yes_words])
    spaced_no = _first_tokens(tokenizer, [" " + word for word in no_words])
    # Where the space is a token of its own, it tells nothing.
    told_yes = sorted(yes | (spaced_yes - spaced_no - no))
    told_no = sorted(no | (spaced_no - spaced_yes - yes))
    if len(told_yes) + len(told_no) > MOST_TOKENS:
        raise UserError(f"{key}: more than {MOST_TOKENS} words with no_words")
    return told_yes, told_no


def _first_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> set[int]:
    # As they follow a line's end; some tokenizers put a space before what stands alone.
    return {tokens[0] for tokens in encode_after(tokenizer, "\n", texts)}


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
