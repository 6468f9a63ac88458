"""Several engines as one: the job's own model, and those beside it on the same machine.

Each request goes to the engine of its model; a step advances every engine that has work, one after
the other, in the one thread that drives them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.engine.base import Engine, EngineUsage
from tokenmill.errors import UserError
from tokenmill.request import Completion, Request

# Of a GPU's memory: what all engines take together, and each one beside the job's own.
_ALL_MEMORY = 0.95
_SIDE_MEMORY = 0.25


class MultiModelEngine:
    """An engine made of engines.

    `beside` are named by their models' places in the job; places of the same model share one.
    """

    def __init__(self, engine: Engine, beside: Mapping[str, Engine]) -> None:
        contexts = {place: other.info.max_model_len for place, other in beside.items()}
        self.info = replace(engine.info, beside=contexts)
        self._engine_at: dict[str | None, Engine] = {None: engine}
        self._engine_at.update(beside)
        self._engine_of: dict[int, Engine] = {}
        self._num_open: dict[Engine, int] = dict.fromkeys(self._engine_at.values(), 0)

    def add(self, key: int, request: Request) -> None:
        engine = self._engine_at[request.model]
        engine.add(key, request)
        self._num_open[engine] += 1
        self._engine_of[key] = engine

    def step(self) -> Sequence[Completion]:
        ended: list[Completion] = []
        for engine, num_open in self._num_open.items():
            if num_open:
                completions = engine.step()
                self._num_open[engine] -= len(completions)
                ended += completions
        for completion in ended:
            del self._engine_of[completion.key]
        return ended

    def abort(self, key: int) -> None:
        engine = self._engine_of.pop(key)
        engine.abort(key)
        self._num_open[engine] -= 1

    @property
    def usage(self) -> EngineUsage:
        """Of all together; the KV cache's is that of the job's own engine."""
        usages = [engine.usage for engine in self._num_open]
        return EngineUsage(
            num_running=sum(usage.num_running for usage in usages),
            num_waiting=sum(usage.num_waiting for usage in usages),
            kv_cache_usage=self._engine_at[None].usage.kv_cache_usage,
            prefix_tokens=sum(usage.prefix_tokens for usage in usages),
            prefix_hit_tokens=sum(usage.prefix_hit_tokens for usage in usages),
        )


def memory_shares(
    engine: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]]
) -> dict[str | None, float]:
    """Each engine's part of a GPU's memory: what its arguments say, else a share of the rest.

    Raises `UserError` where nothing is left for the job's own.
    """
    shares: dict[str | None, float] = {
        place: arguments.get("gpu_memory_utilization", _SIDE_MEMORY)
        for place, arguments in beside.items()
    }
    rest = round(_ALL_MEMORY - sum(shares.values()), 4)
    own = engine.get("gpu_memory_utilization", rest)
    if own <= 0:
        raise UserError(
            f"model.engine.gpu_memory_utilization: {', '.join(beside)} leave no memory to the "
            "job's own model; give each model its share"
        )
    return {None: own, **shares}
