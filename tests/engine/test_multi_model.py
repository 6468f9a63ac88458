"""Several models in one replica: which engine answers, and how they share a machine."""

from collections.abc import Sequence

import pytest
from helpers.factories import job
from tokenmill.engine.base import EngineResources
from tokenmill.engine.fake import FakeEngine, FakeSettings
from tokenmill.engine.multi_model import MultiModelEngine, memory_shares
from tokenmill.errors import UserError
from tokenmill.request import Completion, Pooling, Request
from tokenmill.stages.load import load_engine

SETTINGS = FakeSettings(max_num_seqs=2)
JUDGE = {
    "kind": "reward",
    "model": {"source": "fake", "engine": {"max_num_seqs": 1}},
    "completion": "{{ draft_generated_text }}",
}


class BusyEngine(FakeEngine):
    """An engine that may be stepped only while it has requests."""

    def __init__(self, settings: FakeSettings = SETTINGS) -> None:
        super().__init__(settings)
        self._num_open = 0

    def add(self, key: int, request: Request) -> None:
        self._num_open += 1
        super().add(key, request)

    def step(self) -> Sequence[Completion]:
        assert self._num_open
        ended = super().step()
        self._num_open -= len(ended)
        return ended

    def abort(self, key: int) -> None:
        super().abort(key)
        self._num_open -= 1


def classify(model: str | None) -> Request:
    return Request([1], Pooling("classify"), model=model)


def test_an_engine_without_requests_is_not_stepped() -> None:
    """If vLLM's engine has its own process, a step without requests would wait for ever."""
    engine = MultiModelEngine(BusyEngine(), {"judge": BusyEngine()})
    ended = []
    for key, model in enumerate(["judge", None, "judge"]):
        engine.add(key, classify(model))
        ended += engine.step()
    ended += engine.step()
    assert [completion.key for completion in ended] == [0, 1, 2]


def test_a_request_is_aborted_in_its_own_engine() -> None:
    """The requests of other models are not affected."""
    engine = MultiModelEngine(BusyEngine(), {"judge": BusyEngine()})
    engine.add(0, classify("judge"))
    engine.add(1, classify(None))
    engine.abort(0)
    assert [completion.key for completion in engine.step()] == [1]
    assert engine.usage.num_running == engine.usage.num_waiting == 0


def test_the_usage_is_the_sum_over_all_engines() -> None:
    """The KV cache usage is that of the main model's engine."""
    engine = MultiModelEngine(
        FakeEngine(FakeSettings(max_num_seqs=4)), {"judge": FakeEngine(FakeSettings())}
    )
    for key, model in enumerate([None, "judge", "judge"]):
        engine.add(key, Request([1, 2], Pooling("classify"), model=model))
    assert engine.usage.num_waiting == 3
    engine.step()
    assert (engine.usage.num_waiting, engine.usage.prefix_tokens) == (0, 6)
    assert engine.usage.kv_cache_usage == 0


def test_tasks_with_the_same_model_share_its_engine() -> None:
    """Their requests are in one batch, which holds one request here."""
    judges = [{**JUDGE, "name": name} for name in ("judge", "again")]
    engine = load_engine(
        job({"tasks": [{"name": "draft", "kind": "generate"}, *judges]}), EngineResources(0, 1)
    )
    assert engine.info.auxiliary.keys() == {"tasks.judge.model", "tasks.again.model"}
    for key, name in enumerate(("judge", "again")):
        engine.add(key, classify(f"tasks.{name}.model"))
    assert [[completion.key for completion in engine.step()] for _ in range(2)] == [[0], [1]]


def test_models_share_a_gpus_memory() -> None:
    """Shares that the job does not set have defaults; the main model must get some memory."""
    assert memory_shares({}, {}) == {None: 0.95}
    assert memory_shares({}, {"a": {}}) == {None: 0.7, "a": 0.25}
    assert memory_shares({}, {"a": {"gpu_memory_utilization": 0.5}}) == {None: 0.45, "a": 0.5}
    assert memory_shares({"gpu_memory_utilization": 0.6}, {"a": {}}) == {None: 0.6, "a": 0.25}
    with pytest.raises(UserError, match="leave no memory"):
        memory_shares({}, {"a": {"gpu_memory_utilization": 0.95}})
