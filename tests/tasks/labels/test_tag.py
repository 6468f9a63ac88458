"""Tag on a scripted engine: one question per label after a shared document."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from helpers.factories import text_of
from helpers.label_tasks import BROKEN, CONTEXT, label_step, rounds, scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import Chat
from tokenmill.reject import Reject, RejectClass
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.labels.tag import Thresholds, answer_tokens
from tokenmill.tasks.task import PreparedRow, TaskContext

SCORES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1)
CHOICES = {"news": "what happened", "sports": None}


def tag(**task: Any) -> TaskStep[Any]:
    return label_step(**{"kind": "tag", "choices": CHOICES, **task})


def request_texts(step: TaskStep[Any], text: str = "T") -> list[str]:
    """The prompts of a row's requests."""
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": text}])
    _, (requests,) = rounds(task, entry, scripted(lambda _, __: -1.0))
    head = len(entry.prompts[0])
    return [
        text_of(request.prompt_token_ids[:head]) + text_of(request.prompt_token_ids[head:])
        for request in requests
    ]


def test_each_label_has_its_question_after_the_document() -> None:
    """The document comes first and is the same in all requests; the question ends the turn."""
    document = "<|user|>\nT\n\n"
    assert request_texts(tag()) == [
        f'{document}Does the label "news" (what happened) fit this text? Answer yes or no.\n',
        f'{document}Does the label "sports" fit this text? Answer yes or no.\n',
    ]


def test_the_document_is_the_same_tokens_in_every_request() -> None:
    """The requests share a prefix of token ids, so the engine computes it once."""
    task = tag().build(CONTEXT)
    (entry,) = task.prepare([{"text": "A text of some length."}])
    assert isinstance(entry, PreparedRow)
    _, (requests,) = rounds(task, entry, scripted(lambda _, __: -1.0))
    head = list(entry.prompts[0])
    assert [list(request.prompt_token_ids[: len(head)]) for request in requests] == [head, head]


def test_the_question_ends_the_last_turn() -> None:
    """With several messages, the question is at the end of the last one."""
    turns = [{"role": "system", "content": "first"}, {"role": "user", "content": "{{ text }}"}]
    (_, second) = request_texts(tag(prompt={"messages": turns}))
    assert second == (
        '<|system|>\nfirst\n<|user|>\nT\n\nDoes the label "sports" fit this text? '
        "Answer yes or no.\n"
    )


def test_the_question_about_a_plain_text_leads_to_the_answer() -> None:
    """Without a chat, the question ends with `Answer:`."""
    (_, second) = request_texts(tag(prompt={"text": "{{ text }}"}))
    assert second == (
        'T\n\nQuestion: Does the label "sports" fit this text? Answer yes or no.\nAnswer:'
    )


def test_a_job_can_set_the_question() -> None:
    """The question is a template over label and description; the placeholder in a text is kept."""
    step = tag(question="{{ label | upper }}? {{ description or '' }}")
    assert request_texts(step, "tokenmill-question") == [
        "<|user|>\ntokenmill-question\n\nNEWS? what happened\n",
        "<|user|>\ntokenmill-question\n\nSPORTS? \n",
    ]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("{{ text }}?", "task.question: text is not known here; .* description and label"),
        ("Is it good?", "two labels have the same question; use {{ label }}"),
        ("{{ label", "task.question, line 1"),
    ],
)
def test_an_invalid_question_is_an_error(question: str, message: str) -> None:
    """Covers other variables, the same question for all labels, and invalid templates."""
    with pytest.raises(UserError, match=message):
        tag(question=question).build(CONTEXT)


def probability(yes: Mapping[str, float], no: Mapping[str, float]) -> float:
    """A label's score if the words have these probabilities and all others nearly none."""
    tokens = {
        FakeTokenizer().encode_continuations([word])[0][0]: p for word, p in {**yes, **no}.items()
    }
    task = tag(choices=["news"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    engine = scripted(lambda _, token: math.log(tokens.get(token, 1e-12)))
    result, _ = rounds(task, entry, engine)
    return float(result["tag_scores"]["news"])


def test_a_score_is_the_share_of_yes() -> None:
    """The score is p(yes) / (p(yes) + p(no)), each summed over its words."""
    assert probability({"yes": 0.3}, {"no": 0.1}) == pytest.approx(0.75)
    score = probability({"yes": 0.1, "Yes": 0.1, " Ye": 0.1}, {"No": 0.1})
    assert score == pytest.approx(0.75)


@settings(deadline=None)
@given(st.floats(-5000, -1e-9), st.floats(-5000, -1e-9))
def test_scores_of_unlikely_words_are_probabilities(yes: float, no: float) -> None:
    """Even very unlikely words are compared, and the score is between 0 and 1."""
    words = {
        FakeTokenizer().encode_continuations([word])[0][0]
        for word in ("yes", "Yes", " yes", " Yes")
    }
    task = tag(choices=["news"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    result, _ = rounds(task, entry, scripted(lambda _, token: yes if token in words else no))
    score = result["tag_scores"]["news"]
    assert 0 <= score <= 1
    # Yes has four words ("yes" and "Yes", with and without a space), and so has no.
    if abs(yes - no) < 30:
        number = len(words) / 4
        expected = 1 / (1 + math.exp(no - yes) / number)
        assert score == pytest.approx(expected, rel=1e-6)


def test_words_with_the_same_first_token_are_an_error() -> None:
    """A first token that means both yes and no would count for both."""
    with pytest.raises(UserError, match=r"task\.yes_words: .* use other words"):
        answer_tokens(FakeTokenizer(), ["not bad"], ["not good"], "task.yes_words")


def test_a_space_that_is_a_token_is_left_out() -> None:
    """A space token that starts both a yes and a no is not counted; the words are."""
    tokens = answer_tokens(WordTokenizer(), ["yes", "Yes"], ["no"], "task.yes_words")
    assert tokens == (sorted([_PIECES["yes"], _PIECES["Yes"]]), [_PIECES["no"]])


@settings(deadline=None)
@given(SCORES, st.floats(0, 1), st.none() | st.integers(1, 3))
def test_tags_are_the_likeliest_above_the_threshold(
    scores: dict[str, float], threshold: float, max_tags: int | None
) -> None:
    """Tags are in descending order of score, at or above the threshold, and at most max_tags."""
    cells = Thresholds(threshold, {}, max_tags).cells(scores)
    tags = cells["tags"]
    assert cells["tag_scores"] == scores
    assert [scores[tag] for tag in tags] == sorted((scores[tag] for tag in tags), reverse=True)
    expected = sorted((score for score in scores.values() if score >= threshold), reverse=True)
    assert [scores[tag] for tag in tags] == expected[:max_tags]


def test_a_label_may_have_its_own_threshold() -> None:
    """`thresholds` replaces `threshold` for the labels that it names."""
    cells = Thresholds(0.5, {"a": 0.9, "b": 0.1}, None).cells({"a": 0.8, "b": 0.2, "c": 0.6})
    assert cells["tags"] == ["c", "b"]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_chunks_join_by_union(values: list[list[float]]) -> None:
    """A tag of one chunk is a tag of the text, with the highest of its scores."""
    thresholds = Thresholds(0.5, {}, None)
    parts = [thresholds.cells(dict(zip("abc", scores, strict=True))) for scores in values]
    join = tag(choices=["a", "b", "c"]).join
    assert join is not None
    joined: Any = join.cells(parts)
    assert set(joined["tags"]) == {tag for part in parts for tag in part["tags"]}
    for label in "abc":
        assert joined["tag_scores"][label] == max(part["tag_scores"][label] for part in parts)


class WordTokenizer(FakeTokenizer):
    """One token per word and per run of white space.

    As in GPT-2's tokenizer, the last space before a word is a separate token, so white space at the
    end of a text is encoded differently.
    """

    def encode_texts(self, texts: Sequence[str]) -> list[Sequence[int] | Reject]:
        return [
            [
                _PIECES.setdefault(piece, len(_PIECES))
                for piece in re.findall(r"\s+(?!\S)|\s|\S+", text)
            ]
            for text in texts
        ]

    def encode_continuations(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [ids for ids in self.encode_texts(texts) if not isinstance(ids, Reject)]


_PIECES: dict[str, int] = {}


@pytest.mark.parametrize("prompt", [{"user": "{{ text }}"}, {"text": "{{ text }}"}])
@pytest.mark.parametrize("text", ["some words", "a line\n", "Does", "tabs\t \t", "."])
def test_head_and_question_match_the_tokens_of_the_whole(prompt: dict[str, str], text: str) -> None:
    """Tokenizing the document and the question separately gives the tokens of the whole."""
    step = tag(prompt=prompt, choices=["news"])
    context = TaskContext(WordTokenizer(), 8192)
    task = step.build(context)
    (entry,) = task.prepare([{"text": text}])
    _, ((request,),) = rounds(task, entry, scripted(lambda _, __: -1.0))
    (whole,) = request_texts(step, text)
    assert list(request.prompt_token_ids) == context.tokenizer.encode_texts([whole])[0]


class ShoutingTokenizer(FakeTokenizer):
    """A chat template that ends turns with HEY differently, and drops turns with psst."""

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        texts = ["".join(content for _, content in chat) for chat in chats]
        return [
            "(whisper)" if "psst" in text else text + ("!!" if "HEY" in text else ".")
            for text in texts
        ]


def test_a_row_whose_turn_ends_differently_is_rejected() -> None:
    """Questions are tokenized once, so a row with another end of the turn is rejected."""
    task = tag().build(TaskContext(ShoutingTokenizer(), 8192))
    rows = [{"text": "a"}, {"text": "HEY"}, {"text": None}, {"text": "psst"}, {"text": "b"}]
    entries = task.prepare(rows)
    assert [
        entry.reject_class if isinstance(entry, Reject) else text_of(entry.prompts[0])
        for entry in entries
    ] == [
        "a\n\n",
        RejectClass.CHAT_TEMPLATE_ERROR,
        RejectClass.EMPTY_INPUT,
        RejectClass.CHAT_TEMPLATE_ERROR,
        "b\n\n",
    ]


def test_a_chat_template_without_the_question_is_an_error() -> None:
    """A template that omits the user's turn is found before the run."""

    class ConstantTemplate(FakeTokenizer):
        def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
            return ["silence" for _ in chats]

    with pytest.raises(UserError, match="omits the question"):
        tag().build(TaskContext(ConstantTemplate(), 8192))


def test_a_failed_request_rejects_its_row() -> None:
    """A row needs the scores of all labels, so one failure rejects it."""
    task = tag().build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert rounds(task, entry, lambda _: BROKEN)[0] == BROKEN
    result, _ = rounds(task, entry, scripted(lambda _, __: math.nan))
    assert isinstance(result, Reject)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"thresholds": {"finance": 0.5}}, "thresholds: finance is not one of the choices"),
        ({"threshold": 2}, "less than or equal to 1"),
        ({"max_tags": 0}, "greater than or equal to 1"),
        ({"yes_words": [True]}, "valid string"),
        ({"no_words": []}, "at least 1"),
    ],
)
def test_invalid_options_are_errors(task: dict[str, Any], message: str) -> None:
    """Invalid options are found when the job is read."""
    with pytest.raises(ValidationError) as raised:
        tag(**task)
    assert message in str(raised.value.errors()[0]["msg"])
