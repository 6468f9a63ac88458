"""LoRA adapters: where they are fetched from, and the engine arguments for them."""

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
    """A folder in peft's format is used in place."""
    folder = make_adapter(tmp_path / "fr")
    model = model_with(fr=str(folder))
    check_adapters(model.adapters)
    assert fetch_adapters(model.adapters) == {"fr": folder}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    """If the configuration or the weights are missing, the error names the adapter's job key."""
    folder = make_adapter(tmp_path / "fr")
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"model\.adapters\.fr: .* has no {name}"):
        check_adapters(model_with(fr=str(folder)).adapters)


def test_a_missing_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    """A path that does not exist is not taken for a hub id."""
    with pytest.raises(UserError, match=r"model\.adapters\.fr"):
        check_adapters(model_with(fr=str(tmp_path / "absent")).adapters)


def test_remote_adapters_are_not_looked_up_before_the_run() -> None:
    """Hub ids and prefixes are only checked when they are fetched."""
    check_adapters(model_with(a="owner/name", b="s3://bucket/prefix").adapters)


@pytest.mark.integration
def test_an_adapter_comes_from_object_storage(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An s3:// prefix is copied to this machine; one without an adapter is a user error."""
    monkeypatch.setenv("TOKENMILL_CACHE", str(tmp_path / "cache"))
    folder = make_adapter(tmp_path / "fr")
    store = open_store(f"s3://{s3_bucket}/fr")
    for file in folder.iterdir():
        store.put_if_absent(file.name, file.read_bytes())
    fetched = fetch_adapters(model_with(fr=f"s3://{s3_bucket}/fr").adapters)["fr"]
    assert {file.name for file in fetched.iterdir()} == {file.name for file in folder.iterdir()}
    with pytest.raises(UserError, match=r"model\.adapters\.fr: .* no adapter_config\.json"):
        fetch_adapters(model_with(fr=f"s3://{s3_bucket}/other").adapters)


def test_without_adapters_the_engine_arguments_are_the_jobs() -> None:
    """Nothing is added for a job without adapters."""
    assert adapter_arguments({}, {"max_model_len": 5}, on_cpu=True) == {"max_model_len": 5}


def test_the_engine_arguments_contain_the_number_of_adapters_and_their_rank(tmp_path: Path) -> None:
    """The rank is the largest, rounded up to one that vLLM supports; the job can override it."""
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
    overridden = adapter_arguments(adapters, {"max_lora_rank": 64, "max_loras": 1}, on_cpu=False)
    assert overridden["max_lora_rank"] == 64
    assert (overridden["max_loras"], overridden["max_cpu_loras"]) == (1, 2)


def test_many_adapters_share_the_slots_of_a_gpu(tmp_path: Path) -> None:
    """By default up to eight adapters are in a batch; all are kept in memory."""
    adapters = {f"a{index}": make_adapter(tmp_path / f"a{index}") for index in range(12)}
    arguments = adapter_arguments(adapters, {}, on_cpu=False)
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (8, 12)


def test_on_a_cpu_one_slot_remains_empty(tmp_path: Path) -> None:
    """VLLM's CPU kernels use the last slot for rows without an adapter, so it must be empty."""
    adapters = {"a": make_adapter(tmp_path / "a"), "b": make_adapter(tmp_path / "b")}
    assert adapter_arguments(adapters, {}, on_cpu=True)["max_loras"] == 3
    with pytest.raises(UserError, match=r"max_loras: .* at least 3"):
        adapter_arguments(adapters, {"max_loras": 2}, on_cpu=True)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"r": "many"}'])
def test_a_configuration_without_a_rank_is_refused(tmp_path: Path, text: str) -> None:
    """The error names the adapter's job key and the file."""
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.adapters\.a: adapter_config\.json"):
        adapter_arguments({"a": folder}, {}, on_cpu=True)
