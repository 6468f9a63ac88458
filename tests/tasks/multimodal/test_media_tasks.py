"""Describe and transcribe on the fake engine: what they ask, their cells, their rejects."""

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

SEEING = {"vision_config": {}}
HEARING = {"model_type": "whisper"}


def describe(**keys: Any) -> Any:
    task = {"kind": "describe", "image": "image", **keys.pop("task", {})}
    return one_step(task=task, **{"prompt": {"user": "What is it?"}, **keys})


def transcribe(**keys: Any) -> Any:
    task = {"kind": "transcribe", "audio": "audio", "language": "en", **keys.pop("task", {})}
    return one_step(task=task, **{"prompt": None, **keys})


def prepared(step: Any, rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> Any:
    return step.build(TaskContext(FakeTokenizer(), 8192, config)).prepare(rows)


def asked(step: Any, row: dict[str, Any], *answers: Answer) -> Asked:
    """The row's dialogue, answered so; the last answer is that of all others."""
    given = answers or (completion(),)
    return Asked(step, row, lambda _, at: given[min(at, len(given) - 1)])


def test_a_description_is_asked_for_with_its_image() -> None:
    """One request: the prompt with the image's place before its text, and the image."""
    row = asked(describe(), {"image": png(4, 3)}, completion("a red square"))
    (request,) = row.requests
    assert FakeTokenizer().decode(request.prompt_token_ids) == "<|user|>\n<|image|>What is it?\n"
    assert request.media is not None
    assert engine_input(request.media).size == (4, 3)
    assert row.cells == {"description": "a red square", "finish_reason": "stop"}


def test_an_image_is_scaled_to_the_sections_max_pixels() -> None:
    """Before it crosses to the engine."""
    row = asked(describe(task={"max_pixels": 6}), {"image": png(40, 60)})
    assert row.requests[0].media is not None
    assert engine_input(row.requests[0].media).size == (2, 3)


def test_the_stop_that_ended_a_description_has_a_column() -> None:
    """With stops in the sampling, as in generate."""
    step = describe(sampling={"max_tokens": 4, "stop": ["."]})
    assert asked(step, {"image": png()}, completion(stop_reason=".")).cells["stop_reason"] == "."
    assert asked(step, {"image": png()}, completion(stop_reason=2)).cells["stop_reason"] is None


def test_rows_without_sound_media_are_rejects_before_the_engine() -> None:
    """Null, broken, or a path that leads nowhere; the others go on."""
    values = [None, b"broken", "a.png", png()]
    entries = prepared(describe(), [{"image": value} for value in values], SEEING)
    assert [e.reject_class if isinstance(e, Reject) else None for e in entries] == [
        RejectClass.EMPTY_INPUT,
        RejectClass.BAD_MEDIA,
        RejectClass.BAD_MEDIA,
        None,
    ]


def test_a_column_that_the_prompt_needs_must_not_be_empty() -> None:
    """The prompt's own rules hold beside the image's."""
    step = describe(prompt={"user": "{{ question }}"})
    (entry,) = prepared(step, [{"image": png(), "question": " "}], SEEING)
    assert entry.reject_class is RejectClass.EMPTY_INPUT
    assert dict(step.columns) == {"image": "task.image", "question": "prompt.user"}


def test_a_description_that_is_cut_off_is_asked_for_again() -> None:
    """With `complete`, and with the same image."""
    retries = {"times": 1, "sampling": {"max_tokens": 64}}
    step = describe(task={"complete": True, "retries": retries})
    row = asked(step, {"image": png()}, completion(finish_reason="length"), completion("whole"))
    assert row.cells["description"] == "whole"
    assert row.sampled("max_tokens") == [16, 64]
    assert row.requests[0].media == row.requests[1].media is not None


def test_long_audio_is_heard_in_windows_and_joined() -> None:
    """Each of at most 30 s, with the same marks before its answer; texts are joined by a space."""
    data = wav(np.random.default_rng(0).integers(-9, 9, 16_000 * 70))
    row = asked(transcribe(), {"audio": data}, completion(" one "), completion(""), completion("2"))
    marks = "<|startoftranscript|><|en|><|transcribe|><|notimestamps|>"
    texts = {FakeTokenizer().decode(each.prompt_token_ids) for each in row.requests}
    assert texts == {marks}
    assert len(row.requests) == 3
    heard = [engine_input(each.media) for each in row.requests if each.media is not None]
    assert max(map(len, heard)) <= 16_000 * 30
    assert sum(map(len, heard)) == 16_000 * 70
    assert row.cells == {"transcript": "one 2", "finish_reason": "stop", "audio_seconds": 70.0}


def test_languages_without_spaces_are_joined_without() -> None:
    """Japanese, say."""
    data = wav(np.zeros(16_000 * 40))
    row = asked(transcribe(task={"language": "ja"}), {"audio": data}, completion("あ"))
    assert row.cells["transcript"] == "ああ"


def test_a_window_is_cut_where_it_is_quietest() -> None:
    """A word at the seam is not cut in two; all samples are in one of the windows, in order."""
    samples = np.full(16_000 * 31, 1000, np.int16)
    samples[16_000 * 27 : 16_000 * 27 + 3200] = 0
    first, second = audio_windows(samples)
    assert 16_000 * 27 <= len(first) <= 16_000 * 27 + 3200
    assert np.concatenate([first, second]).tolist() == samples.tolist()


def test_a_window_that_fails_rejects_the_row() -> None:
    """A transcript with a hole would pass for a whole one."""
    refused = Reject(RejectClass.ENGINE_ERROR, "refused", attempts=1)
    data = wav(np.zeros(16_000 * 40))
    assert asked(transcribe(), {"audio": data}, completion(), refused).reject == refused


def test_a_window_that_is_cut_off_says_so() -> None:
    """`length` where any window's answer was cut; with `complete` the row is a reject."""
    data = wav(np.zeros(16_000 * 40))
    answers = [completion(finish_reason="length"), completion()]
    cells = asked(transcribe(), {"audio": data}, *answers).cells
    assert cells["finish_reason"] == "length"
    step = transcribe(task={"complete": True})
    reject = asked(step, {"audio": data}, *answers).reject
    assert reject.reject_class is RejectClass.TRUNCATED_ANSWER


@pytest.mark.parametrize("make", [describe, transcribe])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"length": {"policy": "truncate", "column": "text"}}, "takes its media whole"),
        ({"task": {"retries": {"times": 1}}, "sampling": {"max_tokens": 9}}, "complete: true"),
        ({"task": {"media": {"hosts": ["https://a.example"]}}}, "hosts"),
        ({"task": {"max_bytes": 1}}, "max_bytes"),
        ({"sampling": None}, "sampling is missing"),
    ],
)
def test_what_cannot_work_is_refused_with_the_job(
    make: Any, keys: dict[str, Any], message: str
) -> None:
    """Policies that cut texts, retries of answers that do, hosts that are URLs, unknown keys."""
    with pytest.raises(ValidationError, match=message):
        make(**keys)


def test_models_that_do_not_see_or_hear_are_refused() -> None:
    """By their config.json, before the run reads a row."""
    with pytest.raises(UserError, match=r"model: its config\.json tells of no images"):
        describe().build(TaskContext(FakeTokenizer(), 8192, {"model_type": "llama"}))
    with pytest.raises(UserError, match="transcribe is for Whisper models; this one is llama"):
        transcribe().build(TaskContext(FakeTokenizer(), 8192, {"model_type": "llama"}))


def test_a_language_that_the_model_lacks_is_refused() -> None:
    """A mark that is no token would be read aloud, as text."""

    class Whispering(FakeTokenizer):
        special_tokens = frozenset({"<|startoftranscript|>", "<|en|>", "<|transcribe|>"})

    assert transcribe().build(TaskContext(Whispering(), 8192, HEARING))
    with pytest.raises(UserError, match=r"task\.language: the model has no token <\|xx\|>"):
        transcribe(task={"language": "xx"}).build(TaskContext(Whispering(), 8192, HEARING))


def run(job: Job, rows: pa.Table, storage: Store | None) -> list[Any]:
    """The rows' results on the fake engine, by way of the rendered table."""
    tasks = load_tasks(job, storage)
    numbered = rows.append_column(ROW_COLUMN, pa.array(range(rows.num_rows), pa.int64()))
    scheduler = Scheduler(load_engine(job, EngineResources(0, 1)), tasks, deduplicate=True)
    unit = scheduler.submit(Renderer(tasks, []).render(numbered))
    while scheduler.has_work:
        scheduler.step()
    return [answer.result for answer in unit.answers if answer is not None]


def test_rows_with_one_question_have_an_answer_for_each_image() -> None:
    """Greedy answers are reused for the same image alone."""
    job = make_job(
        prompt={"user": "What is it?"},
        sampling={"temperature": 0, "max_tokens": 16},
        task={"kind": "describe", "image": "image"},
    )
    images = [png(color="red"), png(color="blue"), png(color="red")]
    red, blue, again = run(job, pa.table({"image": images}), None)
    assert red.cells == again.cells != blue.cells


def test_media_cross_to_the_engine_beside_other_tasks(tmp_path: Any) -> None:
    """Several tasks in a job: each request has its own task's media; another's text is in reach."""
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
    # Alike but for their audio.
    assert one.cells["what_description"] == three.cells["what_description"]
    assert one.cells["heard_transcript"] != three.cells["heard_transcript"]
