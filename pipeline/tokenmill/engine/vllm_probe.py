"""Check parameters by vLLM's own classes within a second, in a process of its own.

vLLM's sampling parameters are one module, which imports torch and most of vLLM for its annotations
alone. The process that runs this file replaces all of that by placeholders. What a placeholder
cannot answer is not checked here: the engine checks every request again.
"""

import importlib
import importlib.util
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from tokenmill.engine.vllm_params import refusal_message, refusal_types, vllm_params
from tokenmill.errors import UserError
from tokenmill.request import Params, Pooling

# The modules of vLLM that are imported; they import no other large library.
_IMPORTED = (
    "vllm.envs",
    "vllm.exceptions",
    "vllm.pooling_params",
    "vllm.sampling_params",
    "vllm.tasks",
)
# The process takes half a second. Without an answer, the engine checks the parameters.
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What vLLM compares parameters with.

    `vocab_size` is None if the model is not on this machine. `max_logprobs` is the largest number
    of log-probabilities per token. `speculates` says whether the engine decodes speculatively.
    """

    vocab_size: int | None
    max_logprobs: int
    speculates: bool


def probe_params(params: Mapping[str, Sequence[Params]], facts: ModelFacts) -> None:
    """Raise `UserError` for parameters, which are grouped by job key, that vLLM refuses."""
    # Without -P, Python would import modules that lie in the working directory.
    command = [sys.executable, "-P", "-m", __name__]
    data = pickle.dumps((params, facts))
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    refusal = json.loads(done.stdout) if done.returncode == 0 else None
    if refusal is not None:
        raise UserError(refusal)


class _Placeholders:
    """Imports every other module of vLLM as a placeholder."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        del path, target
        is_replaced = name.startswith("vllm.") and name not in _IMPORTED
        return ModuleSpec(name, self, is_package=True) if is_replaced else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A placeholder has no code."""


class _Placeholder(ModuleType):
    """A module of empty classes, and of functions that end the process."""

    init_logger = staticmethod(logging.getLogger)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _fail if name[0].islower() else type(name, (), {})


def _fail(*_args: object, **_kwargs: object) -> None:
    """End the process without a finding, because the function is not the one of vLLM."""
    raise SystemExit(1)


def _install_placeholders() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        raise ImportError("vllm")
    # Not executed: vLLM's own `__init__` imports torch.
    sys.modules["vllm"] = package = ModuleType("vllm")
    package.__path__ = list(spec.submodule_search_locations or ())
    package.__spec__ = spec
    sys.meta_path.insert(0, _Placeholders())
    # Here, so that a failed import is not taken for a refusal.
    for name in _IMPORTED:
        importlib.import_module(name)


def _refusal(params: Mapping[str, Sequence[Params]], facts: ModelFacts) -> str | None:
    """The message of the first parameters that vLLM refuses."""
    for key, group in params.items():
        for task_params in group:
            try:
                checked: Any = vllm_params(task_params, key)
                if not isinstance(task_params, Pooling):
                    _verify(checked, facts)
            except UserError as error:
                return str(error)
            except refusal_types() as error:
                return f"{key}: vLLM refuses it: {refusal_message(error)}"
    return None


def _verify(params: Any, facts: ModelFacts) -> None:
    """Check parameters against the model, as the engine does for each request."""
    model = SimpleNamespace(
        get_vocab_size=lambda: sys.maxsize if facts.vocab_size is None else facts.vocab_size,
        is_diffusion=False,
        max_logprobs=facts.max_logprobs,
        max_model_len=sys.maxsize,
    )
    # Grammars are checked when the engine starts, by the libraries that compile them.
    params.verify(model, facts if facts.speculates else None, None, None)


if __name__ == "__main__":
    _install_placeholders()
    print(json.dumps(_refusal(*pickle.loads(sys.stdin.buffer.read()))))  # noqa: S301, T201 - ours
