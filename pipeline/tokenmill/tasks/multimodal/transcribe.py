"""The `transcribe` task: turns a row's audio into text with a Whisper model."""

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
from tokenmill.request import Completion, Media, joined_reason
from tokenmill.tasks.kind import TaskKind, TaskStep
from tokenmill.tasks.multimodal.media_section import MediaSection, check_media
from tokenmill.tasks.retries import ask_until_valid, cut_off
from tokenmill.tasks.starter import Starter, StarterModel
from tokenmill.tasks.task import Cells, Dialogue, PreparedRow, Row, TaskContext, gather

# Samples that Whisper reads at once (Radford et al. 2022, Robust Speech Recognition via Large-Scale
# Weak Supervision, section 2.2).
_WINDOW = 30 * SAMPLE_RATE
# A full window is cut in its last 5 s, in the quietest frame of 0.1 s.
_CUT_RANGE, _FRAME = 5 * SAMPLE_RATE, SAMPLE_RATE // 10
# Languages written without spaces between words.
_UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
_SECONDS_NOTE = "seconds"
_FIELDS = (
    pa.field("transcript", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("audio_seconds", pa.float64()),
)


class Transcribe(MediaSection):
    """`task: {kind: transcribe}`: the words spoken in an audio file."""

    kind: Literal["transcribe"]
    audio: str = Field(min_length=1, description="Column with the bytes or path of an audio file.")
    language: str = Field(pattern=r"^[a-z]{2,3}$", description="Spoken language: en, fr, …")
    max_seconds: float = Field(
        default=600.0, gt=0, description="Rows with longer audio are rejected."
    )


def _build(step: TaskStep[Transcribe], context: TaskContext) -> "Transcriber":
    for library in ("soundfile", "soxr"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install 'tokenmill[audio]'")
    model = context.config.get("model_type")
    if model != "whisper":
        raise UserError(
            f"{step.model_key or 'model'}: transcribe needs a Whisper model; this one is {model}"
        )
    tokens = ("<|startoftranscript|>", f"<|{step.section.language}|>", "<|transcribe|>")
    special = context.tokenizer.special_tokens
    for token in tokens:
        # The fake model has no special tokens.
        if special and token not in special:
            raise UserError(
                f"{step.key_of('language')}: the model has no token {token}; "
                "choose a language that it supports"
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
    media_column=lambda section: section.audio,
    starter=Starter(
        "transcripts",
        """\
# Whisper's decoder holds 448 tokens; 4 of them start each window.
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
    """Sends one request per window of a row's audio, all in one round."""

    def __init__(
        self, step: TaskStep[Transcribe], context: TaskContext, prompt: Sequence[int]
    ) -> None:
        self._section = step.section
        self._storage = context.storage
        self._prompt = list(prompt)
        self._samplings = step.samplings
        self._separator = "" if step.section.language in _UNSPACED else " "

    def prepare(self, rows: Sequence[Row]) -> list[PreparedRow | Reject]:
        column = self._section.audio
        values = [row[column] for row in rows]
        read = read_media(values, column, self._section.media, self._storage, self._windows)
        return [media if isinstance(media, Reject) else self._prepared(media) for media in read]

    def answer(self, prepared: PreparedRow) -> Dialogue[Cells | Reject]:
        answers = yield from gather(
            [
                ask_until_valid(self._prompt, self._samplings, self._check, window)
                for window in prepared.media
            ]
        )
        texts = []
        reasons = []
        for answer in answers:
            if isinstance(answer, Reject):
                return answer
            texts.append(answer.text.strip())
            reasons.append(answer.finish_reason)
        return {
            "transcript": self._separator.join(filter(None, texts)),
            "finish_reason": joined_reason(reasons),
            "audio_seconds": prepared.notes[_SECONDS_NOTE],
        }

    def _windows(self, data: bytes) -> list[Media]:
        samples = decode_audio(data, self._section.max_seconds)
        return [Media("audio", window.astype("<i2").tobytes()) for window in audio_windows(samples)]

    def _prepared(self, media: Sequence[Media]) -> PreparedRow:
        num_samples = sum(len(window.data) for window in media) // 2
        return PreparedRow([self._prompt], {_SECONDS_NOTE: num_samples / SAMPLE_RATE}, media)

    def _check(self, answer: Completion) -> Completion | Reject:
        cut = cut_off(answer) if self._section.complete else None
        return answer if cut is None else cut


def audio_windows(samples: npt.NDArray[np.int16]) -> Iterator[npt.NDArray[np.int16]]:
    """Cut audio into windows of at most 30 s, each at the quietest point of its last 5 s."""
    while len(samples) > _WINDOW:
        frames = samples[_WINDOW - _CUT_RANGE : _WINDOW].astype(np.float32).reshape(-1, _FRAME)
        quietest = int(np.square(frames).sum(axis=1).argmin())
        cut = _WINDOW - _CUT_RANGE + quietest * _FRAME + _FRAME // 2
        yield samples[:cut]
        samples = samples[cut:]
    yield samples
