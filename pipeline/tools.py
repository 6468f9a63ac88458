"""A job's tasks, built with the tokenizer and the context of its model."""

import json
from pathlib import Path

from pipeline.errors import UserError
from pipeline.fake import FakeTokenizer, fake_settings
from pipeline.job import Job, Model
from pipeline.models import fetch
from pipeline.tasks.base import Tools
from pipeline.tasks.row import RowTasks
from pipeline.tokenizer import ModelTokenizer

# What the usual architectures call their context in config.json.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def load_tasks(job: Job) -> RowTasks:
    """The job's tasks, ready to prepare and to answer. Raises `UserError`."""
    return RowTasks(job.steps, _load_tools(job.model))


def _load_tools(model: Model) -> Tools:
    if model.is_fake:
        return Tools(FakeTokenizer(), fake_settings(model.engine).max_model_len)
    folder = fetch(model)
    return Tools(ModelTokenizer(folder), _max_model_len(model, folder))


def _max_model_len(model: Model, folder: Path) -> int:
    """The context in tokens: what the job sets, or what the model was made for."""
    wanted = model.engine.get("max_model_len")
    if isinstance(wanted, int) and wanted > 0:
        return wanted
    config = json.loads((folder / "config.json").read_text())
    for section in (config.get("text_config", {}), config):
        for key in _CONTEXT_KEYS:
            if isinstance(section.get(key), int):
                return int(section[key])
    raise UserError(
        f"model.engine.max_model_len: {model.source} does not say how long its context is; set it"
    )
