"""Labels: the forms in which a job may write them, and how they enter the prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.factories import job
from pydantic import ValidationError
from tokenmill.config.prompt import Prompt
from tokenmill.job.job import Job
from tokenmill.tasks.kind import TaskStep
from tokenmill.tasks.labels.choices import LISTING, Choice, labels_of
from tokenmill.tasks.labels.classify import Classify


def classify(choices: Any, **prompt: Any) -> Job:
    """A job that classifies by these labels."""
    task = {"kind": "classify", "choices": choices}
    data = {"task": task, "prompt": prompt or {"user": "{{ text }}"}, "sampling": None}
    return job(data)


def step_of(choices: Any, **prompt: Any) -> TaskStep[Classify]:
    (step,) = classify(choices, **prompt).steps
    return step


def error_of(choices: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        classify(choices)
    (error,) = raised.value.errors()
    return str(error["msg"])


def rendered(step: TaskStep[Any]) -> list[str]:
    """The contents of the prompt for a row whose `text` is T."""
    contents = step.templates["prompt"].render({"text": "T", "choices": "a column"})
    assert isinstance(contents, list)
    return contents


DESCRIBED = {"billing": "invoices and refunds", "news": None}
DESCRIBED_CHOICES = (Choice("billing", "invoices and refunds"), Choice("news"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("labels.yaml", yaml.safe_dump(DESCRIBED, sort_keys=False), DESCRIBED_CHOICES),
        ("labels.yml", "[b, a]", (Choice("b"), Choice("a"))),
        ("labels.json", json.dumps(DESCRIBED), DESCRIBED_CHOICES),
        (
            "labels.json",
            '[{"label": "a", "description": "d"}, "b"]',
            (Choice("a", "d"), Choice("b")),
        ),
        ("labels.txt", "a\n\n  two words \nb: c\n", ("a", "two words", "b: c")),
    ],
)
def test_labels_come_from_a_file(
    tmp_path: Path, name: str, text: str, expected: tuple[Any, ...]
) -> None:
    """A label file is read with the job, and the resolved job contains the labels."""
    path = tmp_path / name
    path.write_text(text)
    original = classify(str(path))
    path.unlink()
    reloaded = Job.model_validate_json(original.model_dump_json())
    assert reloaded.fingerprint == original.fingerprint
    (step,) = reloaded.steps
    choices = tuple(Choice(item) if isinstance(item, str) else item for item in expected)
    assert step.section.choices == choices


def test_all_forms_of_the_same_labels_are_the_same_job() -> None:
    """A list, a mapping and the resolved form of the same labels have one fingerprint."""
    forms = [["a", "b"], {"a": None, "b": None}, [{"label": "a"}, {"label": "b"}]]
    assert len({classify(form).fingerprint for form in forms}) == 1


def test_the_labels_and_their_order_are_part_of_the_fingerprint() -> None:
    """The prompt lists the labels in the job's order, so a different order is a different job."""
    forms: list[Any] = [["a", "b"], ["b", "a"], ["a", "c"], {"a": "first", "b": None}]
    assert len({classify(form).fingerprint for form in forms}) == len(forms)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([True, False], "the label True is not text; put quotes around it"),
        ([1, 2], "the label 1 is not text; put quotes around it"),
        ({True: "agrees"}, "the label True is not text"),
        (["a", "a"], "the label 'a' is duplicated"),
        (["a", " b"], "the label ' b' is empty, or has surrounding space or a line break"),
        (["a", ""], "the label '' is empty"),
        (["a", "b\nc"], "line break"),
        ([], "at least one label"),
        (["a"], "at least two labels"),
        (3, "give a list of labels, a mapping from label to description, or a file"),
        ("/nowhere/labels.txt", "cannot read the label file /nowhere/labels.txt (No such file"),
    ],
)
def test_invalid_labels_are_errors(choices: Any, message: str) -> None:
    """YAML booleans and numbers, duplicates, blanks and missing files are named in the error."""
    assert message in error_of(choices)


def test_an_invalid_label_file_is_an_error(tmp_path: Path) -> None:
    """The error names a file that cannot be parsed, or says which forms are allowed."""
    path = tmp_path / "labels.yaml"
    path.write_text("[a, b")
    assert str(path) in error_of(str(path))
    path.write_bytes(b"\xff\xfe")
    assert str(path) in error_of(str(path))
    path.write_text("3")
    assert "give a list of labels" in error_of(str(path))


@pytest.mark.parametrize(
    ("choices", "prompt", "last"),
    [
        (
            ["a", "b"],
            {"user": "{{ text }}"},
            "T\n\nAnswer with one of these labels and nothing else:\n- a\n- b",
        ),
        (
            DESCRIBED,
            {"user": "{{ text }} {{ choices }}"},
            "T - billing: invoices and refunds\n- news",
        ),
        (DESCRIBED, {"user": "{{ text }} {{ choices | join(', ') }}"}, "T billing, news"),
        (["news", "sports"], {"user": "News or sports? {{ text }}"}, "News or sports? T"),
        (["news", "sports"], {"system": "News or sports?", "user": "{{ text }}"}, "T"),
        (["a", "b"], {"text": "{{ text }}\nTopic:"}, "T\nTopic:"),
        (["a", "b"], {"user": '{{ text }} {{ row["choices"] }} {{ choices[0] }}'}, "T a column a"),
    ],
    ids=["none", "as list", "in line", "named", "named before", "plain text", "a column"],
)
def test_labels_are_appended_to_a_chat_that_lacks_them(
    choices: Any, prompt: dict[str, str], last: str
) -> None:
    """A chat that neither uses `choices` nor names every label gets a list at its end."""
    assert rendered(step_of(choices, **prompt))[-1] == last


@pytest.mark.parametrize("text", ["Newsroom, sports: {{ text }}", "{{ news }} sports {{ text }}"])
def test_only_whole_words_of_the_prompt_name_a_label(text: str) -> None:
    """Parts of words and column names do not count as naming a label."""
    assert (
        step_of(["news", "sports"], user=text)
        .templates["prompt"]
        .contents[0]
        .render(text="T", news="N", choices="LIST")
        .endswith("LIST")
    )


def test_descriptions_reach_a_prompt_that_names_the_labels() -> None:
    """Described labels are listed even if the prompt names every label."""
    assert rendered(step_of(DESCRIBED, user="billing or news? {{ text }}"))[0].endswith(
        "- billing: invoices and refunds\n- news"
    )


def test_the_list_is_in_the_last_user_message() -> None:
    """With several messages the list goes into the last user message, and keys are unchanged."""
    turns = [
        {"role": "user", "content": "first {{ text }}"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "second {{ text }}"},
        {"role": "tool", "content": "third"},
    ]
    contents = rendered(step_of(["a", "b"], messages=turns))
    assert [content.endswith("- b") for content in contents] == [False, False, True, False]
    assert step_of(["a", "b"], user="{{ text }}").columns == {"text": "prompt.user"}


def test_a_label_is_never_a_template() -> None:
    """Labels are data: braces in them reach the prompt unchanged."""
    assert rendered(step_of(["{{ text }}", "{% raw %}"]))[0].endswith("- {{ text }}\n- {% raw %}")


def test_the_json_schema_has_all_forms() -> None:
    """Editors accept a list, a mapping and a path."""
    forms = Classify.model_json_schema()["properties"]["choices"]["anyOf"]
    kinds = [form.get("type") for form in forms]
    assert {"array", "object", "string"} <= set(kinds)


def test_the_listing_is_one_template() -> None:
    """The text appended to a prompt compiles with it."""
    assert LISTING.count("{{ choices }}") == 1
    assert labels_of(DESCRIBED_CHOICES) == ["billing", "news"]
    assert Prompt(user="{{ text }}" + LISTING).templates
