"""A job's tasks, built with the tokenizers, contexts and configs of its models."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.fake import FakeTokenizer, fake_config, fake_settings
from pipeline.job import Job
from pipeline.models import fetch, fetch_config, read_config
from pipeline.section import ModelSource
from pipeline.store import Store
from pipeline.tasks.base import Runner, TaskSection, Tools
from pipeline.tasks.row import RowTasks
from pipeline.tokenizer import ModelTokenizer
from pipeline.trust import refuse_pickled, trusts_code

# Kinds of rotary scaling by whose factor vLLM multiplies the context.
_STRETCHING = ("linear", "dynamic")
# What the usual architectures call their context in config.json.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)


def resolve(job: Job) -> Job:
    """The job with all that its output's types need; of its models no more than their config."""

    def resolved(section: TaskSection) -> TaskSection:
        model = section.model or job.model
        place = section.model_place or "model"
        return section.resolved(lambda: _config(model, place))

    if job.tasks is not None:
        return job.model_copy(update={"tasks": tuple(resolved(task) for task in job.tasks)})
    return job if job.task is None else job.model_copy(update={"task": resolved(job.task)})


def _config(model: ModelSource, place: str) -> Mapping[str, Any]:
    if model.is_fake:
        return fake_config(fake_settings(model.engine, place))
    return fetch_config(model)


def load_tasks(job: Job, storage: Store | None = None) -> RowTasks:
    """The job's tasks, ready to prepare and to answer; `storage` is where its input stands.

    Raises `UserError`.
    """
    return RowTasks(job.steps, load_tools(job, storage))


def load_tools(job: Job, storage: Store | None = None) -> Tools:
    """What the job's tasks are built with. Raises `UserError`."""
    beside = {
        place: _load_tools(side.source, side.runner, place)
        for place, side in job.side_models.items()
    }
    return replace(
        _load_tools(job.model, job.runner, "model"),
        adapters=tuple(job.model.adapters),
        beside=beside,
        storage=storage,
    )


def _load_tools(model: ModelSource, runner: Runner, place: str) -> Tools:
    if model.is_fake:
        settings = fake_settings(model.engine, place)
        return Tools(FakeTokenizer(), settings.max_model_len, fake_config(settings))
    folder = fetch(model)
    refuse_pickled(folder, model)
    config = read_config(folder)
    context = _max_model_len(model, runner, place, folder, config)
    return Tools(ModelTokenizer(folder, trusts_code=trusts_code(model)), context, config)


def _stretch(config: Mapping[str, Any]) -> float:
    """By how much rotary positions are stretched where the context is given without that."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    # Of the other kinds, and in Gemma 3, the context is given stretched.
    if kind not in _STRETCHING or str(config.get("model_type")).startswith("gemma3"):
        return 1.0
    return float(rope.get("factor") or 1.0)


def _max_model_len(
    model: ModelSource, runner: Runner, place: str, folder: Path, config: Mapping[str, Any]
) -> int:
    """The context in tokens as vLLM finds it: what the job sets, or what the model was made for."""
    wanted = model.engine.get("max_model_len")
    if isinstance(wanted, int) and wanted > 0:
        return wanted
    for file in sorted(folder.glob("sentence_*_config.json")):
        length = json.loads(file.read_text()).get("max_seq_length")
        if isinstance(length, int):
            return length
    for section in (config.get("text_config", {}), config):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                length = int(section[key] * _stretch(section))
                return min(length, _tokenizer_limit(runner, folder, config))
    raise UserError(
        f"{place}.engine.max_model_len: {model.source} does not say how long its context is; set it"
    )


def _tokenizer_limit(runner: Runner, folder: Path, config: Mapping[str, Any]) -> int:
    """RoBERTa's 514 positions are 512 tokens, which only its tokenizer says."""
    file = folder / "tokenizer_config.json"
    absolute = config.get("position_embedding_type") == "absolute"
    if runner == "generate" or not absolute or not file.is_file():
        return 2**31
    return int(json.loads(file.read_text()).get("model_max_length", 2**31))
