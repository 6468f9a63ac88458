"""Transcribe: a row's audio as text, by Whisper and its kin."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tokenmill.errors import UserError
from tokenmill.prompt.media.decode import SAMPLE_RATE, decode_audio
from tokenmill.prompt.media.fetch import read_media
from tokenmill.reject import Reject
from tokenmill.request import Completion, FinishReason, Media
from tokenmill.tasks.kind import TaskKind, TaskStep
from tokenmill.tasks.multimodal.media_section import MediaSection, check_media
from tokenmill.tasks.retries import ask_until_valid, cut_off
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext, gather

# Whisper hears so much at a time (Radford et al. 2022, Robust Speech Recognition via Large-Scale
# Weak Supervision, 2.2).
_WINDOW = 30 * SAMPLE_RATE
# Where in a full window's end the cut is looked for, and how long the quiet must be.
_SEARCHED, _FRAME = 5 * SAMPLE_RATE, SAMPLE_RATE // 10
# Languages that put no space between words.
_UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
_NOTE = "seconds"
# The text, how it ended, and the length of the audio.
_FIELDS = (
    pa.field("transcript", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("audio_seconds", pa.float64()),
)


class Transcribe(MediaSection):
    """`task: {kind: transcribe}`: the words of an audio file."""

    kind: Literal["transcribe"]
    audio: str = Field(min_length=1, description="The column with an audio file's bytes or path.")
    language: str = Field(pattern=r"^[a-z]{2,3}$", description="What is spoken: en, fr, …")
    max_seconds: float = Field(default=600.0, gt=0, description="Longer audio is a reject.")


def _build(step: TaskStep[Transcribe], context: TaskContext) -> "Transcriber":
    for library in ("soundfile", "soxr"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install 'tokenmill[audio]'")
    model = context.config.get("model_type")
    if model != "whisper":
        raise UserError(
            f"{step.model_key or 'model'}: transcribe is for Whisper models; this one is {model}"
        )
    tokens = ("<|startoftranscript|>", f"<|{step.section.language}|>", "<|transcribe|>")
    special = context.tokenizer.special_tokens
    for token in tokens:
        # The fake model has none.
        if special and token not in special:
            raise UserError(
                f"{step.key_of('language')}: the model has no token {token}; choose another"
            )
    (prompt,) = context.tokenizer.encode_continuations(["".join((*tokens, "<|notimestamps|>"))])
    return Transcriber(step, context, prompt)


TRANSCRIBE = TaskKind(
    name="transcribe",
    section=Transcribe,
    fields=lambda _: _FIELDS,
    build=_build,
    asks_by_prompt=False,
    joins_by_prompt=False,
    templates=lambda _: {},
    columns=lambda step: {step.section.audio: step.key_of("audio")},
    check=check_media,
    starter=Starter(
        "transcripts",
        """\
# Whisper's decoder holds 448 tokens, of which 4 begin each window.
sampling: {temperature: 0, max_tokens: 444}
task:
  kind: transcribe
  audio: $column                  # bytes, or paths relative to the input's folder
  language: en
""",
        StarterModel("openai/whisper-tiny", "openai/whisper-large-v3"),
        reads="audio",
        cuts=False,
    ),
)


class Transcriber:
    """One request for each window of a row's audio, all in one round."""

    def __init__(
        self, step: TaskStep[Transcribe], context: TaskContext, prompt: Sequence[int]
    ) -> None:
        self._section = step.section
        self._storage = context.storage
        self._prompt = list(prompt)
        self._samplings = step.samplings
        self._joint = "" if step.section.language in _UNSPACED else " "

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        column = self._section.audio
        values = [row[column] for row in rows]
        read = read_media(values, column, self._section.media, self._storage, self._windows)
        return [media if isinstance(media, Reject) else self._prepared(media) for media in read]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        heard = yield from gather(
            [
                ask_until_valid(self._prompt, self._samplings, self._whole, window)
                for window in prepared.media
            ]
        )
        texts = []
        reasons = []
        for answer in heard:
            if isinstance(answer, Reject):
                return answer
            texts.append(answer.text.strip())
            reasons.append(answer.finish_reason)
        return {
            "transcript": self._joint.join(filter(None, texts)),
            "finish_reason": FinishReason.LENGTH if FinishReason.LENGTH in reasons else reasons[-1],
            "audio_seconds": prepared.notes[_NOTE],
        }

    def _windows(self, data: bytes) -> list[Media]:
        samples = decode_audio(data, self._section.max_seconds)
        return [Media("audio", window.astype("<i2").tobytes()) for window in audio_windows(samples)]

    def _prepared(self, media: Sequence[Media]) -> PreparedRow:
        num_samples = sum(len(window.data) for window in media) // 2
        return PreparedRow([self._prompt], {_NOTE: num_samples / SAMPLE_RATE}, media)

    def _whole(self, answer: Completion) -> Completion | Reject:
        cut = cut_off(answer) if self._section.complete else None
        return answer if cut is None else cut


def audio_windows(samples: npt.NDArray[np.int16]) -> Iterator[npt.NDArray[np.int16]]:
    """Audio in pieces of 30 s at most, cut where the last 5 s of each are quietest."""
    while len(samples) > _WINDOW:
        frames = samples[_WINDOW - _SEARCHED : _WINDOW].astype(np.float32).reshape(-1, _FRAME)
        quietest = int(np.square(frames).sum(axis=1).argmin())
        cut = _WINDOW - _SEARCHED + quietest * _FRAME + _FRAME // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples
