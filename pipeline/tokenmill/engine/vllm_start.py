"""Load a model into vLLM, with settings that make it fast for batches."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenmill.engine.base import EngineResources
from tokenmill.engine.vllm import StatLogger, VllmEngine
from tokenmill.engine.vllm_log import weight_warning_once
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

# Measured on 2 cores with AVX2 (135M parameters): 64 sequences fill the cores, and compiling costs
# 110 s to gain 12 %.
_CPU_ARGUMENTS = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,
    # By default the engine takes 92 % of the machine's memory, and does not start if a part of that
    # is in use.
    "kv_cache_memory_bytes": 2 * 2**30,
}


def load_vllm(
    model: Path,
    arguments: Mapping[str, Any],
    runner: Literal["generate", "pooling"],
    params: Sequence[Params],
    resources: EngineResources,
) -> VllmEngine:
    """Start an engine for the model in a folder.

    `arguments` are vLLM's engine arguments from the job; the others are chosen for the machine.
    `params` are the parameters of the requests to come, which are checked first. Raises `UserError`
    for arguments and parameters that vLLM refuses.
    """
    defaults: dict[str, Any] = {"disable_log_stats": True, "runner": runner}
    if resources.num_gpus:
        defaults["gpu_memory_utilization"] = resources.gpu_memory
        defaults["tensor_parallel_size"] = resources.num_gpus
    else:
        defaults |= _CPU_ARGUMENTS
        if not cpu_has_bf16():
            defaults["dtype"] = "float32"
        _set_cpu_environment(resources.num_threads)
    require_vllm()
    # These modules read the environment when they are imported.
    from vllm.engine.arg_utils import EngineArgs  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415

    # First, because it is quick: a mistake here must not cost the loading of a model.
    checked = [vllm_params(task_params) for task_params in params]
    try:
        engine_args = EngineArgs(model=str(model), **{**defaults, **arguments})
        for task_params in checked:
            check_grammar(task_params, grammar_backend(arguments))
        statistics = None if engine_args.disable_log_stats else StatLogger()
        with weight_warning_once():
            engine = LLMEngine.from_engine_args(
                engine_args,
                # vLLM's limits of a batch depend on it: for a server they are far smaller.
                usage_context=UsageContext.LLM_CLASS,
                stat_loggers=_stat_loggers(statistics, resources),
            )
    except refusal_types() as error:
        raise UserError(f"model.engine: vLLM refuses it: {refusal_message(error)}") from error
    return VllmEngine(engine, statistics)


def _stat_loggers(statistics: StatLogger | None, resources: EngineResources) -> list[Any] | None:
    """The stat loggers that vLLM calls after each step; without statistics none, to save time."""
    if statistics is None:
        return None
    loggers: list[Any] = [statistics.create]
    if resources.exports_metrics:
        from vllm.v1.metrics import ray_wrappers  # noqa: PLC0415

        # vLLM sets it to None if Ray Serve, which it asks for the replica, cannot be imported.
        if ray_wrappers.ray_metrics is not None:
            loggers.append(ray_wrappers.RayPrometheusStatLogger)
    return loggers


def _set_cpu_environment(num_threads: int) -> None:
    """Choose how vLLM uses this process's cores; variables that are already set are kept."""
    cores = sorted(os.sched_getaffinity(0))
    # Binding pays only if the engine has all cores: two bound engines would share the first ones.
    bind = ",".join(map(str, cores)) if num_threads >= len(cores) else "nobind"
    for name, value in {
        # In this process: loads in 5 to 12 s instead of 45, and needs no pipe in between.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": bind,
    }.items():
        os.environ.setdefault(name, value)
    # Always overwritten: Ray sets it to the actor's share of logical CPUs, which is 1.
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
