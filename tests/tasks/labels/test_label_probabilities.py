"""Compare label probabilities from vLLM with those from transformers on the same prompts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.answering import answered, answered_with_usage
from helpers.command import ROOT, tokenmill
from helpers.fork_server import printed
from helpers.inprocess import invoke

pytestmark = pytest.mark.integration

ROWS = [
    {"text": "I was charged twice this month. Please refund the second payment."},
    {"text": "The package has been on its way for two weeks and the depot cannot find it."},
    {"text": "The keeper saved a penalty in the last minute, and the cup stays in town."},
]
LABELS = ["billing", "shipping", "sports"]
# One label starts another, so the end of the turn is appended to each.
NESTED = ["sports", "sports news", "shipping delays"]
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LISTING = "\n\nAnswer with one of these labels and nothing else:\n"
TOLERANCE = 1e-3

REFERENCE = """
import functools, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model_folder, pairs = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
# Two processes with a thread per core would mostly wait for each other.
torch.set_num_threads(1)

@functools.cache
def next_token(ids):
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), dim=-1)

def logprobs(prompt, answer):
    start = len(tokenizer(prompt)["input_ids"])
    ids = tuple(tokenizer(prompt + answer)["input_ids"])
    return [float(next_token(ids[:at])[ids[at]]) for at in range(start, len(ids))]

print(json.dumps([logprobs(*pair) for pair in pairs]))
"""

CLASSIFIER = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertConfig, BertForSequenceClassification
words, folder, texts = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(words)
torch.manual_seed(7)
config = BertConfig(
    vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=128, max_position_embeddings=128, initializer_range=0.5,
    id2label={0: "good", 1: "bad", 2: "neither"}, label2id={"good": 0, "bad": 1, "neither": 2},
)
model = BertForSequenceClassification(config).eval()
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
with torch.inference_mode():
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
print(json.dumps([torch.softmax(each.double(), 0).tolist() for each in logits]))
"""


def job(model: str, task: Mapping[str, Any], **prompt: str) -> dict[str, Any]:
    return {
        "name": "labels",
        "input": {"path": "corpus"},
        "model": {"source": model, "engine": {"max_model_len": 512, "dtype": "float32"}},
        "prompt": prompt or {"user": "{{ text }}"},
        "task": task,
        "output": {"path": "out"},
    }


def chat(content: str) -> str:
    """SmolLM2's chat template, up to the answer."""
    turns = [("system", SYSTEM), ("user", content)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


def listed(text: str, labels: Sequence[str]) -> str:
    return chat(text + LISTING + "\n".join(f"- {label}" for label in labels))


def normalized(values: Sequence[float]) -> list[float]:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


class Answers:
    """The answers of all jobs from one engine, and the references from one run of transformers."""

    def __init__(self) -> None:
        folder = invoke("models", "path", "bundled:smollm2-135m").stdout.strip()
        classify: dict[str, Any] = {"kind": "classify", "choices": LABELS}
        tasks = {
            "sequence": job(folder, classify),
            "first_token": job(folder, {**classify, "method": "first_token"}),
            "calibrated": job(folder, {**classify, "calibrate": True, "normalize": True}),
            "nested": job(folder, {**classify, "choices": NESTED}),
            "text": job(folder, classify, text="{{ text }}\nTopic:"),
            "tag": job(folder, {"kind": "tag", "choices": LABELS, "threshold": 0.0}),
        }
        # The prefix cache shares whole blocks, which by default on CPUs are longer than the prefix.
        statistics = {"disable_log_stats": False, "block_size": 32}
        tasks["sequence"]["model"]["engine"].update(statistics)
        rows, self.usage = answered_with_usage(list(tasks.values()), ROWS)
        self.rows = dict(zip(tasks, rows, strict=True))
        pairs = list(self._pairs())
        self._logprobs = dict(zip(pairs, printed(REFERENCE, [folder, pairs]), strict=True))

    def logprobs(self, prompt: str, answer: str) -> list[float]:
        """The log-probability of each of the answer's tokens, from transformers."""
        return self._logprobs[prompt, answer]

    @staticmethod
    def _pairs() -> Any:
        yield from ((listed("N/A", LABELS), label) for label in LABELS)
        for text in (row["text"] for row in ROWS):
            for label in LABELS:
                yield listed(text, LABELS), label
                yield text + "\nTopic:", " " + label
                for word in ("yes", "Yes", " yes", " Yes", "no", "No", " no", " No"):
                    yield question(text, label), word
            for label in NESTED:
                yield listed(text, NESTED), label + "<|im_end|>"


def question(text: str, label: str) -> str:
    return chat(f'{text}\n\nDoes the label "{label}" fit this text? Answer yes or no.')


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


def scores(answers: Answers, name: str) -> list[dict[str, float]]:
    assert [row["error"] for row in answers.rows[name]] == [None] * len(ROWS)
    return [row["label_scores"] for row in answers.rows[name]]


def test_sequence_probabilities_match_transformers(answers: Answers) -> None:
    """A label's score is the product of its tokens' probabilities, divided by the labels' sum."""
    for row, actual in zip(ROWS, scores(answers, "sequence"), strict=True):
        sums = [sum(answers.logprobs(listed(row["text"], LABELS), label)) for label in LABELS]
        assert actual == pytest.approx(
            dict(zip(LABELS, normalized(sums), strict=True)), abs=TOLERANCE
        )


def test_engine_statistics_count_prefix_cache_hits(answers: Answers) -> None:
    """Common prefixes are cache hits, and no request is left in the engine."""
    usage = answers.usage
    assert 0 < usage.prefix_hit_tokens < usage.prefix_tokens
    assert (usage.num_running, usage.num_waiting) == (0, 0)
    assert usage.kv_cache_usage is not None and 0 <= usage.kv_cache_usage <= 1


def test_first_token_probabilities_match_transformers(answers: Answers) -> None:
    """A label's score is its first token's probability, divided by the labels' sum."""
    for row, actual in zip(ROWS, scores(answers, "first_token"), strict=True):
        firsts = [answers.logprobs(listed(row["text"], LABELS), label)[0] for label in LABELS]
        expected = dict(zip(LABELS, normalized(firsts), strict=True))
        assert actual == pytest.approx(expected, abs=TOLERANCE)


def test_calibrated_and_normalized_probabilities_match_transformers(
    answers: Answers,
) -> None:
    """The log-probability for N/A is subtracted, and the rest divided by the number of tokens."""

    def value(text: str, label: str) -> float:
        tokens = answers.logprobs(listed(text, LABELS), label)
        return (sum(tokens) - sum(answers.logprobs(listed("N/A", LABELS), label))) / len(tokens)

    for row, actual in zip(ROWS, scores(answers, "calibrated"), strict=True):
        values = [value(row["text"], label) for label in LABELS]
        expected = dict(zip(LABELS, normalized(values), strict=True))
        assert actual == pytest.approx(expected, abs=TOLERANCE)


def test_a_label_that_starts_another_gets_an_end_token(answers: Answers) -> None:
    """If a label starts another, all are scored with the end of the turn appended."""
    for row, actual in zip(ROWS, scores(answers, "nested"), strict=True):
        prompt = listed(row["text"], NESTED)
        sums = [sum(answers.logprobs(prompt, label + "<|im_end|>")) for label in NESTED]
        expected = dict(zip(NESTED, normalized(sums), strict=True))
        assert actual == pytest.approx(expected, abs=TOLERANCE)


def test_a_label_follows_a_plain_text_after_a_space(answers: Answers) -> None:
    """`prompt.text` is sent unchanged, and the labels are the words after it."""
    for row, actual in zip(ROWS, scores(answers, "text"), strict=True):
        sums = [sum(answers.logprobs(row["text"] + "\nTopic:", " " + label)) for label in LABELS]
        expected = dict(zip(LABELS, normalized(sums), strict=True))
        assert actual == pytest.approx(expected, abs=TOLERANCE)


def test_tag_probabilities_match_transformers(answers: Answers) -> None:
    """A tag's score is the probability of yes divided by that of yes and no."""

    def mass(text: str, label: str, words: Sequence[str]) -> float:
        logprobs = [answers.logprobs(question(text, label), word) for word in words]
        return sum(math.exp(logprob) for (logprob,) in logprobs)

    for row, actual in zip(ROWS, answers.rows["tag"], strict=True):
        assert actual["error"] is None
        for label in LABELS:
            yes = mass(row["text"], label, ("yes", "Yes", " yes", " Yes"))
            no = mass(row["text"], label, ("no", "No", " no", " No"))
            assert actual["tag_scores"][label] == pytest.approx(yes / (yes + no), abs=TOLERANCE)
        by_score = sorted(LABELS, key=lambda label: -actual["tag_scores"][label])
        assert actual["tags"] == by_score


def test_a_classification_models_probabilities_match_transformers(tmp_path: Path) -> None:
    """`method: model` returns the labels of config.json with the softmax of the logits."""
    words = tokenmill("models", "fetch", "bundled:minilm-l6").stdout.strip().splitlines()[-1]
    expected = printed(CLASSIFIER, [words, str(tmp_path), [row["text"] for row in ROWS]])
    classify = job(str(tmp_path), {"kind": "classify", "method": "model"}, text="{{ text }}")
    classify["model"]["engine"]["max_model_len"] = 128
    (rows,) = answered([classify], ROWS)
    for row, probabilities in zip(rows, expected, strict=True):
        assert row["error"] is None
        named = dict(zip(["good", "bad", "neither"], probabilities, strict=True))
        assert row["label_scores"] == pytest.approx(named, abs=TOLERANCE)
        assert row["label"] == max(named, key=lambda label: named[label])


def test_the_sentiment_job_labels_each_text_or_abstains() -> None:
    """`jobs/sentiment.yaml` gives three probabilities, and a label if the best is at least 0.4."""
    shipped = yaml.safe_load((ROOT / "jobs" / "sentiment.yaml").read_text())
    (rows,) = answered([shipped], [{**row, "title": "A letter"} for row in ROWS])
    for row in rows:
        assert row["error"] is None
        assert row["label_scores"].keys() == {"positive", "neutral", "negative"}
        assert sum(row["label_scores"].values()) == pytest.approx(1)
        best = max(row["label_scores"], key=lambda label: row["label_scores"][label])
        assert row["label"] == (best if row["label_scores"][best] >= 0.4 else None)
