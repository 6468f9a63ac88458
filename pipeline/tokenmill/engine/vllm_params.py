"""Requests as vLLM's parameters, checked by vLLM's own classes where possible."""

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.request import Params, Pooling, Sampling

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams


# What vLLM can hold an answer to, one at a time.
_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def vllm_params(params: Params) -> "SamplingParams | PoolingParams":
    """VLLM's own parameters for a task's. Raises `UserError` for what vLLM refuses."""
    require_vllm()
    return _pooling_params(params) if isinstance(params, Pooling) else _sampling_params(params)


def _pooling_params(pooling: Pooling) -> "PoolingParams":
    from vllm import PoolingParams  # noqa: PLC0415

    try:
        return PoolingParams(task=pooling.task, **pooling.values)
    except refusal_types() as error:
        raise UserError(f"task: vLLM refuses it: {refusal_message(error)}") from error


def _sampling_params(sampling: Sampling) -> "SamplingParams":
    from vllm.sampling_params import (  # noqa: PLC0415
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    # The sampled token's own log-probability, for cumulative_logprob; a job may turn it off (null).
    values = dict(sampling.values)
    if not values.get("logprob_token_ids"):
        values.setdefault("logprobs", 0)
    try:
        if isinstance(values.get("structured_outputs"), Mapping):
            structured = StructuredOutputsParams(**values["structured_outputs"])
            values["structured_outputs"] = structured
        return SamplingParams(
            **values, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
        )
    except refusal_types() as error:
        raise UserError(f"sampling: vLLM refuses it: {refusal_message(error)}") from error


def grammar_backend(arguments: Mapping[str, Any]) -> str:
    """The grammar backend that the engine arguments choose."""
    config = arguments.get("structured_outputs_config")
    return str(config.get("backend", "auto")) if isinstance(config, Mapping) else "auto"


def check_grammar(params: "SamplingParams | PoolingParams", backend: str) -> None:
    """Raise `UserError` for a schema, regex or grammar of which vLLM makes none that it can run.

    What vLLM does for each request. Otherwise every row would be refused, one by one.
    """
    from vllm.v1.structured_output import backend_guidance, backend_xgrammar  # noqa: PLC0415

    structured = getattr(params, "structured_outputs", None)
    if structured is None:
        return
    kind = next(name for name in _STRUCTURES if getattr(structured, name) is not None)
    value = getattr(structured, kind)
    if kind == "regex":
        if "\0" in value:
            raise UserError("structured_outputs.regex: a NUL in it is never matched; take it out")
    elif not value and value != {}:
        raise UserError(f"structured_outputs.{kind}: it is empty; leave it out")
    # Checking writes into the parameters.
    params = params.clone()
    try:
        if backend in ("auto", "xgrammar"):
            backend_xgrammar.validate_xgrammar_grammar(params)
        elif backend == "guidance":
            backend_guidance.validate_guidance_grammar(params)
        return
    except refusal_types() as error:
        first = error
    try:
        if backend == "auto":
            backend_guidance.validate_guidance_grammar(params)
            return
    except refusal_types() as error:
        first = error
    raise UserError(
        f"structured_outputs.{kind}: vLLM refuses it: {refusal_message(first)}"
    ) from first


def check_argument_names(
    engine: Mapping[str, Mapping[str, Any]], sampling: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise `UserError` for a name that vLLM does not have, with the nearest one that it has.

    Both map the place in the job to the arguments that it holds.
    Reads vLLM's source instead of importing it, which takes ten seconds.
    """
    require_vllm()
    for places, module, class_name in (
        (engine, "engine/arg_utils.py", "EngineArgs"),
        (sampling, "sampling_params.py", "SamplingParams"),
    ):
        known = _fields(module, class_name)
        for place, values in places.items():
            for name in values:
                if name not in known:
                    raise UserError(f"{place}.{name}: {did_you_mean(name, known)}")


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


def require_vllm() -> None:
    """Raise `UserError` if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: pip install 'tokenmill[gpu]', or 'tokenmill[cpu]' on a machine "
            "without a GPU"
        )


def refusal_types() -> tuple[type[Exception], ...]:
    """What vLLM raises for a caller's mistake; a dead engine raises something else."""
    from vllm.exceptions import VLLMClientError  # noqa: PLC0415

    return (VLLMClientError, ValueError, TypeError, NotImplementedError)


def refusal_message(error: Exception) -> str:
    """VLLM's error as one line."""
    message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return " ".join(message.split()).removeprefix("Value error, ") or type(error).__name__
