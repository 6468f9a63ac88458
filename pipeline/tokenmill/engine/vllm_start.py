"""Loading a model into vLLM, with settings that make it fast for batches."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenmill.engine.base import EngineResources
from tokenmill.engine.vllm import StatLogger, VllmEngine
from tokenmill.engine.vllm_params import (
    check_grammar,
    grammar_backend,
    refusal_message,
    refusal_types,
    require_vllm,
    vllm_params,
)
from tokenmill.errors import UserError
from tokenmill.hardware import cpu_has_bf16
from tokenmill.request import Params

if TYPE_CHECKING:
    pass


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


def load_vllm(
    model: Path,
    arguments: Mapping[str, Any],
    runner: Literal["generate", "pooling"],
    params: Sequence[Params],
    share: EngineResources,
) -> VllmEngine:
    """Start an engine for the model in a folder, on its share of the machine.

    What the job does not set is chosen for the machine. `params` are those of requests to come.
    Raises `UserError` for arguments and parameters that vLLM refuses.
    """
    defaults: dict[str, Any] = {"disable_log_stats": True, "runner": runner}
    if share.num_gpus:
        defaults["gpu_memory_utilization"] = share.gpu_memory
        defaults["tensor_parallel_size"] = share.num_gpus
    else:
        defaults |= _CPU_ARGUMENTS
        if not cpu_has_bf16():
            defaults["dtype"] = "float32"
        _prepare_cpu(share.num_threads)
    require_vllm()
    # Imported here, behind the environment that they read on import.
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    # First, since it is quick: a mistake here must not cost the loading of a model.
    for known in params:
        vllm_params(known)
    try:
        engine_args = EngineArgs(model=str(model), **{**defaults, **arguments})
        for known in params:
            check_grammar(vllm_params(known), grammar_backend(arguments))
        statistics = None if engine_args.disable_log_stats else StatLogger()
        engine = LLMEngine.from_engine_args(
            engine_args,
            # VLLM's limits of a batch hang on this: as a server it takes far smaller ones.
            usage_context=UsageContext.LLM_CLASS,
            stat_loggers=_stat_loggers(statistics, share),
        )
    except refusal_types() as error:
        raise UserError(f"model.engine: vLLM refuses it: {refusal_message(error)}") from error
    return VllmEngine(engine, statistics)


def _stat_loggers(statistics: StatLogger | None, share: EngineResources) -> list[Any] | None:
    """Who is told of each step; without statistics nobody, which is faster."""
    if statistics is None:
        return None
    loggers: list[Any] = [statistics.logger]
    if share.exports_metrics:
        from vllm.v1.metrics import ray_wrappers  # noqa: PLC0415

        # None where Ray Serve cannot be imported, of which vLLM wants to know its replica.
        if ray_wrappers.ray_metrics is not None:
            loggers.append(ray_wrappers.RayPrometheusStatLogger)
    return loggers


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
