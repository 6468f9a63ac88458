"""Several engines as one: the job's main model, and auxiliary models on the same machine.

Each request goes to its model's engine. A step advances every engine that has requests, one after
the other, in the thread that drives them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.engine.base import Engine, EngineUsage
from tokenmill.errors import UserError
from tokenmill.request import Completion, Request

# Shares of a GPU's memory: of all engines together, and of each auxiliary engine by default.
_TOTAL_MEMORY = 0.95
_AUXILIARY_MEMORY = 0.25


class MultiModelEngine:
    """An engine made of engines.

    `auxiliary` maps the job keys of auxiliary models to their engines; keys with the same model
    share one engine.
    """

    def __init__(self, engine: Engine, auxiliary: Mapping[str, Engine]) -> None:
        contexts = {key: other.info.max_model_len for key, other in auxiliary.items()}
        self.info = replace(engine.info, auxiliary=contexts)
        self._engines: dict[str | None, Engine] = {None: engine}
        self._engines.update(auxiliary)
        self._engine_by_key: dict[int, Engine] = {}
        self._num_open: dict[Engine, int] = dict.fromkeys(self._engines.values(), 0)

    def add(self, key: int, request: Request) -> None:
        engine = self._engines[request.model]
        engine.add(key, request)
        self._num_open[engine] += 1
        self._engine_by_key[key] = engine

    def step(self) -> Sequence[Completion]:
        ended: list[Completion] = []
        for engine, num_open in self._num_open.items():
            if num_open:
                completions = engine.step()
                self._num_open[engine] -= len(completions)
                ended += completions
        for completion in ended:
            del self._engine_by_key[completion.key]
        return ended

    def abort(self, key: int) -> None:
        engine = self._engine_by_key.pop(key)
        engine.abort(key)
        self._num_open[engine] -= 1

    @property
    def usage(self) -> EngineUsage:
        """The sums over all engines; the KV cache usage is that of the main model's engine."""
        usages = [engine.usage for engine in self._num_open]
        return EngineUsage(
            num_running=sum(usage.num_running for usage in usages),
            num_waiting=sum(usage.num_waiting for usage in usages),
            kv_cache_usage=self._engines[None].usage.kv_cache_usage,
            prefix_tokens=sum(usage.prefix_tokens for usage in usages),
            prefix_hit_tokens=sum(usage.prefix_hit_tokens for usage in usages),
        )


def memory_shares(
    engine: Mapping[str, Any], auxiliary: Mapping[str, Mapping[str, Any]]
) -> dict[str | None, float]:
    """Divide a GPU's memory: each engine's share, by job key (None for the main model).

    `engine` and `auxiliary` hold the engine arguments. A model whose arguments set
    `gpu_memory_utilization` gets that share. Raises `UserError` if nothing is left for the main
    model.
    """
    shares: dict[str | None, float] = {
        key: arguments.get("gpu_memory_utilization", _AUXILIARY_MEMORY)
        for key, arguments in auxiliary.items()
    }
    rest = round(_TOTAL_MEMORY - sum(shares.values()), 4)
    main = engine.get("gpu_memory_utilization", rest)
    if main <= 0:
        raise UserError(
            f"model.engine.gpu_memory_utilization: {', '.join(auxiliary)} leave no memory for the "
            "main model; set gpu_memory_utilization in each model's engine"
        )
    return {None: main, **shares}
