"""The names of vLLM that are not part of its stable interface, one test for each use.

Each test reads the source of the installed vLLM, which takes milliseconds where an import would
take ten seconds. A test that fails shows its docstring: what tokenmill loses without the name.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenmill.engine.vllm_log import LOGGER, WEIGHT_WARNING
from tokenmill.engine.vllm_params import require_vllm
from tokenmill.request import FinishReason

_SPEC = importlib.util.find_spec("vllm")

pytestmark = pytest.mark.skipif(_SPEC is None, reason="vLLM is not installed")


@cache
def parse(file: str) -> ast.Module:
    """The syntax tree of a file of vLLM; an empty one if there is no such file."""
    assert _SPEC is not None and _SPEC.origin is not None
    path = Path(_SPEC.origin).parent / file
    return ast.parse(path.read_text() if path.is_file() else "")


def bound_names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind: definitions, assignments and imports, also inside `try`."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case ast.Try():
                yield from bound_names(node.body)


def find(file: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The definition of a class, function or method (`Class.method`) in a file of vLLM."""
    body: list[ast.stmt] = parse(file).body
    found: ast.ClassDef | ast.FunctionDef | None = None
    for part in name.split("."):
        nodes = (node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))
        found = next((node for node in nodes if node.name == part), None)
        if found is None:
            return None
        body = found.body
    return found


def members(file: str, class_name: str) -> set[str]:
    """Fields, methods and attributes of a class, and of its bases in the same file."""
    node = find(file, class_name)
    if not isinstance(node, ast.ClassDef):
        return set()
    names = set(bound_names(node.body))
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=attribute, ctx=ast.Store()):
                names.add(attribute)
    for base in node.bases:
        if isinstance(base, ast.Name):
            names |= members(file, base.id)
    return names


class Requirement:
    """Fails a test with its docstring if vLLM lacks a name."""

    def __init__(self, lost: str) -> None:
        self._lost = " ".join(lost.split())

    def names(self, file: str, *names: str) -> None:
        """A file binds these names."""
        self.check(file, set(names) - set(bound_names(parse(file).body)))

    def members(self, file: str, class_name: str, *names: str) -> None:
        """A class has these fields, methods or attributes."""
        self.check(f"{file}: {class_name}", set(names) - members(file, class_name))

    def parameters(self, file: str, function: str, *names: str) -> None:
        """A function or method takes these parameters."""
        node = find(file, function)
        arguments = node.args if isinstance(node, ast.FunctionDef) else None
        known = [] if arguments is None else [*arguments.args, *arguments.kwonlyargs]
        self.check(f"{file}: {function}", set(names) - {argument.arg for argument in known})

    def check(self, owner: str, missing: set[str]) -> None:
        """Fail if anything is missing in `owner`."""
        if missing:
            pytest.fail(
                f"{self._lost} vLLM {require_vllm()} has no {', '.join(sorted(missing))} in "
                f"vllm/{owner}.",
                pytrace=False,
            )


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> Requirement:
    """What the test needs of vLLM; its docstring is the message."""
    return Requirement(request.function.__doc__)


# Starting an engine.


def test_the_engine_can_be_stepped_in_our_own_thread(needs: Requirement) -> None:
    """Without `LLMEngine` there is no engine: nothing runs on vLLM."""
    file = "v1/engine/llm_engine.py"
    needs.members(file, "LLMEngine", "from_engine_args", "add_request", "step", "abort_request")
    needs.parameters(file, "LLMEngine.add_request", "request_id", "prompt", "params")
    needs.members(file, "LLMEngine", "vllm_config", "model_config")


def test_the_warning_about_a_weights_type_is_recognized() -> None:
    """Without its text the log of a start has the warning for each weight."""
    file = LOGGER.removeprefix("vllm.").replace(".", "/") + ".py"
    texts = [node.value for node in ast.walk(parse(file)) if isinstance(node, ast.Constant)]
    assert any(str(text).startswith(WEIGHT_WARNING) for text in texts)


def test_the_usage_context_sets_the_batch_limits(needs: Requirement) -> None:
    """Without `LLM_CLASS` vLLM takes a server's batch limits, which halves the throughput."""
    needs.members("usage/usage_lib.py", "UsageContext", "LLM_CLASS")
    needs.parameters("v1/engine/llm_engine.py", "LLMEngine.from_engine_args", "usage_context")


@pytest.mark.parametrize(
    "argument",
    [
        *("model", "runner", "dtype", "max_model_len", "disable_log_stats"),
        *("max_num_seqs", "max_num_batched_tokens", "enforce_eager", "kv_cache_memory_bytes"),
        *("gpu_memory_utilization", "tensor_parallel_size", "structured_outputs_config"),
        *("enable_chunked_prefill", "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras"),
    ],
)
def test_the_engine_takes_the_arguments_that_we_set(needs: Requirement, argument: str) -> None:
    """Without an argument of `EngineArgs` that tokenmill sets itself, no engine starts."""
    needs.members("engine/arg_utils.py", "EngineArgs", argument)


def test_the_engine_runs_in_the_actors_process_on_all_cores(needs: Requirement) -> None:
    """Without these variables a CPU engine loads five times as long and leaves cores unused."""
    names = {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND"}
    keys = (
        key
        for node in ast.walk(parse("envs.py"))
        if isinstance(node, ast.Dict)
        for key in node.keys
    )
    needs.check("envs.py", names - {key.value for key in keys if isinstance(key, ast.Constant)})


def test_lora_adapters_are_loaded_before_the_first_request(needs: Requirement) -> None:
    """Without these names jobs with LoRA adapters fail."""
    needs.members("v1/engine/llm_engine.py", "LLMEngine", "add_lora")
    needs.parameters("v1/engine/llm_engine.py", "LLMEngine.add_request", "lora_request")
    fields = ("lora_name", "lora_int_id", "lora_path")
    needs.members("lora/request.py", "LoRARequest", *fields)
    node = find("lora/request.py", "LoRARequest")
    assert node is not None
    # They are passed by position.
    assert tuple(bound_names(node.body))[:3] == fields


# Requests.


def test_a_request_returns_one_output_at_its_end(needs: Requirement) -> None:
    """Without `FINAL_ONLY` every token returns an output, and most of them are thrown away."""
    needs.members("sampling_params.py", "RequestOutputKind", "FINAL_ONLY")
    needs.members("sampling_params.py", "SamplingParams", "output_kind")


def test_parameters_are_checked_in_a_second(needs: Requirement) -> None:
    """Without these names values that no request can have are found only when the engine starts."""
    arguments = ("model_config", "speculative_config", "structured_outputs_config", "tokenizer")
    needs.parameters("sampling_params.py", "SamplingParams.verify", *arguments)
    needs.members("config/speculative.py", "SpeculativeConfig", "method")
    needs.members("config/structured_outputs.py", "StructuredOutputsConfig", "backend")
    needs.names("config/model.py", "ModelDType")


def test_log_probabilities_come_in_flat_lists(needs: Requirement) -> None:
    """Without `FlatLogprobs` scores, label probabilities and token alternatives are lost."""
    needs.members("sampling_params.py", "SamplingParams", "flat_logprobs")
    fields = ("start_indices", "end_indices", "token_ids", "logprobs", "decoded_tokens")
    needs.members("logprobs.py", "FlatLogprobs", *fields)


def test_log_probabilities_of_chosen_tokens_can_be_requested(needs: Requirement) -> None:
    """Without these parameters tasks with label probabilities and scores fail."""
    names = ("logprobs", "logprob_token_ids", "prompt_logprobs")
    needs.members("sampling_params.py", "SamplingParams", *names)


def test_answers_can_be_held_to_a_structure(needs: Requirement) -> None:
    """Without these names extraction, and all structured outputs, fail."""
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    needs.members("sampling_params.py", "StructuredOutputsParams", *kinds)
    needs.members("sampling_params.py", "SamplingParams", "structured_outputs", "clone")


def test_a_grammar_can_be_checked_before_a_run(needs: Requirement) -> None:
    """Without these functions no job with structured outputs starts on vLLM."""
    needs.names("v1/structured_output/backend_xgrammar.py", "validate_xgrammar_grammar")
    needs.names("v1/structured_output/backend_guidance.py", "validate_guidance_grammar")


def test_pooling_tasks_name_their_task(needs: Requirement) -> None:
    """Without these parameters embed, reward and rerank fail."""
    names = ("task", "dimensions", "use_activation", "clone")
    needs.members("pooling_params.py", "PoolingParams", *names)


def test_media_are_processed_before_a_request_is_added(needs: Requirement) -> None:
    """Without the renderer describe and transcribe fail: the tokens of media are not counted."""
    needs.members("v1/engine/llm_engine.py", "LLMEngine", "renderer")
    needs.names("renderers/inputs/preprocess.py", "parse_model_prompt")
    needs.members("renderers/base.py", "BaseRenderer", "render_cmpl", "default_cmpl_tok_params")


def test_a_bad_request_is_not_taken_for_a_crash(needs: Requirement) -> None:
    """Without `VLLMClientError` (0.27 and later) a bad request ends the run instead of its row."""
    if require_vllm().startswith("0.26."):
        pytest.skip("vLLM 0.26 raises ValueError")
    needs.names("exceptions.py", "VLLMClientError")


# Answers.


def test_outputs_have_the_fields_that_completions_need(needs: Requirement) -> None:
    """Without a field of the outputs no answer can be read."""
    fields = ("request_id", "outputs", "prompt_token_ids", "prompt_logprobs", "finished")
    needs.members("outputs.py", "RequestOutput", *fields)
    texts = ("text", "token_ids", "finish_reason", "stop_reason", "cumulative_logprob", "logprobs")
    needs.members("outputs.py", "CompletionOutput", *texts)
    pooled = ("request_id", "outputs", "prompt_token_ids", "finished")
    needs.members("outputs.py", "PoolingRequestOutput", *pooled)
    needs.members("outputs.py", "PoolingOutput", "data")


def test_finish_reasons_are_known(needs: Requirement) -> None:
    """Without its word a new finish reason is shown as an error; add it to `FinishReason`."""
    needs.names("v1/engine/__init__.py", "FINISH_REASON_STRINGS")
    (reasons,) = (
        ast.literal_eval(node.value)
        for node in parse("v1/engine/__init__.py").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FINISH_REASON_STRINGS"
    )
    unknown = set(reasons) - set(FinishReason)
    assert not unknown, f"{test_finish_reasons_are_known.__doc__}: {unknown}"


# Statistics.


def test_statistics_reach_our_stat_logger(needs: Requirement) -> None:
    """Without these names the progress lacks batch size, KV cache and prefix cache usage."""
    needs.parameters("v1/engine/llm_engine.py", "LLMEngine.from_engine_args", "stat_loggers")
    methods = ("record", "log", "log_engine_initialized")
    needs.members("v1/metrics/loggers.py", "StatLoggerBase", *methods)
    needs.parameters("v1/metrics/loggers.py", "StatLoggerBase.record", "scheduler_stats")
    counts = ("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage")
    needs.members("v1/metrics/stats.py", "SchedulerStats", *counts, "prefix_cache_stats")
    needs.members("v1/metrics/stats.py", "PrefixCacheStats", "queries", "hits")


def test_vllms_own_metrics_are_exported_through_ray(needs: Requirement) -> None:
    """Without these names a run with a metrics endpoint lacks vLLM's own metrics."""
    needs.names("v1/metrics/ray_wrappers.py", "RayPrometheusStatLogger", "ray_metrics")


# The tests themselves.


def test_a_missing_name_fails_with_what_is_lost() -> None:
    """The message has the loss, the version and the name."""
    needs = Requirement("Without it\n    all is lost.")
    for check in (
        lambda: needs.names("nowhere.py", "gone"),
        lambda: needs.members("outputs.py", "RequestOutput", "gone"),
        lambda: needs.parameters("v1/engine/llm_engine.py", "LLMEngine.step", "gone"),
        lambda: needs.parameters("v1/engine/llm_engine.py", "LLMEngine.nothing", "gone"),
    ):
        with pytest.raises(pytest.fail.Exception) as failure:
            check()
        message = str(failure.value)
        assert message.startswith("Without it all is lost. vLLM ") and "no gone in" in message
