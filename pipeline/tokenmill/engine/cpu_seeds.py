"""Seeds on a CPU: the engine must not split a prompt over steps.

For a request with a seed, vLLM 0.32 takes back the random numbers of a step that ends within its
prompt (`gen.set_offset` in `v1/worker/gpu_model_runner.py`). PyTorch's generators can do that on
GPUs only, so on a CPU the engine would crash at the first prompt that chunked prefill splits.
"""

from collections.abc import Mapping
from typing import Any

from tokenmill.errors import UserError

# The smallest default, so that a short context still fills its steps with several prompts.
_MIN_BATCHED_TOKENS = 2048


def seed_arguments(
    arguments: Mapping[str, Any], max_model_len: int, key: str = "model"
) -> dict[str, Any]:
    """The engine arguments with which seeds work on a CPU: each prompt runs in one step.

    `arguments` are the job's engine arguments, which are kept, and `key` is the job key of the
    model. `max_model_len` is its context in tokens. Raises `UserError` for arguments with which
    prompts would be split.
    """
    check_seed_arguments({**arguments, "max_model_len": max_model_len}, key)
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_MIN_BATCHED_TOKENS, max_model_len),
        **arguments,
    }


def check_seed_arguments(arguments: Mapping[str, Any], key: str = "model") -> None:
    """Raise `UserError` for engine arguments that crash an engine with seeds on a CPU."""
    for name in ("enable_chunked_prefill", "long_prefill_token_threshold"):
        if arguments.get(name):
            raise UserError(
                f"{key}.engine.{name}: on a CPU, vLLM crashes if it splits the prompt of a request "
                "with a seed; remove it, or remove the seed"
            )
    length, num_tokens = arguments.get("max_model_len"), arguments.get("max_num_batched_tokens")
    if isinstance(length, int) and isinstance(num_tokens, int) and num_tokens < length:
        raise UserError(
            f"{key}.engine.max_num_batched_tokens: on a CPU, the prompt of a request with a seed "
            f"must fit into one step, so it must be at least the context of {length} tokens; raise "
            "it, set a smaller max_model_len, or remove the seed"
        )
