"""Decode images and audio, within limits on size and length."""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenmill.prompt.media.access import BadMedia, decode_error
from tokenmill.request import Media

#: Samples per second of the audio that engines receive: Whisper's rate.
SAMPLE_RATE = 16_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_BLOCK_S = 10
# Beyond these limits a file's header is wrong, or decoding takes far more memory than its length
# suggests.
_MAX_CHANNELS, _SAMPLE_RATES = 16, range(1_000, 384_001)
_FULL_SCALE = 2**15


def decode_image(data: bytes, max_pixels: int) -> list[Media]:
    """Convert an image file to a PNG: upright, opaque on white, scaled down to `max_pixels`.

    Raises `BadMedia` if it cannot be decoded, or has more pixels than Pillow considers safe.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - only jobs with images pay for the import

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            # Before any pixel is decoded. Pillow itself only warns up to twice its limit.
            _check_num_pixels(opened.width * opened.height, Image.MAX_IMAGE_PIXELS or 0)
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
    except Exception as error:  # decoders raise nearly anything for a broken file
        raise BadMedia(f"the image cannot be decoded: {decode_error(error)}") from error
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return [Media("image", out.getvalue())]


def _check_num_pixels(num_pixels: int, limit: int) -> None:
    if num_pixels > limit:
        raise BadMedia(f"the image has {num_pixels:,} pixels, more than {limit:,}")


def decode_audio(data: bytes, max_seconds: float) -> npt.NDArray[np.int16]:
    """The samples of an audio file, mixed to one channel and resampled to `SAMPLE_RATE`.

    Raises `BadMedia` if it cannot be decoded, is empty or is longer than `max_seconds`.
    """
    import soundfile  # noqa: PLC0415 - optional dependencies, of the extra `audio`
    import soxr  # noqa: PLC0415

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            _check_length(file.frames, rate, file.channels, max_seconds)
            resample = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32").resample_chunk
            pieces = []
            for block in file.blocks(rate * _BLOCK_S, dtype="float32", always_2d=True):
                mono = block.mean(axis=1)
                pieces.append(mono if rate == SAMPLE_RATE else resample(mono))
            if rate != SAMPLE_RATE:
                pieces.append(resample(np.zeros(0, np.float32), last=True))
    except BadMedia:
        raise
    except Exception as error:  # errors of libsndfile and of soxr
        raise BadMedia(f"the audio cannot be decoded: {decode_error(error)}") from error
    samples = np.concatenate([np.zeros(0, np.float32), *pieces])
    if not len(samples):
        raise BadMedia("the audio is empty")
    if not np.isfinite(samples).all():
        raise BadMedia("the audio contains samples that are not finite")
    scaled = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return np.asarray(scaled, np.int16)


def _check_length(frames: int, rate: int, channels: int, max_seconds: float) -> None:
    if rate not in _SAMPLE_RATES or not 1 <= channels <= _MAX_CHANNELS:
        raise BadMedia(f"the audio has {channels} channels at {rate:,} samples per second")
    if frames > max_seconds * rate:
        seconds = f"{frames / rate:,.0f} s"
        raise BadMedia(f"the audio has {seconds}, more than max_seconds ({max_seconds:g})")


def engine_input(media: Media) -> Any:
    """Media in the form that vLLM takes: a PIL image, or float32 samples between -1 and 1."""
    if media.kind == "audio":
        return np.frombuffer(media.data, "<i2").astype(np.float32) / _FULL_SCALE
    from PIL import Image  # noqa: PLC0415

    image = Image.open(io.BytesIO(media.data), formats=("PNG",))
    image.load()
    return image
