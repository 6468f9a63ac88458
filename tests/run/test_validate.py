"""`validate` with a real model: what the engine would refuse for every row, without an engine."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.inprocess import invoke, job_over, write_corpus
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenmill.errors import ExitCode

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)
CONFIG = {"model_type": "llama", "max_position_embeddings": 512, "vocab_size": 2}
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job with a model folder that has all but weights and a chat template."""
    model = tmp_path / "model"
    model.mkdir()
    Tokenizer(WordLevel({"x": 0, "?": 1}, "?")).save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer_config(model)
    corpus = write_corpus(tmp_path / "corpus", {"a.parquet": ["a", "b"]})
    job = job_over(corpus, tmp_path / "out")
    job["model"] = {"source": str(model)}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    return path


def write_tokenizer_config(model: Path, **keys: Any) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **keys}
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def refusal(job_file: Path, *arguments: str) -> str:
    """The one line of a validation that ends with exit code 2."""
    done = invoke("validate", job_file, *arguments)
    assert done.exit_code == ExitCode.USER_ERROR, done.stdout
    # Transformers says that it has no torch.
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("sampling.max_token=5", "sampling.max_token: unknown key; did you mean max_tokens"),
        ("sampling.max_tokens=yes", "sampling.max_tokens must be"),
        ("sampling.logprobs=21", "sampling: vLLM refuses it"),
        ("sampling.logit_bias={2: 1}", "sampling: vLLM refuses it"),
        ("sampling.bad_words=a", "sampling.bad_words: vLLM refuses it"),
        ("task.retries={sampling: {max_tokens: true}}", "sampling.max_tokens must be"),
        ("model.engine.max_num_seqs=yes", "model.engine.max_num_seqs: vLLM refuses it"),
        ("model.engine.max_seqs=4", "model.engine.max_seqs: unknown key"),
        ("model.engine.speculative_config={method: foo}", "speculative_config.method: vLLM"),
    ],
)
def test_what_the_engine_would_refuse_is_refused(job_file: Path, setting: str, part: str) -> None:
    """Names, types and values of sampling parameters and engine arguments."""
    assert part in refusal(job_file, "--set", setting, "--set", "prompt={text: '{{ text }}'}")


def test_speculation_is_checked_with_the_sampling(job_file: Path) -> None:
    """Each of the two is valid alone."""
    settings = (
        *("--set", "model.engine.speculative_config={method: ngram, num_speculative_tokens: 2}"),
        *("--set", "sampling.min_p=0.5", "--set", "prompt={text: '{{ text }}'}"),
    )
    assert "speculative" in refusal(job_file, *settings)
    assert invoke("validate", job_file, *settings[2:]).exit_code == ExitCode.FINISHED


def test_a_prompt_needs_a_chat_template_that_takes_its_roles(job_file: Path) -> None:
    """A prompt of plain text needs none. Torch is not imported for it, and can be later."""
    assert "no chat template; use prompt.text" in refusal(job_file)
    plain = invoke("validate", job_file, "--set", "prompt={text: '{{ text }}'}")
    assert plain.exit_code == ExitCode.FINISHED, plain.stderr
    write_tokenizer_config(job_file.parent / "model", chat_template=TEMPLATE)
    assert invoke("validate", job_file).exit_code == ExitCode.FINISHED
    assert "no system role" in refusal(job_file, "--set", "prompt.system=Be brief.")
    assert sys.modules.get("torch", ...) is not None


def test_a_quick_check_needs_no_tokenizer_and_none_of_vllms_classes(job_file: Path) -> None:
    """Names and types are still checked."""
    for setting in ("sampling.logprobs=21", "prompt.system=Be brief."):
        done = invoke("validate", job_file, "--quick", "--set", setting)
        assert done.exit_code == ExitCode.FINISHED, done.stderr
    assert "unknown key" in refusal(job_file, "--quick", "--set", "sampling.max_token=5")
    assert "max_num_seqs" in refusal(job_file, "--quick", "--set", "model.engine.max_num_seqs=yes")
