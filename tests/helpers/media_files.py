"""Small images and recordings."""

import io
import wave
from typing import Any

import numpy as np
from PIL import Image


def png(width: int = 4, height: int = 3, mode: str = "RGB", color: Any = "red") -> bytes:
    """A PNG of one color."""
    out = io.BytesIO()
    Image.new(mode, (width, height), color).save(out, "PNG")
    return out.getvalue()


def wav(samples: Any, rate: int = 16_000, channels: int = 1) -> bytes:
    """A WAV file of these 16-bit samples; several channels are interleaved."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return out.getvalue()
