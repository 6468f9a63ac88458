"""What turns requests into completions: the `Engine` interface, and vLLM behind it.

The only door to vLLM. An engine knows nothing of rows, units or Ray. It is driven by one thread:
`add` puts a request into the running batch, `step` advances all of them by one iteration and
returns those that ended (continuous batching: nobody waits for a neighbour).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenmill.reject import RejectClass
from tokenmill.request import Completion, Request


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What is in an engine now, and what its prefix cache has spared since it started.

    `prefix_tokens` are the prompts' tokens that were looked up in that cache, `prefix_hit_tokens`
    those of them that were there. `kv_cache_usage` is the share of the KV cache in use, None where
    the engine keeps no statistics.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float | None = None
    prefix_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineResources:
    """What of its machine an engine has: GPUs, or none and so many threads of the CPU.

    `gpu_memory` is the part of each GPU's memory that it may use; `exports_metrics` whether Ray's
    agent there hands on what is counted.
    """

    num_gpus: int
    num_threads: int
    gpu_memory: float = 0.95
    exports_metrics: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is; written beside its answers.

    `beside` holds the contexts of the models beside the job's own, by their places in the job.
    """

    name: str
    version: str
    max_model_len: int
    max_num_seqs: int
    beside: Mapping[str, int] = field(default_factory=dict)


class RequestRefused(Exception):
    """The engine does not take this request; it goes on with the others."""

    def __init__(self, message: str, reject_class: RejectClass = RejectClass.ENGINE_ERROR) -> None:
        super().__init__(message)
        self.reject_class = reject_class


class Engine(Protocol):
    """A continuously batching engine. An exception from `step` means that it is dead."""

    info: EngineInfo

    def add(self, key: int, request: Request) -> None:
        """Put a request into the batch; `key` is new to it. Raises `RequestRefused`."""

    def step(self) -> Sequence[Completion]:
        """Advance the batch by one iteration; the requests that ended by it."""

    def abort(self, key: int) -> None:
        """Take a request out of the batch; it gets no completion."""

    @property
    def usage(self) -> EngineUsage:
        """What is in it; quick, as it is asked after each step."""
