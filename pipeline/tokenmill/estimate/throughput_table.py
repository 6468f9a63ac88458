"""A small table of speeds by device and model size, each with its source.

The table knows nothing of a model's architecture, its settings or the lengths of its texts. The
speed of a previous run is a better estimate.
"""

from dataclasses import dataclass, replace

# Beyond this factor, a model's speed cannot be scaled from the size of another.
_MAX_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one replica, for input and output tokens.

    The times add up: input tokens at one speed, then output tokens at the other.
    """

    input_tokens_per_s: float
    output_tokens_per_s: float
    source: str

    def seconds(self, input_tokens: float, output_tokens: float) -> float:
        """The time that one replica takes for these tokens."""
        return input_tokens / self.input_tokens_per_s + output_tokens / self.output_tokens_per_s


@dataclass(frozen=True, slots=True)
class TableEntry:
    """The speed of a model with this number of parameters on one device."""

    device: str
    parameters: float
    speed: Speed


# Half of the limits set by arithmetic (989.5 TFLOP/s of bfloat16, 2 operations per parameter and
# token) and by memory (15 GB of weights and 131 kB per token of context, at 1,000 tokens: 4.8 TB/s
# for 512 texts at a time on an H200, 3.35 TB/s for the 256 that an H100 holds). Good engines reach
# 50 to 72 % of them.
_HALF = "half of the device's limit in bfloat16 at 1,000 tokens of context, not measured"
#: The device of a machine without GPUs.
CPU = "cpu"
TABLE = (
    # From docs/performance.md: 150 tokens in at 546 per second, 110 in and 80 out at 495.
    TableEntry(CPU, 0.135e9, Speed(546, 438, "measured on 2 cores, float32 (docs/performance.md)")),
    TableEntry("h100", 8e9, Speed(35_000, 8_800, _HALF)),
    TableEntry("h200", 8e9, Speed(35_000, 15_000, _HALF)),
)
#: The names of the table's devices.
DEVICES = tuple(entry.device for entry in TABLE)


def speed_of(device: str, parameters: int) -> Speed | None:
    """The speed of a model on a device, scaled by its size; None if no entry is close enough."""
    for entry in TABLE:
        factor = parameters / entry.parameters
        if entry.device == device and 1 / _MAX_SCALE <= factor <= _MAX_SCALE:
            speed = entry.speed
            return replace(
                speed,
                input_tokens_per_s=round(speed.input_tokens_per_s / factor, 1),
                output_tokens_per_s=round(speed.output_tokens_per_s / factor, 1),
                source=f"a model of {entry.parameters / 1e9:g} B on {device}: {speed.source}",
            )
    return None
