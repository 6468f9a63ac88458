"""Tag: one question a label behind a shared document; an engine is scripted."""

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


def section(**task: Any) -> TaskStep[Any]:
    return label_step(**{"kind": "tag", "choices": CHOICES, **task})


def asked(step: TaskStep[Any], text: str = "T") -> list[str]:
    """The texts of the requests about a row."""
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": text}])
    _, (requests,) = rounds(task, entry, scripted(lambda _, __: -1.0))
    head = len(entry.prompts[0])
    return [
        text_of(request.prompt_token_ids[:head]) + text_of(request.prompt_token_ids[head:])
        for request in requests
    ]


def test_each_label_has_its_question_behind_the_document() -> None:
    """The document stands first and is the same in all requests; the question ends the turn."""
    document = "<|user|>\nT\n\n"
    assert asked(section()) == [
        f'{document}Does the label "news" (what happened) fit this text? Answer yes or no.\n',
        f'{document}Does the label "sports" fit this text? Answer yes or no.\n',
    ]


def test_the_document_is_the_same_tokens_in_every_request() -> None:
    """What the requests share is a prefix of token ids, so the engine computes it once."""
    task = section().build(CONTEXT)
    (entry,) = task.prepare([{"text": "A text of some length."}])
    assert isinstance(entry, PreparedRow)
    _, (requests,) = rounds(task, entry, scripted(lambda _, __: -1.0))
    head = list(entry.prompts[0])
    assert [list(each.prompt_token_ids[: len(head)]) for each in requests] == [head, head]


def test_the_question_ends_the_last_turn() -> None:
    """Among several messages the last one asks."""
    turns = [{"role": "system", "content": "first"}, {"role": "user", "content": "{{ text }}"}]
    (_, second) = asked(section(prompt={"messages": turns}))
    assert second == (
        '<|system|>\nfirst\n<|user|>\nT\n\nDoes the label "sports" fit this text? '
        "Answer yes or no.\n"
    )


def test_a_plain_text_is_asked_for_its_next_word() -> None:
    """Without a chat the question ends where the answer begins."""
    (_, second) = asked(section(prompt={"text": "{{ text }}"}))
    assert second == (
        'T\n\nQuestion: Does the label "sports" fit this text? Answer yes or no.\nAnswer:'
    )


def test_the_question_may_be_the_jobs_own() -> None:
    """A template over label and description; a document that holds the mark does no harm."""
    step = section(question="{{ label | upper }}? {{ description or '' }}")
    assert asked(step, "tokenmill-question") == [
        "<|user|>\ntokenmill-question\n\nNEWS? what happened\n",
        "<|user|>\ntokenmill-question\n\nSPORTS? \n",
    ]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("{{ text }}?", "task.question: text is not known here; .* description and label"),
        ("Is it good?", "two labels have the same question; write {{ label }}"),
        ("{{ label", "task.question, line 1"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(question: str, message: str) -> None:
    """Other variables, the same question for all, and templates that do not compile."""
    with pytest.raises(UserError, match=message):
        section(question=question).build(CONTEXT)


def probability(yes: Mapping[str, float], no: Mapping[str, float]) -> float:
    """A label's score where the words have these probabilities, all others next to none."""
    tokens = {
        FakeTokenizer().encode_continuations([word])[0][0]: p for word, p in {**yes, **no}.items()
    }
    task = section(choices=["news"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    engine = scripted(lambda _, token: math.log(tokens.get(token, 1e-12)))
    result, _ = rounds(task, entry, engine)
    return float(result["tag_scores"]["news"])


def test_a_score_is_the_share_of_yes() -> None:
    """P(yes) over p(yes) + p(no), each summed over its words."""
    assert probability({"yes": 0.3}, {"no": 0.1}) == pytest.approx(0.75)
    found = probability({"yes": 0.1, "Yes": 0.1, " Ye": 0.1}, {"No": 0.1})
    assert found == pytest.approx(0.75)


@settings(deadline=None)
@given(st.floats(-5000, -1e-9), st.floats(-5000, -1e-9))
def test_a_score_is_a_probability_however_unlikely_the_words(yes: float, no: float) -> None:
    """Two words of next to no probability still compare; the score lies in 0 to 1."""
    words = {
        FakeTokenizer().encode_continuations([word])[0][0]
        for word in ("yes", "Yes", " yes", " Yes")
    }
    task = section(choices=["news"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    result, _ = rounds(task, entry, scripted(lambda _, token: yes if token in words else no))
    score = result["tag_scores"]["news"]
    assert 0 <= score <= 1
    # Four words of yes ("yes" and "Yes" with and without a space) as of no.
    if abs(yes - no) < 30:
        number = len(words) / 4
        expected = 1 / (1 + math.exp(no - yes) / number)
        assert score == pytest.approx(expected, rel=1e-6)


def test_words_that_cannot_be_told_apart_are_refused() -> None:
    """A word for yes that begins as one for no would count for both."""
    with pytest.raises(UserError, match=r"task\.yes_words: .* use other words"):
        answer_tokens(FakeTokenizer(), ["not bad"], ["not good"], "task.yes_words")


def test_a_space_that_is_a_token_tells_nothing() -> None:
    """The token that begins a yes and a no behind a space is left out; the words stay."""
    tokens = answer_tokens(Words(), ["yes", "Yes"], ["no"], "task.yes_words")
    assert tokens == (sorted([_PIECES["yes"], _PIECES["Yes"]]), [_PIECES["no"]])


@settings(deadline=None)
@given(SCORES, st.floats(0, 1), st.none() | st.integers(1, 3))
def test_tags_are_the_likeliest_above_the_threshold(
    scores: dict[str, float], threshold: float, most: int | None
) -> None:
    """By falling score, none below the threshold, none left out that is likelier than one kept."""
    cells = Thresholds(threshold, {}, most).cells(scores)
    tags = cells["tags"]
    assert cells["tag_scores"] == scores
    assert [scores[tag] for tag in tags] == sorted((scores[tag] for tag in tags), reverse=True)
    wanted = sorted((score for score in scores.values() if score >= threshold), reverse=True)
    assert [scores[tag] for tag in tags] == wanted[:most]


def test_a_label_may_have_its_own_threshold() -> None:
    """`thresholds` stands instead of `threshold` for the labels that it names."""
    cells = Thresholds(0.5, {"a": 0.9, "b": 0.1}, None).cells({"a": 0.8, "b": 0.2, "c": 0.6})
    assert cells["tags"] == ["c", "b"]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4))
def test_parts_join_by_union(values: list[list[float]]) -> None:
    """A tag of one part is a tag of the whole, with the best of its scores."""
    thresholds = Thresholds(0.5, {}, None)
    parts = [thresholds.cells(dict(zip("abc", scores, strict=True))) for scores in values]
    join = section(choices=["a", "b", "c"]).join
    assert join is not None
    joined: Any = join.cells(parts)
    assert set(joined["tags"]) == {tag for part in parts for tag in part["tags"]}
    for label in "abc":
        assert joined["tag_scores"][label] == max(part["tag_scores"][label] for part in parts)


class Words(FakeTokenizer):
    """A token a word or a piece of white space, which at the end of a text is one more.

    As in GPT-2's tokenizer, of the space before a word the last character stands alone.
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
def test_head_and_question_are_the_tokens_of_the_whole(prompt: dict[str, str], text: str) -> None:
    """The document is tokenized apart from the question, and as if it were not."""
    step = section(prompt=prompt, choices=["news"])
    tools = TaskContext(Words(), 8192)
    task = step.build(tools)
    (entry,) = task.prepare([{"text": text}])
    _, ((request,),) = rounds(task, entry, scripted(lambda _, __: -1.0))
    (whole,) = asked(step, text)
    assert list(request.prompt_token_ids) == tools.tokenizer.encode_texts([whole])[0]


class ShoutingTokenizer(FakeTokenizer):
    """A chat template that ends a turn otherwise after a shout, and forgets what is whispered."""

    def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
        texts = ["".join(content for _, content in chat) for chat in chats]
        return [
            "(whisper)" if "psst" in text else text + ("!!" if "HEY" in text else ".")
            for text in texts
        ]


def test_a_row_whose_turn_ends_otherwise_is_rejected() -> None:
    """The questions are made once; a chat template that hangs on the row is found row by row."""
    task = section().build(TaskContext(ShoutingTokenizer(), 8192))
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


def test_a_chat_template_without_the_question_is_refused() -> None:
    """A template that leaves the user's turn out cannot ask; that is said before the run."""

    class Deaf(FakeTokenizer):
        def render_chats(self, chats: Sequence[Chat]) -> list[str | Reject]:
            return ["silence" for _ in chats]

    with pytest.raises(UserError, match="leaves the question out"):
        section().build(TaskContext(Deaf(), 8192))


def test_a_refused_request_rejects_its_row() -> None:
    """A label that was not asked about has no score, so the row has none."""
    task = section().build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert rounds(task, entry, lambda _: BROKEN)[0] == BROKEN
    result, _ = rounds(task, entry, scripted(lambda _, __: math.nan))
    assert isinstance(result, Reject)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"thresholds": {"weather": 0.5}}, "thresholds: weather is none of the choices"),
        ({"threshold": 2}, "less than or equal to 1"),
        ({"max_tags": 0}, "greater than or equal to 1"),
        ({"yes_words": [True]}, "valid string"),
        ({"no_words": []}, "at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(task: dict[str, Any], message: str) -> None:
    """A mistake is found when the job is read."""
    with pytest.raises(ValidationError) as refused:
        section(**task)
    assert message in str(refused.value.errors()[0]["msg"])
