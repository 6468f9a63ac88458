"""The translate task: the requests for a row, and the result of their answers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.errors import UserError
from tokenmill.job.job import Job
from tokenmill.job.loader import load_job
from tokenmill.prompt.fake_tokenizer import FakeTokenizer
from tokenmill.reject import Reject, RejectClass
from tokenmill.request import Answer, Completion, Request, Sampling
from tokenmill.tasks.row_tasks import input_columns
from tokenmill.tasks.task import Cells, PreparedRow, TaskContext
from tokenmill.tasks.translation.translator import Translator

MODEL: dict[str, Any] = {
    "name": "french",
    "input": {"path": "corpus/*.parquet"},
    "model": {"source": "fake"},
    "sampling": {"temperature": 0, "max_tokens": 200},
    "output": {"path": "out/french"},
}
SENTENCE = "The packet left our warehouse on Monday with 12,500 other packets."
PHRASE = "Le colis a quitté notre entrepôt lundi avec 12 500 autres colis."

Reply = Callable[[str, int], str | Answer]


def job(task: Mapping[str, Any] | None = None, **changes: Any) -> Job:
    """A translation job. `task` sets keys of its task, and `changes` keys of the job."""
    keys = {"kind": "translate", "from": "en", "to": "fr", "column": "text", **(task or {})}
    return Job.model_validate({**MODEL, "task": keys, **changes})


def translator(
    task: Mapping[str, Any] | None = None, max_model_len: int = 2048, **changes: Any
) -> Translator:
    (step,) = job(task, **changes).steps
    built = step.build(TaskContext(FakeTokenizer(), max_model_len))
    assert isinstance(built, Translator)
    return built


def text_of(request: Request) -> str:
    """The text of the prompt, which ends with the text to translate."""
    data = b"".join(token.to_bytes(3) for token in request.prompt_token_ids)
    return data.rstrip(b"\xff").decode()


def source_of(request: Request) -> str:
    return text_of(request).rpartition("\n\n")[2].strip()


def completion(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(0, text, finish_reason, 9, 9, None)


def answered(task: Translator, row: Mapping[str, Any], reply: Reply) -> Cells | Reject:
    """A row's result. `reply` maps a segment's text and the round, from 1, to the answer."""
    (entry,) = task.prepare([row])
    if isinstance(entry, Reject):
        return entry
    # In a run, the prepared row travels to another process as JSON.
    prompts = [list(prompt) for prompt in entry.prompts]
    dialogue = task.answer(PreparedRow(prompts, json.loads(json.dumps(entry.notes))))
    answers: list[Answer] | None = None
    rounds = 0
    while True:
        try:
            requests = dialogue.send(answers)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value
        rounds += 1
        replies = [reply(source_of(request), rounds) for request in requests]
        answers = [completion(text) if isinstance(text, str) else text for text in replies]


def cells(*arguments: Any) -> Cells:
    result = answered(*arguments)
    assert not isinstance(result, Reject), result
    return result


def asked(task: Translator, row: Mapping[str, Any]) -> list[str]:
    """The texts of the row's prompts."""
    (entry,) = task.prepare([row])
    assert isinstance(entry, PreparedRow)
    return [text_of(Request(prompt, Sampling({"max_tokens": 1}))) for prompt in entry.prompts]


def test_a_good_translation_takes_one_request() -> None:
    """The row gets the translation, its origin, and the result of each check."""
    found = dict(cells(translator(), {"text": SENTENCE}, lambda *_: f" {PHRASE}\n"))
    assert found.pop("language_score") > 0.5
    assert found.pop("length_ratio") == pytest.approx(len(PHRASE) / len(SENTENCE))
    assert found == {
        "translation": PHRASE,
        "translation_origin": "model",
        "detected_language": "fr",
        "numbers_kept": True,
        "placeholders_kept": True,
        "repetition": 0.0,
        "checks_passed": True,
        "failed_checks": [],
        "attempts": 1,
    }


def test_the_cells_match_the_fields() -> None:
    """Each field of the task has a cell, in the same order, and there are no others."""
    names = [field.name for field in job().steps[0].fields]
    assert list(cells(translator(), {"text": SENTENCE}, lambda *_: PHRASE)) == names


def test_a_translation_that_fails_a_check_is_tried_again() -> None:
    """If the second translation is better, the row gets it."""
    rounds = []

    def reply(_: str, number: int) -> str:
        rounds.append(number)
        return [SENTENCE, PHRASE][number - 1]

    found = cells(translator(), {"text": SENTENCE}, reply)
    assert (found["translation"], found["checks_passed"], found["attempts"]) == (PHRASE, True, 2)
    assert rounds == [1, 2]


def test_the_second_try_has_another_seed_and_a_higher_temperature() -> None:
    """Greedy decoding would repeat the answer. Other sampling parameters are kept."""
    task = translator(sampling={"temperature": 0, "max_tokens": 50, "seed": 7, "top_p": 0.5})
    (entry,) = task.prepare([{"text": SENTENCE}])
    assert isinstance(entry, PreparedRow)
    dialogue = task.answer(entry)
    first = next(dialogue)
    second = dialogue.send([completion(SENTENCE)])
    assert [request.prompt_token_ids for request in first] == [
        request.prompt_token_ids for request in second
    ]
    assert second[0].params.values == {
        "temperature": 0.7, "max_tokens": 50, "seed": 8, "top_p": 0.5,
    }  # fmt: skip


def test_the_job_lists_the_sampling_of_both_tries() -> None:
    """So invalid parameters are found before an engine starts."""
    assert len(job().params) == 2
    assert len(job({"second_try": False}).params) == 1


@pytest.mark.parametrize(
    ("first", "second", "kept", "failed"),
    [
        ("", SENTENCE, SENTENCE, ["language"]),
        (SENTENCE, "", SENTENCE, ["language"]),
        (SENTENCE, SENTENCE.upper(), SENTENCE, ["language"]),
        (PHRASE.replace("500", "501"), completion(PHRASE, "length"), None, ["numbers"]),
        (completion(PHRASE, "length"), Reject(RejectClass.ENGINE_ERROR, "x", 1), PHRASE, ["cut"]),
    ],
    ids=[
        "second is better",
        "first is better",
        "tie",
        "tie of different checks",
        "no second answer",
    ],
)
def test_the_better_of_two_failed_translations_is_kept(
    first: str | Answer, second: str | Answer, kept: str | None, failed: list[str]
) -> None:
    """The row lists the checks that its translation fails. The first translation wins a tie."""
    found = cells(translator(), {"text": SENTENCE}, lambda _, number: [first, second][number - 1])
    assert found["translation"] == (first if kept is None else kept)
    assert (found["checks_passed"], found["failed_checks"]) == (False, failed)
    assert found["attempts"] == 2


def test_without_a_second_try_the_first_translation_is_kept() -> None:
    """With `second_try: false` a failed row takes one request and is marked as failed."""
    found = cells(translator({"second_try": False}), {"text": SENTENCE}, lambda *_: SENTENCE)
    assert (found["translation"], found["checks_passed"], found["attempts"]) == (SENTENCE, False, 1)


def test_failed_rows_can_be_rejected() -> None:
    """With `reject_failed: true` the message has the failed checks and the translation."""
    result = answered(translator({"reject_failed": True}), {"text": SENTENCE}, lambda *_: SENTENCE)
    assert isinstance(result, Reject)
    assert (result.reject_class, result.attempts) == (RejectClass.CHECK_FAILED, 2)
    assert result.message == f"failed checks: language; translation: {SENTENCE}"


def test_a_segment_without_an_answer_rejects_the_row() -> None:
    """No partial translation is written."""
    reject = Reject(RejectClass.ENGINE_ERROR, "no", 1)
    row = {"text": f"{SENTENCE}\n\n{SENTENCE} Twice."}
    reply = lambda text, _: reject if text.endswith("Twice.") else PHRASE  # noqa: E731
    assert answered(translator(), row, reply) == reject


def test_paragraphs_are_translated_in_one_round() -> None:
    """Each is one request. The text between them is not sent, and is kept exactly."""
    text = f"\n  {SENTENCE}\n \t\n\n\t{SENTENCE} Twice.\n\n***\n\n12.5\n"
    calls = []

    def reply(source: str, number: int) -> str:
        calls.append((source, number))
        return f"{PHRASE}\n\n Deux fois." if source.endswith("Twice.") else PHRASE

    found = cells(translator(), {"text": text}, reply)
    assert calls == [(SENTENCE, 1), (f"{SENTENCE} Twice.", 1)]
    assert found["translation"] == (f"\n  {PHRASE}\n \t\n\n\t{PHRASE}\nDeux fois.\n\n***\n\n12.5\n")


def test_only_paragraphs_that_fail_are_tried_again() -> None:
    """Paragraphs that pass their checks are not sent a second time."""
    text = f"{SENTENCE}\n\n{SENTENCE} Twice."
    calls = []

    def reply(source: str, number: int) -> str:
        calls.append((source, number))
        return SENTENCE if source.endswith("Twice.") and number == 1 else PHRASE

    found = cells(translator(), {"text": text}, reply)
    assert calls[2:] == [(f"{SENTENCE} Twice.", 2)]
    assert (found["translation"], found["checks_passed"]) == (f"{PHRASE}\n\n{PHRASE}", True)


def test_if_only_the_whole_text_fails_all_segments_are_tried_again() -> None:
    """The language of each short title is uncertain, but together they are English."""
    lines = ["Help with login", "Late delivery", "Lost password", "Opening hours"]
    french = [
        "Aide de connexion",
        "Livraison en retard",
        "Mot de passe perdu",
        "Heures d'ouverture",
    ]
    calls = []

    def reply(source: str, number: int) -> str:
        calls.append(number)
        return source if number == 1 else french[lines.index(source)]

    found = cells(translator({"from": None}), {"text": "\n\n".join(lines)}, reply)
    assert calls == [1] * 4 + [2] * 4
    assert (found["translation"], found["checks_passed"]) == ("\n\n".join(french), True)


def test_protected_spans_are_not_sent() -> None:
    """Code, URLs, placeholders and markup are unchanged in the translation."""
    text = (
        "Dear {name}, run `make x` or see <b>https://x.org/a</b>.\n\n"
        "```\nnot\n\nthis\n```\n\nBye ⟦1⟧!"
    )
    prompts = "\n".join(asked(translator(), {"text": text}))
    assert not any(span in prompts for span in ("{name}", "make", "x.org", "<b>", "not\n"))
    replies = {
        "Dear ⟦1⟧, run ⟦2⟧ or see ⟦3⟧.": "Cher ⟦1⟧, voyez ⟦3⟧ ou lancez ⟦ 2 ⟧.",
        "Bye ⟦5⟧!": "Au revoir ⟦5⟧ !",
    }
    found = cells(translator(), {"text": text}, lambda source, _: replies[source])
    assert found["translation"] == (
        "Cher {name}, voyez <b>https://x.org/a</b> ou lancez `make x`.\n\n"
        "```\nnot\n\nthis\n```\n\nAu revoir ⟦1⟧ !"
    )
    assert found["placeholders_kept"] is True


def test_a_lost_span_fails_a_check() -> None:
    """The translation is fine otherwise, and `placeholders_kept` is false."""
    found = cells(translator(), {"text": f"{SENTENCE} See {{url}}."}, lambda *_: PHRASE)
    assert (found["placeholders_kept"], found["failed_checks"]) == (False, ["placeholders"])


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from("aé. \n⟦1⟧`{x}<b>"))
    | st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(1, 40),
)
def test_a_model_that_repeats_its_source_returns_the_text(text: str, part_tokens: int) -> None:
    """Masking, splitting, joining and restoring lose nothing, whatever the text."""
    task = translator({"part_tokens": part_tokens, "second_try": False})
    (entry,) = task.prepare([{"text": text}])
    if isinstance(entry, Reject):
        assert not text.strip()
        return
    sources = [source for _, source in entry.notes.get("segments", [])]
    answers = iter([source for source in sources if any(map(str.isalpha, source))])
    found = cells(task, {"text": text}, lambda *_: next(answers))
    assert found["translation"] == text


@pytest.mark.parametrize(
    ("row", "reject_class", "reason"),
    [
        ({"text": None}, RejectClass.EMPTY_INPUT, "the column text is null"),
        ({"text": " \n"}, RejectClass.EMPTY_INPUT, "the column text is empty"),
        ({"text": 5}, RejectClass.BAD_TEXT, "the column text holds int, not text"),
    ],
)
def test_a_row_without_text_is_rejected(
    row: Mapping[str, Any], reject_class: RejectClass, reason: str
) -> None:
    """The other rows are prepared."""
    first, second = translator().prepare([row, {"text": SENTENCE}])
    assert first == Reject(reject_class, reason)
    assert isinstance(second, PreparedRow)


@pytest.mark.parametrize(
    ("task", "row", "translation", "origin"),
    [
        ({"target": "text_fr"}, {"text": SENTENCE, "text_fr": PHRASE}, PHRASE, "target"),
        ({"target": "text_fr"}, {"text": None, "text_fr": PHRASE}, PHRASE, "target"),
        ({"from": {"column": "lang"}}, {"text": PHRASE, "lang": "fr"}, PHRASE, "source"),
        ({"from": {"column": "lang"}}, {"text": PHRASE, "lang": "fr-CA"}, PHRASE, "source"),
        ({}, {"text": "12:30 (+41)"}, "12:30 (+41)", "source"),
        ({}, {"text": "{name} `code`"}, "{name} `code`", "source"),
    ],
    ids=[
        "translated",
        "translated without source",
        "same language",
        "same base language",
        "numbers only",
        "spans only",
    ],
)
def test_rows_that_need_no_translation_are_not_sent(
    task: Mapping[str, Any], row: Mapping[str, Any], translation: str, origin: str
) -> None:
    """The origin says why. No check is run."""
    found = cells(translator(task), row, lambda *_: pytest.fail("it was sent"))
    assert found == {"translation": translation, "translation_origin": origin, "attempts": 0}


@pytest.mark.parametrize("missing", [None, "", " \n"])
def test_rows_without_a_target_text_are_translated(missing: str | None) -> None:
    """The target column may be null or blank."""
    row = {"text": SENTENCE, "text_fr": missing}
    found = cells(translator({"target": "text_fr"}), row, lambda *_: PHRASE)
    assert (found["translation"], found["translation_origin"]) == (PHRASE, "model")


def test_the_prompt_has_the_languages_the_terms_and_the_marks() -> None:
    """It includes only what applies: a known source language, used terms, and marks."""
    task = translator(
        {"from": {"column": "lang"}, "to": "pt-BR", "glossary": {"Package": "encomenda"}}
    )
    (plain,) = asked(task, {"text": "Hello there", "lang": None})
    (full,) = asked(task, {"text": "Your package {x}", "lang": "de"})
    assert "Translate the text below into Portuguese (pt-BR)." in plain
    assert "encomenda" not in plain and "⟦" not in plain
    assert "Translate the text below from German into Portuguese (pt-BR)." in full
    assert "\nPackage = encomenda\n\nYour package ⟦1⟧" in full
    assert "mark such as ⟦1⟧" in full


def test_a_custom_prompt_sees_the_segment_in_the_text_column() -> None:
    """It can also use the row's other columns and the task's variables."""
    prompt = {"system": "To {{ to_language }}: {{ title }}", "user": "{{ text }}"}
    task = translator(prompt=prompt)
    rows = {"text": "One thing.\n\nAnother.", "title": "Things"}
    assert asked(task, rows) == [
        "<|system|>\nTo French: Things\n<|user|>\nOne thing.\n",
        "<|system|>\nTo French: Things\n<|user|>\nAnother.\n",
    ]


def test_each_input_column_has_the_key_that_names_it() -> None:
    """The task reads the columns of its prompt, the languages and the existing translations."""
    made = job(
        {"from": {"column": "lang"}, "target": "text_fr"},
        prompt={"user": "{{ title }} {{ text }} {{ to_language }}"},
    )
    assert input_columns(made.steps) == {
        "title": "prompt.user", "text": "prompt.user", "lang": "task.from.column",
        "text_fr": "task.target",
    }  # fmt: skip


def test_the_column_may_have_any_name() -> None:
    """The default prompt also works for names that are not identifiers."""
    task = translator({"column": 'my "text"'})
    assert asked(task, {'my "text"': "Hello"})[0].endswith("\n\nHello\n")


def test_segments_fit_half_of_the_answer_and_the_context() -> None:
    """A translation may have twice the tokens of its source, and the prompt needs room too."""
    text = f"{SENTENCE} " * 40
    for max_tokens, max_model_len in ((200, 2048), (200, 300), (None, 2048), (None, 300)):
        task = translator(
            max_model_len=max_model_len, sampling={"temperature": 0, "max_tokens": max_tokens}
        )
        (entry,) = task.prepare([{"text": text}])
        assert isinstance(entry, PreparedRow)
        empty_prompt = len(FakeTokenizer().encode_texts([asked(task, {"text": "x"})[0]])[0])
        longest_prompt = max(map(len, entry.prompts))
        longest = longest_prompt - empty_prompt
        assert longest_prompt + (max_tokens or 2 * longest) <= max_model_len
        assert longest <= (max_tokens or 2 * max_model_len) / 2
        # Segments are not shorter than necessary either.
        assert longest >= min((max_tokens or 999) / 4, (max_model_len - empty_prompt) / 9)


def test_part_tokens_sets_the_longest_segment() -> None:
    """A job may ask for shorter segments than would fit."""
    row = {"text": f"{SENTENCE} {SENTENCE}"}
    assert len(asked(translator(), row)) == 1
    assert len(asked(translator({"part_tokens": 30}), row)) == 2


def test_a_row_whose_prompt_leaves_no_room_is_rejected() -> None:
    """A long title in the prompt rejects only its row."""
    task = translator(prompt={"user": "{{ title }} {{ text }}"}, max_model_len=300)
    long, short = task.prepare(
        [{"text": SENTENCE, "title": "x" * 400}, {"text": SENTENCE, "title": "x"}]
    )
    assert isinstance(long, Reject)
    assert long.reject_class == RejectClass.PROMPT_TOO_LONG
    assert isinstance(short, PreparedRow)


def test_an_answer_as_long_as_the_context_is_an_error() -> None:
    """No row could be translated, so the error is raised before an engine starts."""
    with pytest.raises(UserError, match=r"sampling\.max_tokens: 200 .*context of 210 tokens"):
        translator(max_model_len=210)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"to": "xx"}, "to: unknown language code xx"),
        ({"from": "xx"}, "from: unknown language code xx"),
        ({"from": "fr-CA"}, "from and to are the same language"),
        ({"from": {"colum": "lang"}}, "colum"),
        ({"protect": ["urls", "names"]}, "protect"),
        ({"length_ratio": [2, 1]}, "length_ratio: the minimum must be less"),
        ({"glossary": "no/such/file.yaml"}, "no/such/file.yaml: cannot read"),
        ({"part_tokens": 0}, "part_tokens"),
    ],
)
def test_an_invalid_section_is_an_invalid_job(task: Mapping[str, Any], reason: str) -> None:
    """The error names the key or the problem."""
    with pytest.raises(ValidationError, match=reason):
        job(task)


def test_a_prompt_must_use_the_text() -> None:
    """Otherwise all segments would have the same prompt."""
    with pytest.raises(UserError, match=r"prompt: no template uses text, the column to translate"):
        input_columns(job(prompt={"user": "{{ title }}"}).steps)


def test_the_terms_of_a_glossary_file_are_part_of_the_job(tmp_path: Path) -> None:
    """Editing the file changes the fingerprint, so an output cannot mix both."""
    path = tmp_path / "terms.csv"
    path.write_text("package,colis\n")
    first = job({"glossary": str(path)})
    path.write_text("package,paquet\n")
    assert first.fingerprint != job({"glossary": str(path)}).fingerprint
    assert first.fingerprint == job({"glossary": {"package": "colis"}}).fingerprint


def test_a_written_job_can_be_loaded(tmp_path: Path) -> None:
    """The key `from` is written as it is read."""
    path = tmp_path / "job.yaml"
    made = job({"from": {"column": "lang"}})
    path.write_text(made.to_yaml())
    assert load_job(path) == made


@pytest.mark.parametrize("key", ["form", "from_", "colum"])
def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path: Path, key: str) -> None:
    """The suggestions include `from`, although its field has another name."""
    path = tmp_path / "job.yaml"
    path.write_text(job().to_yaml() + "\n")
    nearest = "column" if key == "colum" else "from"
    with pytest.raises(UserError, match=f"task.{key}: unknown key; did you mean {nearest}"):
        load_job(path, [f"task.{key}=en"])


def test_prompts_share_a_prefix() -> None:
    """Segments without terms or marks have the same instruction, so vLLM can cache it."""
    task = translator()
    prompts: Sequence[str] = [
        *asked(task, {"text": "One.\n\nTwo."}), *asked(task, {"text": "Three."}),
    ]  # fmt: skip
    beginnings = {prompt.rpartition("\n\n")[0] for prompt in prompts}
    assert len(beginnings) == 1
