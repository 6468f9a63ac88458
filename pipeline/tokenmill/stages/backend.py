"""What runs a model: vLLM, or the fake engine. Only this module chooses between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenmill.config.model_source import ModelSource
from tokenmill.engine.base import Engine, EngineResources
from tokenmill.engine.cpu_seeds import check_seed_arguments, seed_arguments
from tokenmill.engine.fake import (
    SAMPLING_NAMES,
    FakeEngine,
    FakeSettings,
    fake_config,
    fake_settings,
)
from tokenmill.engine.vllm_params import require_vllm
from tokenmill.engine.vllm_probe import ModelFacts, probe_params
from tokenmill.engine.vllm_source import check_engine_arguments, check_names, check_sampling_names
from tokenmill.engine.vllm_start import load_vllm
from tokenmill.models.adapters import adapter_arguments, check_adapters, fetch_adapters
from tokenmill.models.code_safety import check_not_pickled, trusts_code
from tokenmill.models.config import max_model_len, read_config, vocab_size
from tokenmill.models.fetch import check_source, fetch_config, fetch_model, local_path
from tokenmill.models.quantization import check_not_gguf, check_on_cpu, cpu_arguments
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.tokenizer import ModelTokenizer
from tokenmill.request import Params
from tokenmill.tasks.task import Runner, TaskContext

# As in vLLM.
_MAX_LOGPROBS = 20
# The engine arguments that turn speculative decoding on.
_SPECULATION = ("speculative_config", "spec_method", "spec_model")


class Backend(Protocol):
    """What runs one of the job's models. All methods raise `UserError` for what cannot work."""

    @property
    def folder(self) -> Path | None:
        """The model's folder on this machine, if it has one."""

    @property
    def is_fetched(self) -> bool:
        """Whether an engine could start without fetching anything."""

    def check(self, adapters: Mapping[str, str]) -> None:
        """Check the model's source, its settings and its LoRA adapters, without fetching."""

    def check_sampling(self, sampling: Mapping[str, Mapping[str, Any]]) -> None:
        """Check the names of sampling parameters, which are grouped by job key."""

    def check_params(self, params: Mapping[str, Sequence[Params]]) -> None:
        """Check the parameters of requests, which are grouped by job key."""

    def check_on_cpu(self, *, uses_seeds: bool) -> None:
        """Check that a machine without GPUs can run the model's format, and seeds if it must."""

    def config(self) -> Mapping[str, Any]:
        """Return the model's config.json, fetching no more than that."""

    def context(self, runner: Runner) -> TaskContext:
        """Return what tasks are built with: tokenizer, context length and config."""

    def load(
        self,
        runner: Runner,
        params: Sequence[Params],
        adapters: Mapping[str, str],
        resources: EngineResources,
        *,
        uses_seeds: bool,
    ) -> Engine:
        """Start an engine for requests with these parameters.

        `uses_seeds` says whether some of them may be sampled with a seed.
        """


def backend_of(model: ModelSource, key: str = "model") -> Backend:
    """Return what runs a model, which the job has at `key`."""
    return _FakeBackend(model, key) if model.is_fake else _VllmBackend(model, key)


@dataclass(frozen=True, slots=True)
class _FakeBackend:
    """The fake engine: there is nothing to fetch, and sampling parameters are checked by name."""

    model: ModelSource
    key: str
    folder = None
    is_fetched = True

    @property
    def _settings(self) -> FakeSettings:
        return fake_settings(self.model.engine, self.key)

    def check(self, adapters: Mapping[str, str]) -> None:
        del adapters
        fake_settings(self.model.engine, self.key)

    def check_sampling(self, sampling: Mapping[str, Mapping[str, Any]]) -> None:
        for key, values in sampling.items():
            check_names(values, key, SAMPLING_NAMES)

    def check_params(self, params: Mapping[str, Sequence[Params]]) -> None:
        """Accept any values."""

    def check_on_cpu(self, *, uses_seeds: bool) -> None:
        """Accept any machine."""

    def config(self) -> Mapping[str, Any]:
        return fake_config(self._settings)

    def context(self, runner: Runner) -> TaskContext:
        del runner
        settings = self._settings
        return TaskContext(FakeTokenizer(), settings.max_model_len, fake_config(settings))

    def load(
        self,
        runner: Runner,
        params: Sequence[Params],
        adapters: Mapping[str, str],
        resources: EngineResources,
        *,
        uses_seeds: bool,
    ) -> Engine:
        del runner, params, adapters, resources, uses_seeds
        return FakeEngine(self._settings)


@dataclass(frozen=True, slots=True)
class _VllmBackend:
    """An engine of vLLM, with a model folder that is fetched when it is needed."""

    model: ModelSource
    key: str

    @property
    def folder(self) -> Path | None:
        return local_path(self.model)

    @property
    def is_fetched(self) -> bool:
        return self.folder is not None

    def check(self, adapters: Mapping[str, str]) -> None:
        check_not_gguf(self.model, self.key)
        check_source(self.model)
        check_adapters(adapters)
        require_vllm()
        check_engine_arguments(self.model.engine, f"{self.key}.engine")

    def check_sampling(self, sampling: Mapping[str, Mapping[str, Any]]) -> None:
        for key, values in sampling.items():
            check_sampling_names(values, key)

    def check_params(self, params: Mapping[str, Sequence[Params]]) -> None:
        folder, arguments = self.folder, self.model.engine
        facts = ModelFacts(
            vocab_size=None if folder is None else vocab_size(read_config(folder)),
            max_logprobs=arguments.get("max_logprobs", _MAX_LOGPROBS),
            speculates=any(arguments.get(name) for name in _SPECULATION),
        )
        probe_params(params, facts)

    def check_on_cpu(self, *, uses_seeds: bool) -> None:
        check_on_cpu(self.model, self.key)
        if uses_seeds:
            check_seed_arguments(self.model.engine, self.key)

    def config(self) -> Mapping[str, Any]:
        return fetch_config(self.model)

    def context(self, runner: Runner) -> TaskContext:
        folder = fetch_model(self.model)
        check_not_pickled(folder, self.model)
        config = read_config(folder)
        length = max_model_len(self.model, runner, self.key, folder, config)
        tokenizer = ModelTokenizer(folder, trusts_code=trusts_code(self.model))
        return TaskContext(tokenizer, length, config)

    def load(
        self,
        runner: Runner,
        params: Sequence[Params],
        adapters: Mapping[str, str],
        resources: EngineResources,
        *,
        uses_seeds: bool,
    ) -> Engine:
        on_cpu = not resources.num_gpus
        fetched = fetch_adapters(adapters)
        arguments = adapter_arguments(fetched, self.model.engine, on_cpu=on_cpu)
        folder = fetch_model(self.model)
        if on_cpu:
            config = read_config(folder)
            arguments = cpu_arguments(config, arguments, self.key)
            if uses_seeds and runner == "generate":
                length = max_model_len(self.model, runner, self.key, folder, config)
                arguments = seed_arguments(arguments, length, self.key)
        engine = load_vllm(folder, arguments, runner, params, resources)
        engine.load_adapters(fetched)
        return engine
