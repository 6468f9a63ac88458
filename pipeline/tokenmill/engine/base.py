"""What turns requests into completions: the `Engine` protocol.

An engine knows nothing about rows, units or Ray. One thread drives it: `add` puts a request into
the running batch, `step` advances the whole batch by one iteration and returns the requests that
ended. Requests join and leave at any step (continuous batching), so none waits for another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenmill.reject import RejectClass
from tokenmill.request import Completion, Request


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """How full an engine is, and how much its prefix cache has saved since it started.

    `prefix_tokens` counts the prompt tokens looked up in the prefix cache, `prefix_hit_tokens` the
    tokens found there. `kv_cache_usage` is the used share of the KV cache, from 0 to 1; None if the
    engine keeps no statistics.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float | None = None
    prefix_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineResources:
    """An engine's share of its machine: `num_gpus` GPUs, or `num_threads` CPU threads without any.

    `gpu_memory` is the share of each GPU's memory that it may use, from 0 to 1. `exports_metrics`
    says whether vLLM's own metrics are exported through Ray.
    """

    num_gpus: int
    num_threads: int
    gpu_memory: float = 0.95
    exports_metrics: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts about an engine.

    `name` and `version` are recorded with its answers. `max_model_len` is the context in tokens,
    `max_num_seqs` the largest batch. `auxiliary` maps the job key of each auxiliary model to its
    context in tokens.
    """

    name: str
    version: str
    max_model_len: int
    max_num_seqs: int
    auxiliary: Mapping[str, int] = field(default_factory=dict)


class RequestRefused(Exception):
    """The engine cannot take this request; other requests are not affected."""

    def __init__(self, message: str, reject_class: RejectClass = RejectClass.ENGINE_ERROR) -> None:
        super().__init__(message)
        self.reject_class = reject_class


class Engine(Protocol):
    """A continuously batching engine. Any exception but `RequestRefused` means that it crashed."""

    info: EngineInfo

    def add(self, key: int, request: Request) -> None:
        """Put a request into the batch under a new `key`. Raises `RequestRefused`."""

    def step(self) -> Sequence[Completion]:
        """Advance the batch by one iteration, and return the requests that ended."""

    def abort(self, key: int) -> None:
        """Remove a request from the batch; it gets no completion."""

    @property
    def usage(self) -> EngineUsage:
        """How full the engine is. Cheap, because it is read after each step."""
