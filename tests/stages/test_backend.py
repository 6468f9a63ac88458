"""What runs a model: the fake engine needs nothing, vLLM a model folder and known arguments."""

from pathlib import Path
from typing import Any

import pytest
from tokenmill.config.model_source import ModelSource
from tokenmill.engine.base import EngineResources
from tokenmill.errors import UserError
from tokenmill.stages.backend import Backend, backend_of


def backend(source: str, key: str = "model", **engine: Any) -> Backend:
    return backend_of(ModelSource(source=source, engine=engine), key)


def test_the_fake_engine_needs_no_model() -> None:
    """It can start at once, on any machine, with any adapters; sampling has the names of vLLM."""
    fake = backend("fake", max_num_seqs=3, num_labels=2)
    assert fake.is_fetched and fake.folder is None
    fake.check({"style": "no/such/folder"})
    fake.check_sampling({"sampling": {"repetition_detection": {}}})
    with pytest.raises(UserError, match=r"^sampling\.max_token: .*max_tokens"):
        fake.check_sampling({"sampling": {"max_token": 1}})
    fake.check_on_cpu(uses_seeds=True)
    engine = fake.load("generate", [], {}, EngineResources(0, 1), uses_seeds=True)
    assert (engine.info.name, engine.info.max_num_seqs) == ("fake", 3)
    assert fake.config()["num_labels"] == fake.context("pooling").config["num_labels"] == 2
    assert fake.context("generate").max_model_len == engine.info.max_model_len


def test_a_fake_model_has_the_settings_of_the_fake_engine() -> None:
    """The error has the job key of the model."""
    fake = backend("fake", "tasks.judge.model", trust_remote_code=True)
    for call in (lambda: fake.check({}), fake.config, lambda: fake.context("generate")):
        with pytest.raises(UserError, match=r"^tasks\.judge\.model\.engine\.trust_remote_code"):
            call()


def test_vllm_needs_a_model_folder(tmp_path: Path) -> None:
    """A folder is all that has to be on this machine; what is in it is checked when it is read."""
    folder = tmp_path / "model"
    assert not backend(str(folder)).is_fetched
    folder.mkdir()
    model = backend(str(folder))
    assert model.is_fetched and model.folder == folder
    with pytest.raises(UserError, match=r"config\.json"):
        model.context("generate")


def test_vllms_names_are_checked_without_fetching() -> None:
    """Engine arguments and sampling parameters must be vLLM's, and adapters must exist."""
    model = backend("bundled:smollm2-135m", max_num_seqs=4)
    model.check({})
    model.check_sampling({"sampling": {"temperature": 0}})
    with pytest.raises(UserError, match=r"^model\.engine\.max_seqs: unknown key"):
        backend("bundled:smollm2-135m", max_seqs=4).check({})
    with pytest.raises(UserError, match=r"^tasks\.a\.sampling\.heat: unknown key"):
        model.check_sampling({"tasks.a.sampling": {"heat": 1}})
    with pytest.raises(UserError, match=r"^model\.adapters\.style: "):
        model.check({"style": "./no/such/folder"})
