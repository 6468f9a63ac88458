"""Decoding images and audio, within bounds of size and length."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenmill.prompt.media.fetch import BadMedia, decode_error
from tokenmill.request import Media

#: Samples a second of audio as engines get it: Whisper's rate.
SAMPLE_RATE = 16_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_BLOCK_S = 10
# Beyond them a file's header lies, or its decoding takes more memory than its length says.
_MOST_CHANNELS, _SAMPLE_RATES = 16, range(1_000, 384_001)
_FULL_SCALE = 2**15


def image_media(data: bytes, max_pixels: int) -> list[Media]:
    """An image file as a PNG, upright, on white where it was transparent, scaled to `max_pixels`.

    Raises `BadMedia` for one that cannot be decoded, or has more pixels than Pillow deems safe.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - jobs without images need not pay for it

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            # Before a pixel is decoded. Up to twice the limit Pillow itself would only warn.
            _refuse_bomb(opened.width * opened.height, Image.MAX_IMAGE_PIXELS or 0)
            image: Any = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
            scale = math.sqrt(max_pixels / (image.width * image.height))
            if scale < 1:
                size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
                image = image.resize(size, Image.Resampling.LANCZOS)
    except BadMedia:
        raise
    except Exception as error:  # a broken file makes a decoder raise nearly anything
        raise BadMedia(f"not a sound image: {decode_error(error)}") from error
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return [Media("image", out.getvalue())]


def _refuse_bomb(num_pixels: int, most: int) -> None:
    if num_pixels > most:
        raise BadMedia(f"the image has {num_pixels:,} pixels, more than {most:,}")


def audio_samples(data: bytes, max_seconds: float) -> npt.NDArray[np.int16]:
    """An audio file as one channel at `SAMPLE_RATE`. Raises `BadMedia` for a broken or long one."""
    import soundfile  # noqa: PLC0415 - an extra
    import soxr  # noqa: PLC0415

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            _refuse_long(file.frames, rate, file.channels, max_seconds)
            resample = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32").resample_chunk
            pieces = []
            for block in file.blocks(rate * _BLOCK_S, dtype="float32", always_2d=True):
                mono = block.mean(axis=1)
                pieces.append(mono if rate == SAMPLE_RATE else resample(mono))
            if rate != SAMPLE_RATE:
                pieces.append(resample(np.zeros(0, np.float32), last=True))
    except BadMedia:
        raise
    except Exception as error:  # libsndfile's own, and soxr's
        raise BadMedia(f"not sound audio: {decode_error(error)}") from error
    samples = np.concatenate([np.zeros(0, np.float32), *pieces])
    if not len(samples):
        raise BadMedia("the audio is empty")
    if not np.isfinite(samples).all():
        raise BadMedia("the audio holds samples that are no numbers")
    scaled = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return np.asarray(scaled, np.int16)


def _refuse_long(frames: int, rate: int, channels: int, max_seconds: float) -> None:
    if rate not in _SAMPLE_RATES or not 1 <= channels <= _MOST_CHANNELS:
        raise BadMedia(f"the audio has {channels} channels of {rate:,} samples a second")
    if frames > max_seconds * rate:
        seconds = f"{frames / rate:,.0f} s"
        raise BadMedia(f"the audio has {seconds}, more than max_seconds ({max_seconds:g})")


def decoded(media: Media) -> Any:
    """What vLLM takes: a PIL image, or float32 samples between -1 and 1."""
    if media.kind == "audio":
        return np.frombuffer(media.data, "<i2").astype(np.float32) / _FULL_SCALE
    from PIL import Image  # noqa: PLC0415

    image = Image.open(io.BytesIO(media.data), formats=("PNG",))
    image.load()
    return image
