"""Classify: what is asked, and what the answers come to; an engine is scripted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from helpers.factories import text_of
from helpers.label_tasks import BROKEN, CONTEXT, LogProb, label_step, rounds, scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Pooling, Request, Sampling
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.labels.classify import LabelJudge, entropy, model_labels, softmax
from tokenmill.tasks.labels.label_trie import MOST_TOKENS, LabelTrie, inner_nodes, is_prefix_free
from tokenmill.tasks.task import PreparedRow, TaskContext

SCORES = st.lists(st.floats(-200, 0), min_size=2, max_size=12)


def refusal(**task: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        label_step(**task)
    return str(refused.value.errors()[0]["msg"])


def answered(step: TaskStep[Any], logprob: LogProb, text: str = "T") -> dict[str, Any]:
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": text}])
    result, _ = rounds(task, entry, scripted(logprob))
    assert isinstance(result, Mapping)
    return dict(result)


def by_token(prompt: Sequence[int], token: int) -> float:
    """Some log-probability that hangs on the token and on how many stand before it."""
    return -(token % 7 + 1) / (len(prompt) % 5 + 1)


def written(tokens: Sequence[int], label: str) -> float:
    """A label's log-probability by `by_token`, computed token by token."""
    prompt = list(tokens)
    total = 0.0
    for token in FakeTokenizer().encode_continuations([label])[0]:
        total += by_token(prompt, token)
        prompt.append(token)
    return total


@settings(deadline=None)
@given(SCORES)
def test_softmax_is_a_distribution_in_proportion(values: list[float]) -> None:
    """Scores sum to 1, and the ratio of two is the exponential of their values' difference."""
    scores = softmax(values)
    assert sum(scores) == pytest.approx(1, abs=1e-12)
    assert all(0 <= score <= 1 for score in scores)
    for value, score in zip(values, scores, strict=True):
        assert score == pytest.approx(scores[0] * math.exp(value - values[0]), rel=1e-6, abs=1e-300)


@settings(deadline=None)
@given(SCORES)
def test_margin_and_entropy_are_those_of_the_scores(values: list[float]) -> None:
    """The margin is the best less the second; the entropy lies between 0 and log n, in nats."""
    scores = {str(at): score for at, score in enumerate(softmax(values))}
    cells = LabelJudge(None).cells(scores)
    ordered = sorted(scores.values())
    assert cells["label_score"] == ordered[-1] == scores[cells["label"]]
    assert cells["margin"] == ordered[-1] - ordered[-2]
    expected = -sum(score * math.log(score) for score in ordered if score > 0)
    assert cells["entropy"] == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= cells["entropy"] <= math.log(len(scores)) + 1e-9


def test_entropy_of_equal_scores_is_the_logarithm_of_their_number() -> None:
    """Four equally likely labels leave log 4 nats; a sure one leaves none."""
    assert entropy([0.25] * 4) == pytest.approx(math.log(4))
    assert entropy([1.0, 0.0]) == 0


def test_of_equal_labels_the_first_wins() -> None:
    """A tie is decided by the job's order, so that it is decided the same way each time."""
    assert LabelJudge(None).cells({"b": 0.5, "a": 0.5})["label"] == "b"


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_trie_asks_for_every_token_of_every_sequence_once(
    sequences: list[list[int]],
) -> None:
    """Each sequence's each token is asked about behind the tokens before it, in one place."""
    nodes = inner_nodes(sequences)
    wanted = {(tuple(each[:at]), each[at]) for each in sequences for at in range(len(each))}
    asked = [(prefix, token) for prefix, tokens in nodes.items() for token in tokens]
    assert len(asked) == len(set(asked))
    assert set(asked) == wanted
    assert [len(prefix) for prefix in nodes] == sorted(len(prefix) for prefix in nodes)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_code_is_prefix_free_if_no_word_begins_another(sequences: list[list[int]]) -> None:
    """No sequence is equal to another or its start."""
    clashes = [
        (one, other)
        for at, one in enumerate(sequences)
        for number, other in enumerate(sequences)
        if at != number and other[: len(one)] == one
    ]
    assert is_prefix_free(sequences) == (not clashes)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_tries_log_probabilities_are_the_sums_along_the_sequences(
    sequences: list[list[int]],
) -> None:
    """The log-probability of a sequence is the sum of those of its tokens in their places."""
    trie = LabelTrie(sequences)
    engine = scripted(by_token)
    answers = [engine(request) for request in trie.requests([9, 9])]
    found = trie.logprobs([answer for answer in answers if isinstance(answer, Completion)])
    for sequence, logprob in zip(sequences, found, strict=True):
        prompt = [9, 9]
        expected = 0.0
        for token in sequence:
            expected += by_token(prompt, token)
            prompt.append(token)
        assert logprob == pytest.approx(expected)


def test_many_tokens_are_asked_for_in_parts() -> None:
    """More tokens than vLLM takes at once are several requests, and none is lost."""
    trie = LabelTrie([[token] for token in range(300)])
    requests = trie.requests([1])
    sizes = [len(request.params.values["logprob_token_ids"]) for request in requests]
    assert max(sizes) <= MOST_TOKENS
    engine = scripted(lambda _, token: -float(token))
    answers = [engine(request) for request in requests]
    found = trie.logprobs([answer for answer in answers if isinstance(answer, Completion)])
    assert found == [-float(token) for token in range(300)]


def test_a_row_is_one_round_of_one_request_a_node() -> None:
    """All nodes of the trie are known beforehand: one round, each behind the same prompt."""
    task = label_step(choices=["reddish", "redwood", "green"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    _, (requests,) = rounds(task, entry, scripted(by_token))
    prompt = text_of(entry.prompts[0])
    assert prompt.startswith("<|user|>\nT\n\nAnswer with one of")
    behind = [text_of(request.prompt_token_ids[len(entry.prompts[0]) :]) for request in requests]
    assert behind == ["", "red", "gre", "reddis", "redwoo"]


def test_scores_are_the_labels_shares_of_their_probabilities() -> None:
    """A label's score is the product of its tokens' probabilities over the sum of all labels'."""
    step = label_step()
    (entry,) = step.build(CONTEXT).prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    weights = {
        label: math.exp(written(entry.prompts[0], label)) for label in ("red", "green", "blue")
    }
    cells = answered(step, by_token)
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    assert cells["label_scores"] == pytest.approx(expected)
    assert cells["label"] == max(expected, key=lambda label: expected[label])


def test_normalised_scores_are_of_the_mean_per_token() -> None:
    """With `normalize` a long label does not lose for its length."""
    step = label_step(choices=["red", "a very long label"], normalize=True)
    cells = answered(step, lambda _prompt, _token: -1.0)
    assert cells["label_scores"] == pytest.approx({"red": 0.5, "a very long label": 0.5})
    plain = answered(label_step(choices=["red", "a very long label"]), lambda _, __: -1.0)
    assert plain["label_scores"]["red"] == pytest.approx(1 / (1 + math.exp(-5)))


def test_calibration_takes_off_what_the_prompt_alone_says() -> None:
    """A bias towards a label that is there without content is gone; what the row adds is left."""

    def biased(prompt: Sequence[int], token: int) -> float:
        red = token == FakeTokenizer().encode_continuations(["red"])[0][0]
        about_red = "ruby" in text_of(prompt)
        return (-0.1 if red else -3.0) + (0.0 if about_red or not red else -1.0)

    choices = ["red", "sky"]
    calibrated = label_step(choices=choices, calibrate=True)
    assert answered(calibrated, biased)["label_scores"]["red"] == pytest.approx(0.5)
    found = answered(calibrated, biased, text="a ruby")["label_scores"]["red"]
    assert found == pytest.approx(1 / (1 + math.exp(-1)))
    assert answered(label_step(choices=choices), biased)["label"] == "red"


def test_the_content_free_prompt_is_asked_once() -> None:
    """The second row asks about itself alone."""
    task = label_step(calibrate=True).build(CONTEXT)
    first, second = task.prepare([{"text": "one"}, {"text": "two"}])
    _, asked = rounds(task, first, scripted(by_token))
    assert "<|user|>\nN/A\n" in text_of(asked[1][0].prompt_token_ids)
    _, again = rounds(task, second, scripted(by_token))
    assert (len(asked), len(again)) == (2, 1)


def test_a_failed_content_free_prompt_is_asked_again() -> None:
    """An engine's refusal rejects the row that it met, and is not kept for the others."""
    task = label_step(calibrate=True).build(CONTEXT)
    entry, baseline = task.prepare([{"text": "one"}, {"text": "N/A"}])
    assert isinstance(baseline, PreparedRow)

    def refusing(request: Request) -> Answer:
        start = list(request.prompt_token_ids[: len(baseline.prompts[0])])
        is_baseline = start == list(baseline.prompts[0])
        return BROKEN if is_baseline else scripted(by_token)(request)

    assert rounds(task, entry, refusing)[0] == BROKEN
    assert isinstance(rounds(task, entry, scripted(by_token))[0], Mapping)


def test_a_prompt_that_takes_no_content_free_text_is_refused() -> None:
    """A template that computes with a column cannot be calibrated; that is said before the run."""
    step = label_step(calibrate=True, prompt={"user": "{{ price / 2 }} {{ text }}"})
    with pytest.raises(UserError, match=r"task\.calibrate: .*'N/A'"):
        step.build(CONTEXT)


def test_first_token_asks_one_request() -> None:
    """The labels' first tokens are enough where they differ."""
    step = label_step(choices=["reddish", "green", "blue"], method="first_token")
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    result, asked = rounds(task, entry, scripted(by_token))
    assert [[list(each.prompt_token_ids) for each in requests] for requests in asked] == [
        [list(entry.prompts[0])]
    ]
    firsts = FakeTokenizer().encode_continuations(["red", "gre", "blu"])
    values = softmax([by_token(entry.prompts[0], token) for (token,) in firsts])
    expected = dict(zip(["reddish", "green", "blue"], values, strict=True))
    assert result["label_scores"] == pytest.approx(expected)


def test_labels_with_the_same_first_token_are_named() -> None:
    """`first_token` cannot tell them apart; the labels and the way out are in the message."""
    step = label_step(choices=["reddish", "redwood", "green"], method="first_token")
    with pytest.raises(UserError, match=r"reddish, redwood begin .* use method: sequence"):
        step.build(CONTEXT)


def test_labels_that_begin_others_are_compared_with_their_ends() -> None:
    """Where a label's tokens begin another's, each has the end of the answer behind it."""
    task = label_step(choices=["red", "reddish", "sky"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    _, (requests,) = rounds(task, entry, scripted(by_token))
    end = FakeTokenizer().end_of_turn
    asked = {
        text_of(request.prompt_token_ids[len(entry.prompts[0]) :]): list(
            request.params.values["logprob_token_ids"]
        )
        for request in requests
    }
    assert end in asked["red"]
    assert asked["sky"] == asked["reddish"] == [end]


@pytest.mark.parametrize(("text", "label"), [("{{ text }} is", " red"), ("{{ text }}:\n", "red")])
def test_behind_a_plain_text_a_space_goes_before_the_label(text: str, label: str) -> None:
    """Behind white space the label stands as it is, behind anything else after one space."""
    task = label_step(prompt={"text": text}).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    assert text_of(entry.prompts[0]) == text.replace("{{ text }}", "T")
    _, (requests,) = rounds(task, entry, scripted(by_token))
    (first,) = FakeTokenizer().encode_continuations([label[:3]])[0]
    assert requests[0].params.values["logprob_token_ids"][0] == first


def test_an_unsure_row_gets_no_label() -> None:
    """Below `abstain_below` the label is null and the scores stay; at it the label stands."""
    even = answered(label_step(choices=["red", "sky"], abstain_below=0.6), lambda _, __: -1.0)
    assert even["label"] is None
    assert even["label_scores"] == pytest.approx({"red": 0.5, "sky": 0.5})
    assert LabelJudge(0.6).cells({"a": 0.5, "b": 0.5}) == {
        **LabelJudge(None).cells({"a": 0.5, "b": 0.5}),
        "label": None,
    }
    assert LabelJudge(0.5).cells({"a": 0.5, "b": 0.5})["label"] == "a"


def test_a_refused_request_rejects_its_row() -> None:
    """One answer that failed leaves no scores that could be trusted."""
    task = label_step(choices=["reddish", "redwood"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    asked = iter(range(9))

    def sometimes(request: Request) -> Answer:
        return BROKEN if next(asked) == 1 else scripted(by_token)(request)

    assert rounds(task, entry, sometimes)[0] == BROKEN


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_numbers_that_are_none_reject_the_row(value: float) -> None:
    """A model that overflows gives no scores instead of wrong ones."""
    task = label_step().build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    result, _ = rounds(task, entry, scripted(lambda _, __: value))
    assert isinstance(result, Reject)
    assert result.reject_class == RejectClass.ENGINE_ERROR


def test_a_row_without_text_is_rejected_before_the_engine() -> None:
    """Rendering's rejects pass through; the other rows are prepared."""
    first, second = label_step().build(CONTEXT).prepare([{"text": None}, {"text": "T"}])
    assert isinstance(first, Reject)
    assert isinstance(second, PreparedRow)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=5))
def test_parts_join_by_the_mean_of_their_scores(values: list[tuple[float, float]]) -> None:
    """A long text's scores are the mean of its parts', and its other columns follow from them."""
    judge = LabelJudge(None)
    parts = [judge.cells(dict(zip("ab", softmax(pair), strict=True))) for pair in values]
    joined = judge.join(parts)
    for label in "ab":
        mean = sum(part["label_scores"][label] for part in parts) / len(parts)
        assert joined["label_scores"][label] == pytest.approx(mean)
    assert joined == judge.cells(joined["label_scores"])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"choices": None}, "choices is missing"),
        ({"method": "first_token", "normalize": True}, "normalize goes with method: sequence"),
        ({"method": "model", "calibrate": True}, "do not go with method: model"),
        ({"abstain_below": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(task: dict[str, Any], message: str) -> None:
    """A contradiction is found when the job is read."""
    assert message in refusal(**task)


CONFIG = {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize(
    ("config", "choices", "labels"),
    [
        ({"id2label": {"1": "bad", "0": "good"}}, None, ["good", "bad"]),
        ({"id2label": {"0": "good", "1": "bad"}}, ["bad", "good"], ["good", "bad"]),
        ({"id2label": {str(at): f"LABEL_{at}" for at in range(11)}}, None, None),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["bad", "good"], ["bad", "good"]),
        (CONFIG, None, ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 3}, ["c", "b", "a"], ["c", "b", "a"]),
    ],
    ids=[
        "its own",
        "the same",
        "in the order of numbers",
        "names for none",
        "left out",
        "a number",
    ],
)
def test_a_models_labels_are_those_of_its_config(
    config: dict[str, Any], choices: list[str] | None, labels: list[str] | None
) -> None:
    """The outputs' names come from id2label; the job's choices must be them, or name them."""
    found = model_labels(config, choices, "task.")
    assert found == (labels or [f"LABEL_{at}" for at in range(11)])


@pytest.mark.parametrize(
    ("config", "choices", "message"),
    [
        ({}, None, "names no labels"),
        ({"architectures": ["LlamaForCausalLM"]}, ["a", "b"], "names no labels"),
        ({"id2label": {"0": "good", "1": "bad"}}, ["good", "worse"], "are others: good, bad"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["a", "b", "c"], "are others: LABEL_0"),
        ({"id2label": {"0": "score"}}, None, "does not choose one label of several"),
        (
            {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
            None,
            "does not choose one label of several",
        ),
    ],
)
def test_a_model_that_cannot_do_it_is_refused(
    config: dict[str, Any], choices: list[str] | None, message: str
) -> None:
    """No labels, other labels, one output, or several labels a text: said before the run."""
    with pytest.raises(UserError, match=message):
        model_labels(config, choices, "task.")


@pytest.mark.parametrize("method", ["sequence", "first_token"])
def test_what_will_be_asked_is_told_early(method: str) -> None:
    """Before the labels are token ids, the engine can still check the requests' other values."""
    (early,) = label_step(method=method).params
    assert isinstance(early, Sampling)
    task = label_step(method=method).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    _, ((request, *_),) = rounds(task, entry, scripted(by_token))
    tokens = request.params.values["logprob_token_ids"]
    assert {**early.values, "logprob_token_ids": tokens} == request.params.values
    assert early.values["logprob_token_ids"] == []


def test_a_classification_model_is_asked_for_its_logits() -> None:
    """`method: model` is a pooling model; its scores are the softmax of its logits."""
    step = label_step(method="model", choices=None, prompt={"text": "{{ text }}"})
    assert step.runner == "pooling"
    config = {"id2label": {"0": "good", "1": "bad"}}
    task = step.build(TaskContext(FakeTokenizer(), 8192, config))
    (entry,) = task.prepare([{"text": "T"}])

    def logits(request: Request) -> Answer:
        assert isinstance(request.params, Pooling)
        assert request.params.values == {"use_activation": False}
        return Completion(0, "", "stop", 1, 0, None, vector=np.array([1, 3], np.float32))

    result, asked = rounds(task, entry, logits)
    assert text_of(asked[0][0].prompt_token_ids) == "T"
    good, bad = softmax([1, 3])
    assert result["label_scores"] == pytest.approx({"good": good, "bad": bad})
    assert result["label"] == "bad"
