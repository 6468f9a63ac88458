"""What a card could do with a dense Llama at most: arithmetic for reading, memory for writing.

The formulas are the usual ones (Pope et al. 2022, "Efficiently Scaling Transformer Inference"): a
token that is read costs two operations a weight and four a head's dimension and token before it; a
step of writing reads all weights and the keys and values of all sequences from memory once. Engines
reach half to three quarters of what the two come to (Zhu et al. 2024, "NanoFlow").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Card:
    """Operations a second without sparsity, by a weight's bytes, and bytes of memory a second."""

    flops: Mapping[int, float]
    bytes_per_s: float


#: From NVIDIA's data sheets (SXM), by a part of the name that nvidia-smi prints.
_HOPPER = {2: 989.5e12, 1: 1979e12}
CARDS = {"H200": Card(_HOPPER, 4.8e12), "H100": Card(_HOPPER, 3.35e12)}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a dense Llama; `weight_bytes` and `kv_bytes` are those of one number."""

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
        """As a config.json has it."""
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
        """Of all layers: queries and output, keys and values, and the feed-forward part."""
        keys = self.hidden * self.kv_heads // self.heads
        layer = self.hidden * (2 * self.hidden + 2 * keys + 3 * self.intermediate)
        return self.layers * layer

    @property
    def step_bytes(self) -> int:
        """What a step of writing reads of the weights; the last layer's stay in sixteen bits."""
        return self.layer_weights * self.weight_bytes + 2 * self.vocabulary * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.hidden * self.kv_heads // self.heads * self.kv_bytes


def reading_limit(shape: Shape, card: Card, context: float) -> float:
    """Tokens a second that are read, with so many tokens before each on average.

    Attention is computed in sixteen bits, whatever the weights have.
    """
    weights = 2 * shape.layer_weights / card.flops[shape.weight_bytes]
    attention = 4 * shape.layers * shape.hidden * context / card.flops[2]
    return 1 / (weights + attention)


def writing_limit(shape: Shape, card: Card, sequences: int, context: float) -> float:
    """Tokens a second that are written, by so many sequences of so many tokens each."""
    read = shape.step_bytes + sequences * context * shape.kv_bytes_per_token
    return sequences * card.bytes_per_s / read


def seconds_without_overlap(  # noqa: PLR0913, PLR0917 - a workload
    shape: Shape, card: Card, rows: int, prompt: float, answer: float, sequences: int
) -> float:
    """Reading all prompts at its limit, then writing all answers at its own."""
    reading = rows * prompt / reading_limit(shape, card, prompt / 2)
    if not answer:
        return reading
    writing = writing_limit(shape, card, min(sequences, rows), prompt + answer / 2)
    return reading + rows * answer / writing
