"""vLLM as an engine: requests in, completions out, one step at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from tokenmill.engine.base import EngineInfo, EngineUsage, RequestRefused
from tokenmill.engine.vllm_params import (
    refusal_message,
    refusal_types,
    require_vllm,
    vllm_params,
)
from tokenmill.errors import UserError
from tokenmill.prompt.media.decode import engine_input
from tokenmill.reject import RejectClass
from tokenmill.request import (
    Completion,
    FinishReason,
    Params,
    Pooling,
    Request,
    Sampling,
    TokenLogprob,
)

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine


class VllmEngine:
    """One vLLM engine; `statistics` is the stat logger that it was started with, if any."""

    def __init__(self, engine: "LLMEngine", statistics: "StatLogger | None" = None) -> None:
        config = engine.vllm_config
        self._statistics = statistics
        self.info = EngineInfo(
            name="vllm",
            version=require_vllm(),
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
        )
        self._engine = engine
        self._params: dict[int, Params] = {}
        # vLLM's parameters for each of a task's, translated once.
        self._translated: WeakKeyDictionary[Params, Any] = WeakKeyDictionary()
        self._adapters: dict[str, LoRARequest] = {}
        # The first of two sampling parameters that must not be mixed, once it was used.
        self._logprobs_name: str | None = None

    def load_adapters(self, adapters: Mapping[str, Path]) -> None:
        """Load LoRA adapters, by name, before the first request.

        An adapter that vLLM cannot load would crash the engine at its first request. Raises
        `UserError`.
        """
        for number, (name, folder) in enumerate(adapters.items(), start=1):
            from vllm.lora.request import LoRARequest  # noqa: PLC0415 - vLLM is imported already

            request = LoRARequest(name, number, str(folder))
            try:
                self._engine.add_lora(request)
            # If the engine has a process of its own, every error arrives as plain Exception.
            except Exception as error:
                raise UserError(
                    f"model.adapters.{name}: vLLM refuses it: {refusal_message(error)}"
                ) from error
            self._adapters[name] = request

    def add(self, key: int, request: Request) -> None:
        self._check_logprobs(request.params)
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
        # Without statistics vLLM does not report its batch size, which is the maximum unless the KV
        # cache is short.
        num_running = min(len(self._params), self.info.max_num_seqs)
        return EngineUsage(num_running, len(self._params) - num_running)

    def _prompt(self, request: Request) -> Mapping[str, Any]:
        """Return the prompt for vLLM, with media processed, so that their tokens are counted.

        Raises `RequestRefused` for media that vLLM cannot process, or that need too many tokens.
        """
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if request.media is None:
            return prompt
        from vllm.renderers.inputs.preprocess import parse_model_prompt  # noqa: PLC0415

        kind = request.media.kind
        prompt["multi_modal_data"] = {kind: engine_input(request.media)}
        renderer = self._engine.renderer
        try:
            parsed = parse_model_prompt(self._engine.model_config, prompt)
            (ready,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
        # The model's own processor may raise anything, for example torch's errors.
        except Exception as error:
            reason = f"vLLM cannot process the {kind}: {refusal_message(error)}"
            raise RequestRefused(reason) from error
        num_tokens = len(ready.get("prompt_token_ids", ()))
        num_answer_tokens = request.params.max_tokens or 1
        if num_tokens + num_answer_tokens > self.info.max_model_len:
            raise RequestRefused(
                f"the prompt's {num_tokens} tokens, including the {kind}, and "
                f"{num_answer_tokens} for the answer exceed the context of "
                f"{self.info.max_model_len}; raise engine.max_model_len or lower max_pixels",
                RejectClass.PROMPT_TOO_LONG,
            )
        return cast(Mapping[str, Any], ready)

    def _check_logprobs(self, params: Params) -> None:
        """Refuse requests with `logprobs` after requests with `logprob_token_ids`, or vice versa.

        vLLM (as of 0.32) returns no top log-probabilities for requests that share a step with
        `logprob_token_ids`. Jobs that mix them are rejected earlier (`check_logprobs`); this is the
        safeguard against wrong numbers.
        """
        for name in ("logprobs", "logprob_token_ids"):
            if params.values.get(name):
                self._logprobs_name = self._logprobs_name or name
                if self._logprobs_name != name:
                    raise RequestRefused(
                        "logprobs and logprob_token_ids cannot be used in one engine"
                    )

    def _vllm_params(self, params: Params) -> Any:
        if params not in self._translated:
            self._translated[params] = vllm_params(params)
        return self._translated[params]


class StatLogger:
    """A stat logger for vLLM that keeps the usage (`model.engine.disable_log_stats: false`)."""

    def __init__(self) -> None:
        self.usage = EngineUsage()

    def create(self, _config: Any, _engine_index: int) -> "StatLogger":
        """Called by vLLM where it expects the class of a stat logger."""
        return self

    def record(self, scheduler_stats: Any, *_args: Any, **_kwargs: Any) -> None:
        """Called by vLLM after each step."""
        if scheduler_stats is None:
            return
        prefixes, previous = scheduler_stats.prefix_cache_stats, self.usage
        self.usage = EngineUsage(
            num_running=scheduler_stats.num_running_reqs,
            num_waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            kv_cache_usage=scheduler_stats.kv_cache_usage,
            prefix_tokens=previous.prefix_tokens + prefixes.queries,
            prefix_hit_tokens=previous.prefix_hit_tokens + prefixes.hits,
        )

    def log_engine_initialized(self) -> None:
        """Called by vLLM at the start; logs nothing."""

    def log(self) -> None:
        """Called by vLLM from time to time; logs nothing."""


def _completion(output: Any, params: Params) -> Completion:
    if isinstance(params, Pooling):
        return _pooled(output)
    answer = output.outputs[0]
    return Completion(
        key=int(output.request_id),
        text=answer.text,
        finish_reason=_finish_reason(answer.finish_reason),
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=len(answer.token_ids),
        cumulative_logprob=answer.cumulative_logprob,
        choice_logprobs=_choice_logprobs(answer.logprobs, params),
        prompt_logprobs=_prompt_logprobs(output.prompt_logprobs),
        tokens=_tokens(answer.logprobs, params),
        stop_reason=answer.stop_reason,
    )


def _finish_reason(reason: str | None) -> FinishReason:
    """Why vLLM ended a request; reasons that a later release adds count as errors."""
    try:
        return FinishReason(reason or "")
    except ValueError:
        return FinishReason.ERROR


def _pooled(output: Any) -> Completion:
    return Completion(
        key=int(output.request_id),
        text="",
        finish_reason=FinishReason.STOP,
        num_input_tokens=len(output.prompt_token_ids),
        num_generated_tokens=0,
        cumulative_logprob=None,
        vector=output.outputs.data.float().numpy(),
    )


def _choice_logprobs(logprobs: Any, params: Sampling) -> dict[int, float] | None:
    """Those of the first generated token, without the sampled token that vLLM adds."""
    if not params.values.get("logprob_token_ids") or not logprobs:
        return None
    end = logprobs.end_indices[0]
    choices = set(params.values["logprob_token_ids"])
    pairs = zip(logprobs.token_ids[:end], logprobs.logprobs[:end], strict=True)
    return {token: logprob for token, logprob in pairs if token in choices}


def _tokens(logprobs: Any, params: Sampling) -> list[TokenLogprob] | None:
    """The generated tokens. For each, vLLM returns the sampled one, then the top ones in order."""
    if params.values.get("logprobs") is None or logprobs is None:
        return None
    pairs = list(zip(logprobs.decoded_tokens, logprobs.logprobs, strict=True))
    return [
        TokenLogprob(pairs[start][0], pairs[start][1], pairs[start + 1 : end])
        for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True)
    ]


def _prompt_logprobs(logprobs: Any) -> list[float] | None:
    """One per token except the first. vLLM returns the prompt's token before its alternatives."""
    if logprobs is None:
        return None
    return [logprobs.logprobs[start] for start in logprobs.start_indices[1:]]
