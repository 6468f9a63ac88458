"""The limits that a GPU is compared with, against numbers worked out by hand."""

import pytest

from bench.gpu import Case, limit_seconds
from bench.limits import CARDS, Shape, reading_limit, seconds_without_overlap, writing_limit

#: Llama 3.1 8B, from its config.json.
LLAMA = Shape(32, 4096, 14336, 32, 8, 128_256)
CARD = CARDS["H200"]


def test_a_models_weights_are_those_of_its_shape() -> None:
    """Its 8.03 billion are the layers', and two tables of 128,256 words (0.5 billion each)."""
    tables = 2 * LLAMA.vocabulary * LLAMA.hidden
    assert LLAMA.layer_weights + tables == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA.step_bytes == pytest.approx(15.0e9, rel=1e-2)
    assert LLAMA.kv_bytes_per_token == 131_072


def test_reading_is_bound_by_arithmetic() -> None:
    """Of 1,000 tokens each has 500 before it on average; eight bits halve the weights' part."""
    assert reading_limit(LLAMA, CARD, 500) == pytest.approx(69_600, rel=1e-3)
    eight_bits = Shape(32, 4096, 14336, 32, 8, 128_256, weight_bytes=1)
    assert reading_limit(eight_bits, CARD, 0) == pytest.approx(
        2 * reading_limit(LLAMA, CARD, 0), rel=1e-3
    )


@pytest.mark.parametrize(("sequences", "tokens"), [(128, 19_300), (256, 25_300), (512, 29_900)])
def test_writing_is_bound_by_memory(sequences: int, tokens: int) -> None:
    """At 1,000 tokens of context; more sequences share the weights' way through the memory."""
    assert writing_limit(LLAMA, CARD, sequences, 1_000) == pytest.approx(tokens, rel=5e-3)


def test_without_overlap_reading_and_writing_add_up() -> None:
    """No answer costs nothing but reading; fewer rows than places fill as many places."""
    reading = seconds_without_overlap(LLAMA, CARD, 100, 1_000, 0, 512)
    assert reading == pytest.approx(100_000 / reading_limit(LLAMA, CARD, 500))
    whole = seconds_without_overlap(LLAMA, CARD, 100, 1_000, 200, 512)
    assert whole - reading == pytest.approx(20_000 / writing_limit(LLAMA, CARD, 100, 1_100))


def test_tags_are_held_against_the_reading_of_what_is_not_cached() -> None:
    """Half of the prompts in the cache halve what is left to read; its attention stays long."""
    case = Case("W1", "bf16", 500, 500, 8, 10, {"max_num_seqs": 512})
    whole, half = (limit_seconds(case, cached, LLAMA, CARD) for cached in (0, 500))
    assert whole == pytest.approx(10_000 / reading_limit(LLAMA, CARD, 500))
    assert half == pytest.approx(5_000 / reading_limit(LLAMA, CARD, 750))


def test_a_translation_is_held_against_reading_and_writing() -> None:
    """By as many sequences as the engine may have."""
    case = Case("W2", "bf16", 0, 512, 512, 2_000, {"max_num_seqs": 256})
    expected = seconds_without_overlap(LLAMA, CARD, 2_000, 512, 512, 256)
    assert limit_seconds(case, 0, LLAMA, CARD) == pytest.approx(expected)
