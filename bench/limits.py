"""Upper bounds of a card with a dense Llama: arithmetic for input tokens, memory for output tokens.

The formulas are the usual ones (Pope et al. 2022, "Efficiently Scaling Transformer Inference"): an
input token costs two operations per weight, and four per head dimension and preceding token. A
decoding step reads all weights, and the keys and values of all sequences, from memory once. Engines
reach half to three quarters of these limits (Zhu et al. 2024, "NanoFlow").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Card:
    """Operations per second without sparsity, by bytes per weight, and memory bandwidth."""

    flops: Mapping[int, float]
    bytes_per_s: float


#: From NVIDIA's data sheets (SXM), by a part of the name that nvidia-smi reports.
_HOPPER = {2: 989.5e12, 1: 1979e12}
CARDS = {"H200": Card(_HOPPER, 4.8e12), "H100": Card(_HOPPER, 3.35e12)}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a dense Llama; `weight_bytes` and `kv_bytes` are bytes per number."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    weight_bytes: int = 2
    kv_bytes: int = 2

    @classmethod
    def of(cls, config: Mapping[str, Any], weight_bytes: int = 2, kv_bytes: int = 2) -> "Shape":
        """Read the shape from a model's config.json."""
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["vocab_size"],
            weight_bytes,
            kv_bytes,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of all layers: queries and output, keys and values, and the feed-forward part."""
        keys = self.hidden * self.kv_heads // self.heads
        layer = self.hidden * (2 * self.hidden + 2 * keys + 3 * self.intermediate)
        return self.layers * layer

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a decoding step reads; the last layer stays in sixteen bits."""
        return self.layer_weights * self.weight_bytes + 2 * self.vocabulary * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token, in all layers."""
        return 2 * self.layers * self.hidden * self.kv_heads // self.heads * self.kv_bytes


def reading_limit(shape: Shape, card: Card, context: float) -> float:
    """Return the most input tokens per second, with `context` preceding tokens on average.

    Attention is computed in sixteen bits, whatever the format of the weights.
    """
    weights = 2 * shape.layer_weights / card.flops[shape.weight_bytes]
    attention = 4 * shape.layers * shape.hidden * context / card.flops[2]
    return 1 / (weights + attention)


def writing_limit(shape: Shape, card: Card, sequences: int, context: float) -> float:
    """Return the most output tokens per second, for `sequences` of `context` tokens each."""
    read = shape.step_bytes + sequences * context * shape.kv_bytes_per_token
    return sequences * card.bytes_per_s / read


def seconds_without_overlap(  # noqa: PLR0913, PLR0917 - a workload
    shape: Shape, card: Card, rows: int, prompt: float, answer: float, sequences: int
) -> float:
    """Return the seconds to read all prompts and then write all answers, each at its limit."""
    reading = rows * prompt / reading_limit(shape, card, prompt / 2)
    if not answer:
        return reading
    writing = writing_limit(shape, card, min(sequences, rows), prompt + answer / 2)
    return reading + rows * answer / writing
