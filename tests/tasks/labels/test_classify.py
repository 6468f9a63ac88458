"""Classify on a scripted engine: its requests, and the scores from the answers."""

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
from tokenmill.tasks.labels.label_trie import MAX_TOKENS, LabelTrie, inner_nodes, is_prefix_free
from tokenmill.tasks.task import PreparedRow, TaskContext

SCORES = st.lists(st.floats(-200, 0), min_size=2, max_size=12)


def error_of(**task: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        label_step(**task)
    return str(raised.value.errors()[0]["msg"])


def answered(step: TaskStep[Any], logprob: LogProb, text: str = "T") -> dict[str, Any]:
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": text}])
    result, _ = rounds(task, entry, scripted(logprob))
    assert isinstance(result, Mapping)
    return dict(result)


def by_token(prompt: Sequence[int], token: int) -> float:
    """A log-probability that depends on the token and on the number of tokens before it."""
    return -(token % 7 + 1) / (len(prompt) % 5 + 1)


def label_logprob(tokens: Sequence[int], label: str) -> float:
    """A label's log-probability under `by_token`, summed token by token."""
    prompt = list(tokens)
    total = 0.0
    for token in FakeTokenizer().encode_continuations([label])[0]:
        total += by_token(prompt, token)
        prompt.append(token)
    return total


@settings(deadline=None)
@given(SCORES)
def test_softmax_is_a_proportional_distribution(values: list[float]) -> None:
    """Scores sum to 1, and the ratio of two is the exponential of their values' difference."""
    scores = softmax(values)
    assert sum(scores) == pytest.approx(1, abs=1e-12)
    assert all(0 <= score <= 1 for score in scores)
    for value, score in zip(values, scores, strict=True):
        assert score == pytest.approx(scores[0] * math.exp(value - values[0]), rel=1e-6, abs=1e-300)


@settings(deadline=None)
@given(SCORES)
def test_margin_and_entropy_follow_from_the_scores(values: list[float]) -> None:
    """The margin is the best minus the second score; the entropy is in nats, from 0 to log n."""
    scores = {str(i): score for i, score in enumerate(softmax(values))}
    cells = LabelJudge(None).cells(scores)
    ordered = sorted(scores.values())
    assert cells["label_score"] == ordered[-1] == scores[cells["label"]]
    assert cells["margin"] == ordered[-1] - ordered[-2]
    expected = -sum(score * math.log(score) for score in ordered if score > 0)
    assert cells["entropy"] == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= cells["entropy"] <= math.log(len(scores)) + 1e-9


def test_entropy_of_equal_scores_is_the_logarithm_of_their_number() -> None:
    """Four equally likely labels have log 4 nats; a certain one has none."""
    assert entropy([0.25] * 4) == pytest.approx(math.log(4))
    assert entropy([1.0, 0.0]) == 0


def test_ties_are_won_by_the_first_label() -> None:
    """The job's order decides ties, so that the result is deterministic."""
    assert LabelJudge(None).cells({"b": 0.5, "a": 0.5})["label"] == "b"


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_trie_has_every_token_of_every_sequence_once(
    sequences: list[list[int]],
) -> None:
    """Each token of each sequence is a child of exactly one node: the tokens before it."""
    nodes = inner_nodes(sequences)
    expected = {
        (tuple(sequence[:i]), sequence[i]) for sequence in sequences for i in range(len(sequence))
    }
    edges = [(prefix, token) for prefix, tokens in nodes.items() for token in tokens]
    assert len(edges) == len(set(edges))
    assert set(edges) == expected
    assert [len(prefix) for prefix in nodes] == sorted(len(prefix) for prefix in nodes)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_code_is_prefix_free_if_no_word_starts_another(sequences: list[list[int]]) -> None:
    """In a prefix-free code, no sequence equals another or starts it."""
    clashes = [
        (first, second)
        for i, first in enumerate(sequences)
        for j, second in enumerate(sequences)
        if i != j and second[: len(first)] == first
    ]
    assert is_prefix_free(sequences) == (not clashes)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_tries_log_probabilities_are_sums_along_paths(
    sequences: list[list[int]],
) -> None:
    """A sequence's log-probability is the sum over its tokens, each after those before it."""
    trie = LabelTrie(sequences)
    engine = scripted(by_token)
    answers = [engine(request) for request in trie.requests([9, 9])]
    logprobs = trie.logprobs([answer for answer in answers if isinstance(answer, Completion)])
    for sequence, logprob in zip(sequences, logprobs, strict=True):
        prompt = [9, 9]
        expected = 0.0
        for token in sequence:
            expected += by_token(prompt, token)
            prompt.append(token)
        assert logprob == pytest.approx(expected)


def test_many_tokens_are_split_among_requests() -> None:
    """More tokens than vLLM allows in a request are sent in several, and none is lost."""
    trie = LabelTrie([[token] for token in range(300)])
    requests = trie.requests([1])
    sizes = [len(request.params.values["logprob_token_ids"]) for request in requests]
    assert max(sizes) <= MAX_TOKENS
    engine = scripted(lambda _, token: -float(token))
    answers = [engine(request) for request in requests]
    logprobs = trie.logprobs([answer for answer in answers if isinstance(answer, Completion)])
    assert logprobs == [-float(token) for token in range(300)]


def test_a_row_is_one_round_with_a_request_per_node() -> None:
    """All nodes of the trie are requested in one round, each after the same prompt."""
    task = label_step(choices=["reddish", "redwood", "green"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    _, (requests,) = rounds(task, entry, scripted(by_token))
    prompt = text_of(entry.prompts[0])
    assert prompt.startswith("<|user|>\nT\n\nAnswer with one of")
    suffixes = [text_of(request.prompt_token_ids[len(entry.prompts[0]) :]) for request in requests]
    assert suffixes == ["", "red", "gre", "reddis", "redwoo"]


def test_scores_are_shares_of_the_labels_probabilities() -> None:
    """A label's score is its probability divided by the sum over all labels."""
    step = label_step()
    (entry,) = step.build(CONTEXT).prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    weights = {
        label: math.exp(label_logprob(entry.prompts[0], label))
        for label in ("red", "green", "blue")
    }
    cells = answered(step, by_token)
    expected = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    assert cells["label_scores"] == pytest.approx(expected)
    assert cells["label"] == max(expected, key=lambda label: expected[label])


def test_normalize_uses_the_mean_per_token() -> None:
    """With `normalize`, a long label is not penalized for its length."""
    step = label_step(choices=["red", "a very long label"], normalize=True)
    cells = answered(step, lambda _prompt, _token: -1.0)
    assert cells["label_scores"] == pytest.approx({"red": 0.5, "a very long label": 0.5})
    plain = answered(label_step(choices=["red", "a very long label"]), lambda _, __: -1.0)
    assert plain["label_scores"]["red"] == pytest.approx(1 / (1 + math.exp(-5)))


def test_calibration_removes_the_prompts_bias() -> None:
    """A bias towards a label that exists without content is removed; the row's effect remains."""

    def biased(prompt: Sequence[int], token: int) -> float:
        red = token == FakeTokenizer().encode_continuations(["red"])[0][0]
        about_red = "ruby" in text_of(prompt)
        return (-0.1 if red else -3.0) + (0.0 if about_red or not red else -1.0)

    choices = ["red", "sky"]
    calibrated = label_step(choices=choices, calibrate=True)
    assert answered(calibrated, biased)["label_scores"]["red"] == pytest.approx(0.5)
    score = answered(calibrated, biased, text="a ruby")["label_scores"]["red"]
    assert score == pytest.approx(1 / (1 + math.exp(-1)))
    assert answered(label_step(choices=choices), biased)["label"] == "red"


def test_the_content_free_prompt_is_requested_once() -> None:
    """The second row reuses the first row's answers for the content-free prompt."""
    task = label_step(calibrate=True).build(CONTEXT)
    first, second = task.prepare([{"text": "one"}, {"text": "two"}])
    _, first_rounds = rounds(task, first, scripted(by_token))
    assert "<|user|>\nN/A\n" in text_of(first_rounds[1][0].prompt_token_ids)
    _, second_rounds = rounds(task, second, scripted(by_token))
    assert (len(first_rounds), len(second_rounds)) == (2, 1)


def test_a_failed_content_free_prompt_is_requested_again() -> None:
    """If it fails, only the row that requested it is rejected; the next row tries again."""
    task = label_step(calibrate=True).build(CONTEXT)
    entry, baseline = task.prepare([{"text": "one"}, {"text": "N/A"}])
    assert isinstance(baseline, PreparedRow)

    def failing(request: Request) -> Answer:
        start = list(request.prompt_token_ids[: len(baseline.prompts[0])])
        is_baseline = start == list(baseline.prompts[0])
        return BROKEN if is_baseline else scripted(by_token)(request)

    assert rounds(task, entry, failing)[0] == BROKEN
    assert isinstance(rounds(task, entry, scripted(by_token))[0], Mapping)


def test_a_prompt_that_cannot_be_content_free_is_an_error() -> None:
    """A template that computes with a column cannot be calibrated; the run does not start."""
    step = label_step(calibrate=True, prompt={"user": "{{ price / 2 }} {{ text }}"})
    with pytest.raises(UserError, match=r"task\.calibrate: .*'N/A'"):
        step.build(CONTEXT)


def test_first_token_sends_one_request() -> None:
    """If the labels' first tokens differ, one request scores all labels."""
    step = label_step(choices=["reddish", "green", "blue"], method="first_token")
    task = step.build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    result, ((request,),) = rounds(task, entry, scripted(by_token))
    assert list(request.prompt_token_ids) == list(entry.prompts[0])
    firsts = FakeTokenizer().encode_continuations(["red", "gre", "blu"])
    values = softmax([by_token(entry.prompts[0], token) for (token,) in firsts])
    expected = dict(zip(["reddish", "green", "blue"], values, strict=True))
    assert result["label_scores"] == pytest.approx(expected)


def test_labels_with_the_same_first_token_are_an_error() -> None:
    """`first_token` cannot distinguish them; the message names the labels and the solution."""
    step = label_step(choices=["reddish", "redwood", "green"], method="first_token")
    with pytest.raises(UserError, match=r"reddish, redwood start .* use method: sequence"):
        step.build(CONTEXT)


def test_labels_that_start_others_get_an_end_token() -> None:
    """If one label's tokens start another's, the end of the turn is appended to every label."""
    task = label_step(choices=["red", "reddish", "sky"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    _, (requests,) = rounds(task, entry, scripted(by_token))
    end = FakeTokenizer().end_of_turn
    next_tokens = {
        text_of(request.prompt_token_ids[len(entry.prompts[0]) :]): list(
            request.params.values["logprob_token_ids"]
        )
        for request in requests
    }
    assert end in next_tokens["red"]
    assert next_tokens["sky"] == next_tokens["reddish"] == [end]


@pytest.mark.parametrize(("text", "label"), [("{{ text }} is", " red"), ("{{ text }}:\n", "red")])
def test_a_label_after_a_plain_text_follows_white_space(text: str, label: str) -> None:
    """A space is added before the label unless the text ends in white space."""
    task = label_step(prompt={"text": text}).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    assert isinstance(entry, PreparedRow)
    assert text_of(entry.prompts[0]) == text.replace("{{ text }}", "T")
    _, (requests,) = rounds(task, entry, scripted(by_token))
    (first,) = FakeTokenizer().encode_continuations([label[:3]])[0]
    assert requests[0].params.values["logprob_token_ids"][0] == first


def test_an_uncertain_row_has_no_label() -> None:
    """Below `abstain_below` the label is null and the scores remain; at it the label is set."""
    even = answered(label_step(choices=["red", "sky"], abstain_below=0.6), lambda _, __: -1.0)
    assert even["label"] is None
    assert even["label_scores"] == pytest.approx({"red": 0.5, "sky": 0.5})
    assert LabelJudge(0.6).cells({"a": 0.5, "b": 0.5}) == {
        **LabelJudge(None).cells({"a": 0.5, "b": 0.5}),
        "label": None,
    }
    assert LabelJudge(0.5).cells({"a": 0.5, "b": 0.5})["label"] == "a"


def test_a_failed_request_rejects_its_row() -> None:
    """Scores need all answers, so one failure rejects the row."""
    task = label_step(choices=["reddish", "redwood"]).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    counter = iter(range(9))

    def failing_second(request: Request) -> Answer:
        return BROKEN if next(counter) == 1 else scripted(by_token)(request)

    assert rounds(task, entry, failing_second)[0] == BROKEN


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_log_probabilities_that_are_not_finite_reject_the_row(value: float) -> None:
    """A model that overflows yields a reject instead of wrong scores."""
    task = label_step().build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    result, _ = rounds(task, entry, scripted(lambda _, __: value))
    assert isinstance(result, Reject)
    assert result.reject_class == RejectClass.ENGINE_ERROR


def test_a_row_without_text_is_rejected_before_the_engine() -> None:
    """Rejects from rendering pass through; other rows are prepared."""
    first, second = label_step().build(CONTEXT).prepare([{"text": None}, {"text": "T"}])
    assert isinstance(first, Reject)
    assert isinstance(second, PreparedRow)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=5))
def test_chunks_join_by_the_mean_of_their_scores(values: list[tuple[float, float]]) -> None:
    """A text's scores are the mean of its chunks' scores; its other columns follow from them."""
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
        ({"method": "first_token", "normalize": True}, "normalize requires method: sequence"),
        ({"method": "model", "calibrate": True}, "cannot be used with method: model"),
        ({"abstain_below": 1.5}, "less than or equal to 1"),
    ],
)
def test_conflicting_options_are_errors(task: dict[str, Any], message: str) -> None:
    """Contradictions are found when the job is read."""
    assert message in error_of(**task)


CONFIG = {"architectures": ["BertForSequenceClassification"]}


@pytest.mark.parametrize(
    ("config", "choices", "labels"),
    [
        ({"id2label": {"1": "bad", "0": "good"}}, None, ["good", "bad"]),
        ({"id2label": {"0": "good", "1": "bad"}}, ["bad", "good"], ["good", "bad"]),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(11)}}, None, None),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["bad", "good"], ["bad", "good"]),
        (CONFIG, None, ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 3}, ["c", "b", "a"], ["c", "b", "a"]),
    ],
    ids=[
        "no choices",
        "same labels",
        "numeric order",
        "names for unnamed labels",
        "default labels",
        "num_labels",
    ],
)
def test_a_models_labels_come_from_its_config(
    config: dict[str, Any], choices: list[str] | None, labels: list[str] | None
) -> None:
    """Labels come from id2label; the job's choices must match, or name unnamed labels."""
    assert model_labels(config, choices, "task.") == (labels or [f"LABEL_{i}" for i in range(11)])


@pytest.mark.parametrize(
    ("config", "choices", "message"),
    [
        ({}, None, "has no labels"),
        ({"architectures": ["LlamaForCausalLM"]}, ["a", "b"], "has no labels"),
        ({"id2label": {"0": "good", "1": "bad"}}, ["good", "worse"], "differ; use good, bad"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, ["a", "b", "c"], "differ; use LABEL_0"),
        ({"id2label": {"0": "score"}}, None, "does not choose one of several labels"),
        (
            {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
            None,
            "does not choose one of several labels",
        ),
    ],
)
def test_an_unsuitable_model_is_an_error(
    config: dict[str, Any], choices: list[str] | None, message: str
) -> None:
    """Covers models with no labels, other labels, one output, or several labels per text."""
    with pytest.raises(UserError, match=message):
        model_labels(config, choices, "task.")


@pytest.mark.parametrize("method", ["sequence", "first_token"])
def test_request_parameters_are_known_without_a_model(method: str) -> None:
    """Before the labels have token ids, the requests' other parameters can be checked."""
    (early,) = label_step(method=method).params
    assert isinstance(early, Sampling)
    task = label_step(method=method).build(CONTEXT)
    (entry,) = task.prepare([{"text": "T"}])
    _, ((request, *_),) = rounds(task, entry, scripted(by_token))
    tokens = request.params.values["logprob_token_ids"]
    assert {**early.values, "logprob_token_ids": tokens} == request.params.values
    assert early.values["logprob_token_ids"] == []


def test_a_classification_model_returns_its_logits() -> None:
    """`method: model` needs a pooling model; its scores are the softmax of its logits."""
    step = label_step(method="model", choices=None, prompt={"text": "{{ text }}"})
    assert step.runner == "pooling"
    config = {"id2label": {"0": "good", "1": "bad"}}
    task = step.build(TaskContext(FakeTokenizer(), 8192, config))
    (entry,) = task.prepare([{"text": "T"}])

    def logits(request: Request) -> Answer:
        assert isinstance(request.params, Pooling)
        assert request.params.values == {"use_activation": False}
        return Completion(0, "", "stop", 1, 0, None, vector=np.array([1, 3], np.float32))

    result, ((request,),) = rounds(task, entry, logits)
    assert text_of(request.prompt_token_ids) == "T"
    good, bad = softmax([1, 3])
    assert result["label_scores"] == pytest.approx({"good": good, "bad": bad})
    assert result["label"] == "bad"
