"""Describe and transcribe on the fake engine: their requests, cells and rejects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.asking import Asked, completion, make_job, one_step
from helpers.media_files import png, wav
from pydantic import ValidationError
from tokenmill.engine.base import EngineResources
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.prompt.media.decode import engine_input
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer
from tokenmill.row_columns import ROW_COLUMN
from tokenmill.scheduling.scheduler import Scheduler
from tokenmill.stages.load import load_engine, load_tasks
from tokenmill.stages.render import Renderer
from tokenmill.storage.base import Store
from tokenmill.storage.open import open_store
from tokenmill.tasks.multimodal.transcribe import audio_windows
from tokenmill.tasks.task import TaskContext

VISION_CONFIG = {"vision_config": {}}
WHISPER_CONFIG = {"model_type": "whisper"}


def describe(**keys: Any) -> Any:
    task = {"kind": "describe", "image": "image", **keys.pop("task", {})}
    return one_step(task=task, **{"prompt": {"user": "What is it?"}, **keys})


def transcribe(**keys: Any) -> Any:
    task = {"kind": "transcribe", "audio": "audio", "language": "en", **keys.pop("task", {})}
    return one_step(task=task, **{"prompt": None, **keys})


def prepared(step: Any, rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> Any:
    return step.build(TaskContext(FakeTokenizer(), 8192, config)).prepare(rows)


def asked(step: Any, row: dict[str, Any], *answers: Answer) -> Asked:
    """The row's dialogue with these answers; the last one answers all further requests."""
    scripted = answers or (completion(),)
    return Asked(step, row, lambda _, index: scripted[min(index, len(scripted) - 1)])


def test_a_description_is_requested_with_its_image() -> None:
    """A row is one request: the image and a prompt with the image token before its text."""
    row = asked(describe(), {"image": png(4, 3)}, completion("a red square"))
    (request,) = row.requests
    assert FakeTokenizer().decode(request.prompt_token_ids) == "<|user|>\n<|image|>What is it?\n"
    assert request.media is not None
    assert engine_input(request.media).size == (4, 3)
    assert row.cells == {"description": "a red square", "finish_reason": "stop"}


def test_an_image_is_scaled_to_max_pixels() -> None:
    """Images are scaled down before they are sent to the engine."""
    row = asked(describe(task={"max_pixels": 6}), {"image": png(40, 60)})
    assert row.requests[0].media is not None
    assert engine_input(row.requests[0].media).size == (2, 3)


def test_a_description_has_a_stop_reason() -> None:
    """If the sampling has stops, `stop_reason` is a column, as in generate."""
    step = describe(sampling={"max_tokens": 4, "stop": ["."]})
    assert asked(step, {"image": png()}, completion(stop_reason=".")).cells["stop_reason"] == "."
    assert asked(step, {"image": png()}, completion(stop_reason=2)).cells["stop_reason"] is None


def test_rows_without_valid_media_are_rejected_before_the_engine() -> None:
    """Nulls, corrupt images and missing files are rejected; other rows are prepared."""
    values = [None, b"broken", "a.png", png()]
    entries = prepared(describe(), [{"image": value} for value in values], VISION_CONFIG)
    assert [entry.reject_class if isinstance(entry, Reject) else None for entry in entries] == [
        RejectClass.EMPTY_INPUT,
        RejectClass.BAD_MEDIA,
        RejectClass.BAD_MEDIA,
        None,
    ]


def test_a_blank_prompt_column_rejects_the_row() -> None:
    """The prompt's columns must not be empty, even if the row has an image."""
    step = describe(prompt={"user": "{{ question }}"})
    (entry,) = prepared(step, [{"image": png(), "question": " "}], VISION_CONFIG)
    assert entry.reject_class is RejectClass.EMPTY_INPUT
    assert dict(step.columns) == {"image": "task.image", "question": "prompt.user"}


def test_a_description_that_is_cut_off_is_requested_again() -> None:
    """With `complete`, a retry sends the same image."""
    retries = {"times": 1, "sampling": {"max_tokens": 64}}
    step = describe(task={"complete": True, "retries": retries})
    row = asked(step, {"image": png()}, completion(finish_reason="length"), completion("whole"))
    assert row.cells["description"] == "whole"
    assert row.sampled("max_tokens") == [16, 64]
    assert row.requests[0].media == row.requests[1].media is not None


def test_long_audio_is_read_in_windows_and_joined() -> None:
    """Windows have at most 30 s and the same start tokens; their texts are joined by a space."""
    data = wav(np.random.default_rng(0).integers(-9, 9, 16_000 * 70))
    row = asked(transcribe(), {"audio": data}, completion(" one "), completion(""), completion("2"))
    start = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    texts = {FakeTokenizer().decode(request.prompt_token_ids) for request in row.requests}
    assert texts == {start}
    assert len(row.requests) == 3
    windows = [engine_input(request.media) for request in row.requests if request.media is not None]
    assert max(map(len, windows)) <= 16_000 * 30
    assert sum(map(len, windows)) == 16_000 * 70
    assert row.cells == {"transcript": "one 2", "finish_reason": "stop", "audio_seconds": 70.0}


def test_languages_without_spaces_are_joined_without_spaces() -> None:
    """Japanese windows are concatenated."""
    data = wav(np.zeros(16_000 * 40))
    row = asked(transcribe(task={"language": "ja"}), {"audio": data}, completion("あ"))
    assert row.cells["transcript"] == "ああ"


def test_audio_is_cut_where_it_is_quietest() -> None:
    """The cut is in a pause, and the windows contain all samples in order."""
    samples = np.full(16_000 * 31, 1000, np.int16)
    samples[16_000 * 27 : 16_000 * 27 + 3200] = 0
    first, second = audio_windows(samples)
    assert 16_000 * 27 <= len(first) <= 16_000 * 27 + 3200
    assert np.concatenate([first, second]).tolist() == samples.tolist()


def test_a_failed_window_rejects_its_row() -> None:
    """A transcript with a gap would pass for a complete one."""
    failure = Reject(RejectClass.ENGINE_ERROR, "failed", attempts=1)
    data = wav(np.zeros(16_000 * 40))
    assert asked(transcribe(), {"audio": data}, completion(), failure).reject == failure


@pytest.mark.parametrize("reason", ["length", "repetition"])
def test_a_window_that_is_cut_off_shows_in_the_row(reason: str) -> None:
    """The finish reason is that of a window that was cut; with `complete`, the row is rejected."""
    data = wav(np.zeros(16_000 * 40))
    answers = [completion(finish_reason=reason), completion()]
    cells = asked(transcribe(), {"audio": data}, *answers).cells
    assert cells["finish_reason"] == reason
    step = transcribe(task={"complete": True})
    reject = asked(step, {"audio": data}, *answers).reject
    assert reject.reject_class is RejectClass.TRUNCATED_ANSWER


@pytest.mark.parametrize("make", [describe, transcribe])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"length": {"policy": "truncate", "column": "text"}}, "cannot truncate media"),
        ({"task": {"retries": {"times": 1}}, "sampling": {"max_tokens": 9}}, "complete: true"),
        ({"task": {"media": {"hosts": ["https://a.example"]}}}, "hosts"),
        ({"task": {"max_bytes": 1}}, "max_bytes"),
        ({"sampling": None}, "sampling is missing"),
    ],
)
def test_impossible_media_jobs_are_errors(make: Any, keys: dict[str, Any], message: str) -> None:
    """Covers text length policies, useless retries, URLs as hosts, unknown and missing keys."""
    with pytest.raises(ValidationError, match=message):
        make(**keys)


def test_models_without_the_media_are_an_error() -> None:
    """The model's config.json is checked before the run reads a row."""
    with pytest.raises(UserError, match=r"model: config\.json has no vision settings"):
        describe().build(TaskContext(FakeTokenizer(), 8192, {"model_type": "llama"}))
    with pytest.raises(UserError, match="transcribe needs a Whisper model; this one is llama"):
        transcribe().build(TaskContext(FakeTokenizer(), 8192, {"model_type": "llama"}))


def test_a_language_that_the_model_lacks_is_an_error() -> None:
    """A language marker that is not a token would be encoded as text."""

    class WhisperTokenizer(FakeTokenizer):
        special_tokens = frozenset({"<|startoftranscript|>", "<|en|>", "<|transcribe|>"})

    assert transcribe().build(TaskContext(WhisperTokenizer(), 8192, WHISPER_CONFIG))
    with pytest.raises(UserError, match=r"task\.language: the model has no token <\|xx\|>"):
        transcribe(task={"language": "xx"}).build(
            TaskContext(WhisperTokenizer(), 8192, WHISPER_CONFIG)
        )


def run(job: Job, rows: pa.Table, storage: Store | None) -> list[Any]:
    """The results of rendered rows on the fake engine."""
    tasks = load_tasks(job, storage)
    numbered = rows.append_column(ROW_COLUMN, pa.array(range(rows.num_rows), pa.int64()))
    scheduler = Scheduler(load_engine(job, EngineResources(0, 1)), tasks, deduplicate=True)
    unit = scheduler.submit(Renderer(tasks, []).render(numbered))
    while scheduler.has_work:
        scheduler.step()
    return [answer.result for answer in unit.answers if answer is not None]


def test_the_same_question_has_an_answer_per_image() -> None:
    """Deduplication reuses a greedy answer only for the same image."""
    job = make_job(
        prompt={"user": "What is it?"},
        sampling={"temperature": 0, "max_tokens": 16},
        task={"kind": "describe", "image": "image"},
    )
    images = [png(color="red"), png(color="blue"), png(color="red")]
    red, blue, again = run(job, pa.table({"image": images}), None)
    assert red.cells == again.cells != blue.cells


def test_media_reach_the_engine_among_other_tasks(tmp_path: Any) -> None:
    """Each task's requests have its own media, and a later prompt can use an earlier answer."""
    tasks = [
        {"kind": "describe", "name": "what", "image": "image", "prompt": {"user": "What?"}},
        {"kind": "generate", "name": "plain", "prompt": {"user": "{{ id }}"}},
        {"kind": "transcribe", "name": "heard", "audio": "audio", "language": "en"},
        {
            "kind": "describe",
            "name": "again",
            "image": "image",
            "prompt": {"user": "Is it {{ what_description }}?"},
        },
    ]
    (tmp_path / "a.png").write_bytes(png())
    job = make_job(prompt=None, tasks=tasks)
    rows = pa.table(
        {
            "id": [1, 2, 3],
            "image": ["a.png", "../a.png", "a.png"],
            "audio": [wav(np.ones(9)), wav(np.ones(9)), wav(np.zeros(9))],
        }
    )
    one, two, three = run(job, rows, open_store(str(tmp_path)))
    assert one.reject is None
    assert {*one.cells} >= {"what_description", "plain_generated_text", "heard_transcript"}
    assert one.cells["again_description"]
    assert two.reject is not None
    assert two.reject.reject_class is RejectClass.BAD_MEDIA
    assert two.cells["plain_generated_text"]
    # The rows differ only in their audio.
    assert one.cells["what_description"] == three.cells["what_description"]
    assert one.cells["heard_transcript"] != three.cells["heard_transcript"]
