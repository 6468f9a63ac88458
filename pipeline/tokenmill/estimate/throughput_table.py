"""How fast an engine is: a small table of devices and sizes of models, each figure with its source.

A table cannot know a model, its settings and the lengths of its texts; a former run's pace does.
"""

from dataclasses import dataclass, replace

# A model's pace follows its size only near to one that is known.
_MOST_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one replica: those that it reads and those that it writes.

    Seconds of work add: tokens in by the one, tokens out by the other.
    """

    input_tokens_per_s: float
    output_tokens_per_s: float
    source: str

    def seconds(self, input_tokens: float, output_tokens: float) -> float:
        """What one replica takes for so many tokens."""
        return input_tokens / self.input_tokens_per_s + output_tokens / self.output_tokens_per_s


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: a model of so many parameters on one device."""

    device: str
    parameters: float
    speed: Speed


# Half of what the arithmetic (989.5 TFLOP/s of bfloat16, 2 a parameter and token) and the memory
# allow (15 GB of weights and 131 kB a token of 1,000 before it: 4.8 TB/s for 512 texts at a time,
# 3.35 TB/s for the 256 that an H100 holds): good engines reach 50 to 72 %.
_HALF = "half of the device's limit in bfloat16 at 1,000 tokens of context, not measured"
#: The device of a machine without GPUs.
CPU = "cpu"
TABLE = (
    # From docs/performance.md: 150 tokens in at 546 a second, 110 in and 80 out at 495.
    Entry(CPU, 0.135e9, Speed(546, 438, "measured on 2 cores, float32 (docs/performance.md)")),
    Entry("h100", 8e9, Speed(35_000, 8_800, _HALF)),
    Entry("h200", 8e9, Speed(35_000, 15_000, _HALF)),
)
#: The names of the table's devices.
DEVICES = tuple(entry.device for entry in TABLE)


def speed_of(device: str, parameters: int) -> Speed | None:
    """The table's figure for a model on a device, by its size; None where none is near."""
    for entry in TABLE:
        factor = parameters / entry.parameters
        if entry.device == device and 1 / _MOST_SCALE <= factor <= _MOST_SCALE:
            known = entry.speed
            return replace(
                known,
                input_tokens_per_s=round(known.input_tokens_per_s / factor, 1),
                output_tokens_per_s=round(known.output_tokens_per_s / factor, 1),
                source=f"a model of {entry.parameters / 1e9:g} B on {device}: {known.source}",
            )
    return None
