"""Concurrent dialogues: one round for all, with their own answers, and results in order."""

from collections.abc import Sequence

import pytest
from helpers.dialogues import echo, hold
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Request, Sampling
from tokenmill.tasks.task import Dialogue, gather

SAMPLING = Sampling({"max_tokens": 1})


def request(text: str) -> Request:
    (prompt,) = FakeTokenizer().encode_texts([text])
    assert isinstance(prompt, Sequence)
    return Request(prompt, SAMPLING)


def talk(name: str, lengths: Sequence[int]) -> Dialogue[list[list[str]]]:
    """Yields rounds of these lengths; its result is the answers, round by round."""
    heard = []
    for number, length in enumerate(lengths):
        answers = yield [request(f"{name}{number}{place}") for place in range(length)]
        heard.append([str(getattr(answer, "text", answer)) for answer in answers])
    return heard


def heard_alone(name: str, lengths: Sequence[int]) -> list[list[str]]:
    return [
        [f"<{name}{number}{place}>" for place in range(length)]
        for number, length in enumerate(lengths)
    ]


NAMES = "abcdefgh"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=len(NAMES)))
def test_each_dialogue_receives_its_own_answers(shapes: list[list[int]]) -> None:
    """A dialogue has the same result as without the others."""
    dialogues = [talk(name, lengths) for name, lengths in zip(NAMES, shapes, strict=False)]
    results, _ = hold(gather(dialogues), echo)
    assert results == [
        heard_alone(name, lengths) for name, lengths in zip(NAMES, shapes, strict=False)
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=4), max_size=len(NAMES)))
def test_a_round_has_the_requests_of_all_dialogues(shapes: list[list[int]]) -> None:
    """There are as many rounds as in the longest dialogue; requests are in order of dialogues."""
    _, rounds = hold(gather([talk(NAMES[at], shape) for at, shape in enumerate(shapes)]), echo)
    assert rounds == [
        [
            f"{NAMES[at]}{number}{place}"
            for at, shape in enumerate(shapes)
            if number < len(shape)
            for place in range(shape[number])
        ]
        for number in range(max(map(len, shapes), default=0))
    ]


def test_dialogues_that_end_early_do_not_affect_the_others() -> None:
    """Results are in the order of the dialogues, not in the order in which they ended."""
    lengths = {"a": [1, 2, 1], "b": [], "c": [2], "d": [1, 1]}
    results, rounds = hold(gather([talk(name, shape) for name, shape in lengths.items()]), echo)
    assert rounds == [["a00", "c00", "c01", "d00"], ["a10", "a11", "d10"], ["a20"]]
    assert results == [heard_alone(name, shape) for name, shape in lengths.items()]


@pytest.mark.parametrize("num_dialogues", [0, 1, 3])
def test_dialogues_without_requests_need_no_round(num_dialogues: int) -> None:
    """Their results are available at once."""
    results, rounds = hold(gather([talk("a", []) for _ in range(num_dialogues)]), echo)
    assert (results, rounds) == ([[]] * num_dialogues, [])


def test_a_reject_is_an_answer() -> None:
    """A failed request sends its reject to the dialogue that made it, at its position."""
    reject = Reject(RejectClass.ENGINE_ERROR, "refused", 1)
    dialogues = [talk("a", [2]), talk("b", [1])]
    results, _ = hold(gather(dialogues), lambda text: reject if text == "a00" else echo(text))
    assert results == [[[str(reject), "<a01>"]], [["<b00>"]]]


def test_gathered_dialogues_can_be_gathered() -> None:
    """A task can gather dialogues within its own."""
    inner = gather([talk("a", [1, 1]), talk("b", [1])])

    def outer() -> Dialogue[object]:
        return (yield from inner)

    results, rounds = hold(gather([outer(), outer_of(talk("c", [1, 1]))]), echo)
    assert rounds == [["a00", "b00", "c00"], ["a10", "c10"]]
    assert results == [[[["<a00>"], ["<a10>"]], [["<b00>"]]], [["<c00>"], ["<c10>"]]]


def outer_of(dialogue: Dialogue[object]) -> Dialogue[object]:
    return (yield from dialogue)
