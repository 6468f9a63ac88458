"""LoRA adapters: where they come from, and the engine's arguments for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.asking import make_job
from tokenmill.errors import UserError
from tokenmill.job.sections import Model
from tokenmill.models.adapters import adapter_arguments, check_adapters, fetch_adapters
from tokenmill.storage.open import open_store


def make_adapter(folder: Path, **config: Any) -> Path:
    """A folder that looks like an adapter of rank 8."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, **config}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def model_with(**adapters: str) -> Model:
    model = {"source": "bundled:smollm2-135m", "adapters": adapters}
    return make_job(model=model, adapter="style").model


def test_a_local_adapter_is_its_folder(tmp_path: Path) -> None:
    """A folder in peft's form is used where it stands."""
    folder = make_adapter(tmp_path / "fr")
    model = model_with(fr=str(folder))
    check_adapters(model.adapters)
    assert fetch_adapters(model.adapters) == {"fr": folder}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_what_is_no_adapter_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    """A folder without the configuration or the weights is told with its name in the job."""
    folder = make_adapter(tmp_path / "fr")
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"model\.adapters\.fr: .* has no {name}"):
        check_adapters(model_with(fr=str(folder)).adapters)


def test_a_folder_that_is_not_there_is_refused_before_the_run(tmp_path: Path) -> None:
    """A path that does not exist is no hub id."""
    with pytest.raises(UserError, match=r"model\.adapters\.fr"):
        check_adapters(model_with(fr=str(tmp_path / "absent")).adapters)


def test_remote_adapters_are_not_asked_for_before_the_run() -> None:
    """Hub ids and prefixes are found by those who fetch them."""
    check_adapters(model_with(a="owner/name", b="s3://bucket/prefix").adapters)


@pytest.mark.integration
def test_an_adapter_comes_from_object_storage(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An s3:// prefix is copied to this machine; one without an adapter is the user's mistake."""
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    folder = make_adapter(tmp_path / "fr")
    store = open_store(f"s3://{s3_bucket}/fr")
    for file in folder.iterdir():
        store.put_if_absent(file.name, file.read_bytes())
    fetched = fetch_adapters(model_with(fr=f"s3://{s3_bucket}/fr").adapters)["fr"]
    assert {file.name for file in fetched.iterdir()} == {file.name for file in folder.iterdir()}
    with pytest.raises(UserError, match=r"model\.adapters\.fr: .* no adapter_config\.json"):
        fetch_adapters(model_with(fr=f"s3://{s3_bucket}/other").adapters)


def test_without_adapters_the_engines_arguments_are_the_jobs() -> None:
    """A job without adapters runs an engine without them."""
    assert adapter_arguments({}, {"max_model_len": 5}, on_cpu=True) == {"max_model_len": 5}


def test_the_engine_is_told_how_many_adapters_of_what_rank(tmp_path: Path) -> None:
    """The rank is the largest of all, rounded up to one that vLLM has; the job's own word wins."""
    adapters = {
        "a": make_adapter(tmp_path / "a", r=4),
        "b": make_adapter(tmp_path / "b", r=8, rank_pattern={"q_proj": 20}),
    }
    assert adapter_arguments(adapters, {"dtype": "float32"}, on_cpu=False) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 32,
        "max_cpu_loras": 2,
        "dtype": "float32",
    }
    own = adapter_arguments(adapters, {"max_lora_rank": 64, "max_loras": 1}, on_cpu=False)
    assert (own["max_lora_rank"], own["max_loras"], own["max_cpu_loras"]) == (64, 1, 2)


def test_many_adapters_share_a_gpus_places(tmp_path: Path) -> None:
    """By default eight adapters are in a batch at a time; all are kept in memory."""
    adapters = {f"a{at}": make_adapter(tmp_path / f"a{at}") for at in range(12)}
    arguments = adapter_arguments(adapters, {}, on_cpu=False)
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (8, 12)


def test_on_a_cpu_one_place_stays_empty(tmp_path: Path) -> None:
    """VLLM's CPU kernels take the last place for rows without an adapter; it must hold none."""
    adapters = {"a": make_adapter(tmp_path / "a"), "b": make_adapter(tmp_path / "b")}
    assert adapter_arguments(adapters, {}, on_cpu=True)["max_loras"] == 3
    with pytest.raises(UserError, match=r"max_loras: .* at least 3"):
        adapter_arguments(adapters, {"max_loras": 2}, on_cpu=True)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"r": "many"}'])
def test_a_configuration_without_a_rank_is_refused(tmp_path: Path, text: str) -> None:
    """What is no adapter's configuration is told with the adapter's name."""
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.adapters\.a: adapter_config\.json"):
        adapter_arguments({"a": folder}, {}, on_cpu=True)
