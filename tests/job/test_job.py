"""The job file: what is valid, which errors are reported, and what changes the fingerprint."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from helpers.factories import job, job_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenmill.cli import app
from tokenmill.config.prompt import Message, Prompt
from tokenmill.config.strict_yaml import load_yaml
from tokenmill.engine.fake import SAMPLING_NAMES
from tokenmill.errors import UserError
from tokenmill.job.job import Job, differing_fields
from tokenmill.job.loader import load_job, stored_job
from tokenmill.job.sections import ReplicaRange
from typer.testing import CliRunner

SHIPPED = sorted(Path(__file__).parents[2].glob("jobs/*.yaml"))
Load = Callable[..., Job]

JOB = """\
name: summaries
input:
  path: corpus/*.parquet
  keep: [id, title]
model:
  source: fake
prompt:
  system: Be brief.
  user: "{{ text }}"
sampling:
  max_tokens: 16
output:
  path: out/summaries
"""


def task(name: str | None = None, **values: Any) -> dict[str, Any]:
    """A task in a job file."""
    return {"kind": "generate", **({} if name is None else {"name": name}), **values}


OWN_PROMPT = {"text": "Own: {{ text }}"}
OWN_SAMPLING = {"max_tokens": 3, "temperature": 0}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a job from a file with this text or these keys."""

    def load_it(content: str | bytes | dict[str, Any], *overrides: str) -> Job:
        path = tmp_path / "job.yaml"
        if isinstance(content, dict):
            content = yaml.safe_dump(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_job(path, overrides)

    return load_it


def error_of(load: Load, content: str | bytes | dict[str, Any], *overrides: str) -> str:
    """The error message for an invalid job."""
    with pytest.raises(UserError) as caught:
        load(content, *overrides)
    return str(caught.value)


def test_a_yaml_file_is_a_job(load: Load) -> None:
    """A job has the values of its file, and defaults for the other keys."""
    read = load(JOB)
    assert read.name == "summaries"
    assert read.input.path == "corpus/*.parquet"
    assert read.input.keep == ("id", "title")
    assert read.input.where is None
    assert read.input.on_bad_shard == "stop"
    assert read.model.source == "fake"
    assert read.model.replicas == 1
    assert read.sampling == {"max_tokens": 16}
    assert read.output.path == "out/summaries"
    assert read.units is None
    assert read.max_reject_rate == 0.05


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_jobs_are_valid(path: Path) -> None:
    """Every job in `jobs/` loads."""
    assert load_job(path).name


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_files_of_any_editor_are_read(load: Load, newline: str, mark: str) -> None:
    """Windows line ends and a byte order mark do not matter."""
    assert load(mark + JOB.replace("\n", newline)) == load(JOB)


# A name, the changed keys, and what the message must contain: the key, and the remedy.
MISTAKES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown key", {"modle": {}}, ["modle", "did you mean model?"]),
    ("unknown in input", {"input.wher": "a = 1"}, ["input.wher", "did you mean where?"]),
    ("unknown in model", {"model.sorce": "fake"}, ["model.sorce", "did you mean source?"]),
    ("unknown in prompt", {"prompt.sytem": "x"}, ["prompt.sytem", "did you mean system?"]),
    (
        "unknown in a message",
        {"prompt": {"messages": [{"role": "user", "content": "x"}, {"rolle": "user"}]}},
        ["prompt.messages.1.rolle", "did you mean role?"],
    ),
    ("unknown in output", {"output.pth": "x"}, ["output.pth", "did you mean path?"]),
    ("unknown in units", {"units": {"token": 5}}, ["units.token", "did you mean tokens?"]),
    (
        "unknown in replicas",
        {"model.replicas": {"maxx": 2}},
        ["model.replicas.maxx", "did you mean max?"],
    ),
    (
        "unknown and near to nothing",
        {"units": {"zzz": 5}},
        ["units.zzz", "unknown key", "rows", "tokens"],
    ),
    ("number as key", {"output": {5: "x"}}, ["output.5", "unknown key", "path"]),
    ("section without value", {"input": None}, ["input"]),
    ("value instead of keys", {"output": "out"}, ["output"]),
    ("name with a slash", {"name": "a/b"}, ["name"]),
    ("empty name", {"name": ""}, ["name"]),
    ("limit of zero", {"input.limit": 0}, ["input.limit", "greater than or equal to 1"]),
    ("limit that is no number", {"input.limit": "many"}, ["input.limit"]),
    ("bad shard policy", {"input.on_bad_shard": "skp"}, ["input.on_bad_shard", "skip"]),
    ("columns that are no list", {"input.keep": "id"}, ["input.keep", "[id]"]),
    ("number as text", {"name": 2026}, ["name", '"2026"']),
    ("value for a section", {"prompt": "text"}, ["prompt", "keys", "'text'"]),
    ("true as a number", {"units.rows": True}, ["units.rows", "true is not a number"]),
    ("false as a share", {"max_reject_rate": False}, ["max_reject_rate", "false is not a number"]),
    ("true as replicas", {"model.replicas": True}, ["model.replicas", "true is not a number"]),
    (
        "true as replicas of a range",
        {"model.replicas": {"max": True}},
        ["model.replicas.max", "true is not a number"],
    ),
    ("true as an optional number", {"input.limit": True}, ["input.limit", "true is not a number"]),
    (
        "true as a task's number",
        {"task": {"retries": {"times": True}}},
        ["task.retries.times", "true is not a number"],
    ),
    ("empty source", {"model.source": ""}, ["model.source"]),
    ("no replica", {"model.replicas": 0}, ["model.replicas"]),
    (
        "replicas the wrong way round",
        {"model.replicas": {"min": 3, "max": 1}},
        ["model.replicas", "min (3) is greater than max (1)"],
    ),
    ("no GPU", {"model.gpus_per_replica": 0}, ["model.gpus_per_replica"]),
    ("model as argument", {"model.engine": {"model": "x"}}, ["engine.model", "model.source"]),
    (
        "revision as argument",
        {"model.engine": {"revision": "main"}},
        ["engine.revision", "model.revision"],
    ),
    ("revision of a folder", {"model": {"source": "./m", "revision": "v1"}}, ["revision", "./m"]),
    ("empty prompt", {"prompt": {}}, ["prompt", "user", "messages", "text"]),
    ("two prompts", {"prompt.text": "x"}, ["prompt", "give one of", "user", "messages", "text"]),
    (
        "system without user",
        {"prompt": {"system": "x", "text": "y"}},
        ["prompt", "system goes with user"],
    ),
    (
        "system with messages",
        {"prompt": {"system": "x", "messages": [{"role": "user", "content": "y"}]}},
        ["prompt", "system", "role system"],
    ),
    ("no messages", {"prompt": {"messages": []}}, ["prompt.messages"]),
    ("message without content", {"prompt": {"messages": [{"role": "user"}]}}, ["content"]),
    ("no max_tokens", {"sampling": {}}, ["sampling.max_tokens", "missing"]),
    ("output_kind", {"sampling.output_kind": 1}, ["sampling.output_kind", "remove it"]),
    ("detokenize", {"sampling.detokenize": False}, ["sampling.detokenize", "remove it"]),
    ("two answers", {"sampling.n": 2}, ["sampling.n must be 1"]),
    *(
        (f"{name} of {value}", {f"sampling.{name}": value}, [f"sampling.{name} must be a"])
        for name, value in (
            *(("max_tokens", value) for value in (True, 3.0, "5")),
            *(("temperature", value) for value in (True, 3, "0.5", None)),
            *(("seed", value) for value in (True, 1.0, 2**63)),
            *(("top_k", value) for value in (False, -2, 1.0, None)),
            *(("stop", value) for value in (5, [""], [True])),
        )
    ),
    (
        "a task's sampling",
        {"tasks": [{"name": "a", "sampling": {"max_tokens": 1, "min_p": True}}]},
        ["tasks.a.sampling.min_p must be a number"],
    ),
    ("empty output", {"output.path": ""}, ["output.path"]),
    ("no unit size", {"units": {}}, ["units", "one of rows and tokens"]),
    ("two unit sizes", {"units": {"rows": 1, "tokens": 1}}, ["units", "one of rows and tokens"]),
    ("empty units", {"units.rows": 0}, ["units.rows"]),
    ("share above one", {"max_reject_rate": 1.5}, ["max_reject_rate"]),
    ("negative count", {"max_rejects": -1}, ["max_rejects"]),
]


@pytest.mark.parametrize(
    ("changes", "parts"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_an_error_names_the_key_and_the_remedy(
    load: Load, tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    """Every error is one line with the file, the key and what would be valid."""
    message = error_of(load, job_data(changes))
    assert str(tmp_path / "job.yaml") in message
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["name", "input", "model", "output"])
def test_a_missing_section_is_named(load: Load, key: str) -> None:
    """A job without a required section gives an error that names it."""
    data = job_data()
    del data[key]
    assert f"{key}: Field required" in error_of(load, data)


@pytest.mark.parametrize(
    ("key", "remedy"), [("prompt", "what to ask about a row"), ("sampling", "max_tokens")]
)
def test_a_task_without_a_prompt_or_sampling_is_refused(load: Load, key: str, remedy: str) -> None:
    """If neither the job nor the task has the key, the error says what to write."""
    data = job_data()
    del data[key]
    message = error_of(load, data)
    assert f"{key} is missing; " in message
    assert remedy in message


@pytest.mark.parametrize("key", ["input.path", "model.source", "output.path"])
def test_a_missing_value_is_named(load: Load, key: str) -> None:
    """A section without a required value gives an error with the value's dotted key."""
    section, name = key.split(".")
    data = job_data()
    del data[section][name]
    assert f"{key}: Field required" in error_of(load, data)


@pytest.mark.parametrize("max_tokens", [0, -1, "many", [8]], ids=str)
def test_an_answer_has_at_least_one_token(load: Load, max_tokens: Any) -> None:
    """A `max_tokens` that is not a positive number is an error of the job."""
    assert "sampling.max_tokens" in error_of(load, job_data({"sampling.max_tokens": max_tokens}))


@pytest.mark.parametrize("replicas", ["many", {"min": 3, "max": 1}], ids=str)
def test_messages_use_the_words_of_the_job_file(load: Load, replicas: Any) -> None:
    """An error names keys of the job, not validators."""
    message = error_of(load, job_data({"model.replicas": replicas}))
    assert "function-after" not in message
    assert "constrained-int" not in message


# Invalid YAML, or YAML that is not accepted, and the line that must be named, if any.
NOT_YAML: list[tuple[str, str, list[str]]] = [
    ("unclosed list", JOB.replace("[id, title]", "[id, title"), ["line 5", "not valid YAML"]),
    (
        "tab",
        JOB.replace("  source: fake", "\tsource: fake"),
        ["line 6", "not valid YAML", "use spaces"],
    ),
    ("bad indentation", JOB.replace("  user:", "   user:"), ["line 9", "not valid YAML"]),
    ("control character", JOB + "\x01", ["not valid YAML"]),
    ("key twice", JOB + "name: other\n", ["line 14", "duplicate key 'name'"]),
    (
        "key twice below",
        JOB.replace("  source: fake", "  source: fake\n  source: other"),
        ["line 7", "duplicate key 'source'"],
    ),
    (
        "object",
        JOB.replace("fake", "!!python/object/apply:os.getcwd []"),
        ["line 6", "python/object"],
    ),
    ("name of a function", JOB.replace("fake", "!!python/name:os.system"), ["line 6", "python/"]),
    ("own tag", JOB.replace("fake", "!mine x"), ["line 6", "!mine"]),
    ("unknown anchor", JOB.replace("fake", "*fake"), ["line 6", "fake"]),
    ("value in itself", JOB.replace("max_tokens: 16", "max_tokens: &a [*a]"), ["line 11"]),
    (
        "template without quotes",
        JOB.replace('"{{ text }}"', "{{ text }}"),
        ["line 9", "quote a value"],
    ),
    ("list as key", JOB + "? [a, b]\n: c\n", ["line 14", "key"]),
    ("two documents", JOB + "---\n" + JOB, ["line 14", "second document"]),
    (
        "variable in braces",
        JOB.replace("max_tokens: 16", "max_tokens: 16\n  x: {a: ${B}/c}"),
        ["line 12", "quote a value with ${NAME}"],
    ),
    (
        "variable in a list",
        JOB.replace("[id, title]", "[${A}, title]"),
        ["line 4", "quote a value with ${NAME}"],
    ),
    ("merge of a value", JOB + "<<: 5\n", ["line 14", "mapping"]),
    ("two merge keys", JOB + "<<: {}\n<<: {}\n", ["line 15", "duplicate key '<<'"]),
    ("empty file", "", ["job.yaml", "name, input and model"]),
    ("comment only", "# later\n", ["job.yaml", "name, input and model"]),
    ("list", "- name: a\n", ["job.yaml", "name, input and model"]),
    ("text", "just text", ["job.yaml", "name, input and model"]),
]


@pytest.mark.parametrize(
    ("text", "parts"), [case[1:] for case in NOT_YAML], ids=[case[0] for case in NOT_YAML]
)
def test_a_file_that_is_not_a_job_file_is_an_error_with_its_line(
    load: Load, text: str, parts: list[str]
) -> None:
    """A file that is not a plain YAML mapping gives an error of one line, with line and reason."""
    message = error_of(load, text)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "value", ["!!int five", "!!float x", "!!timestamp 2024-13-01", "!!binary x"]
)
def test_a_value_that_yaml_cannot_construct_is_an_error_with_its_line(
    load: Load, value: str
) -> None:
    """An invalid number, or a type that YAML 1.2 does not have, is a mistake in the file."""
    assert "line 1" in error_of(load, JOB.replace("summaries", value, 1))


YAML_PIECES = st.text(
    st.sampled_from("a1.{}[]:-,?|>&*!'\"#%@`~$<= \t\n\n\n\x07é\u2028"), max_size=25
)
KEY_PIECES = st.sampled_from(
    ["name: ", "input:\n  ", "path: ", "prompt: ", "{{ a }}", "${A}", "---\n"]
)


@settings(max_examples=200, deadline=None)
@given(text=st.lists(YAML_PIECES | KEY_PIECES, max_size=6).map("".join))
@example(text="user: {{ text }}")
@example(text="a: &a {b: *a}")
def test_no_text_crashes_the_loader(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any text is either a job or gives an error."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        load_job(path)
    except UserError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the path of a job file that does not exist."""
    path = tmp_path / "nope.yaml"
    with pytest.raises(UserError) as caught:
        load_job(path)
    assert str(path) in str(caught.value)
    assert "No such file" in str(caught.value)


def test_a_folder_is_not_a_job_file(tmp_path: Path) -> None:
    """The error names the path of a folder that was given as a job file."""
    with pytest.raises(UserError, match="cannot read the job file"):
        load_job(tmp_path)


def test_a_file_that_is_not_utf8_is_an_error(load: Load) -> None:
    """The error says that the encoding is wrong."""
    assert "not UTF-8" in error_of(load, JOB.encode("utf-16"))
    assert "not UTF-8" in error_of(load, JOB.replace("Be brief", "Sé breve").encode("latin-1"))


def test_environment_variables_are_replaced(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${NAME}` becomes the variable's value, alone or within a text, at any depth."""
    monkeypatch.setenv("CORPUS", "s3://bucket/corpus")
    monkeypatch.setenv("DAY", "monday")
    changes = {"input.path": "${CORPUS}/${DAY}/*.parquet", "input.keep": ["${DAY}"]}
    read = load(job_data(changes))
    assert read.input.path == "s3://bucket/corpus/monday/*.parquet"
    assert read.input.keep == ("monday",)


def test_a_default_replaces_an_unset_variable(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${NAME:-default}` becomes the default if the variable is not set."""
    monkeypatch.delenv("CORPUS", raising=False)
    data = job_data({"input.path": "${CORPUS:-here/or there}/x"})
    assert load(data).input.path == "here/or there/x"
    monkeypatch.setenv("CORPUS", "elsewhere")
    assert load(data).input.path == "elsewhere/x"


def test_an_unset_variable_is_named_with_its_key(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for an unset variable has the key, the variable and the syntax of a default."""
    monkeypatch.delenv("CORPUS", raising=False)
    message = error_of(load, job_data({"input.path": "${CORPUS}"}))
    assert all(part in message for part in ("input.path", "CORPUS is not set", "${CORPUS:-"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("input.limit", "7", 7),
        ("max_reject_rate", "0.25", 0.25),
        ("sampling.max_tokens", "32", 32),
        ("sampling.temperature", "0.5", 0.5),
        ("sampling.ignore_eos", "true", True),
        ("task.sampling.temperature", "0.5", 0.5),
    ],
)
def test_a_variable_may_be_a_number(
    load: Load, monkeypatch: pytest.MonkeyPatch, key: str, value: str, expected: float
) -> None:
    """A value that is a single variable has the type that it would have in the file."""
    monkeypatch.setenv("VALUE", value)
    changes: dict[str, Any] = {"task.sampling": {"max_tokens": 5}} if "task" in key else {}
    section: Any = load(job_data({**changes, key: "${VALUE}"})).model_dump()
    for part in key.split("."):
        section = section[part]
    assert section == expected
    assert type(section) is type(expected)


TEXT_OF_VARIABLES = [
    "*.parquet",
    "**/*.parquet",
    "[ab]*.parquet",
    "my corpus #2/x.parquet",
    "2024",
    "2024-01-01",
    "yes",
    "~",
    "a: b",
    "@host",
]


@pytest.mark.parametrize("value", TEXT_OF_VARIABLES)
def test_a_variable_may_be_any_text(
    load: Load, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """For a key with a text value, the variable's value is not parsed as YAML."""
    monkeypatch.setenv("VALUE", value)
    assert load(job_data({"input.path": "${VALUE}"})).input.path == value


@pytest.mark.parametrize("value", TEXT_OF_VARIABLES)
def test_a_variable_within_a_text_is_inserted_unchanged(
    load: Load, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Next to other text, a variable's value is never parsed as YAML."""
    monkeypatch.setenv("VALUE", value)
    assert load(job_data({"input.path": "in/${VALUE}"})).input.path == f"in/{value}"


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "TOKEN",
        "OPENAI_API_KEY",
        "apikey",
        "DB_PASSWORD",
        "MY_CREDENTIALS",
        "PRIVATE_KEY",
    ],
)
def test_secrets_are_errors(load: Load, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The error names a variable that looks like a secret, and does not show its value."""
    monkeypatch.setenv(name, "hunter2")
    for text in (f"${{{name}}}", f"x/${{{name}:-y}}"):
        message = error_of(load, job_data({"input.path": text}))
        assert all(part in message for part in ("input.path", name, "secret", "AWS"))
        assert "hunter2" not in message


@pytest.mark.parametrize("name", ["MAX_TOKENS", "TOKENIZER", "PASS_RATE", "KEYWORDS", "CORPUS"])
def test_other_variables_are_not_secrets(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Names that only resemble those of secrets are allowed."""
    monkeypatch.setenv(name, "value")
    assert load(job_data({"output.path": f"out/${{{name}}}"})).output.path == "out/value"


def test_variables_in_a_prompt_are_not_replaced(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`${NAME}` in a prompt is text, even with the name of a secret."""
    monkeypatch.setenv("HOME", "/root")
    text = "Explain ${HOME}, ${NOPE} and ${AWS_SECRET_ACCESS_KEY}: {{ text }}"
    assert load(job_data({"prompt.user": text})).prompt == Prompt(user=text)
    for own in (
        {"task": {"prompt": {"text": text}}},
        {"tasks": [task("a", prompt={"text": text})]},
    ):
        assert load(job_data(own)).steps[0].prompt == Prompt(text=text)


@pytest.mark.parametrize("text", ["$HOME", "${}", "${a b}", "${HOME", "100$", "$$", "{HOME}"])
def test_text_that_only_resembles_a_variable_is_unchanged(load: Load, text: str) -> None:
    """Other uses of a dollar sign are text."""
    assert load(job_data({"output.path": f"out/{text}"})).output.path == f"out/{text}"


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("name=other", {"name": "other"}),
        ("input.limit=5", {"input.limit": 5}),
        ("input.keep=[id, 'my title']", {"input.keep": ["id", "my title"]}),
        ("sampling.temperature=0.5", {"sampling.temperature": 0.5}),
        ("sampling.stop=['=', '.']", {"sampling.stop": ["=", "."]}),
        ("sampling={max_tokens: 5}", {"sampling": {"max_tokens": 5}}),
        ("units.rows=5", {"units": {"rows": 5}}),
        ("model.replicas.max=3", {"model.replicas": {"max": 3}}),
        ("model.engine.hf_overrides.a.b=1", {"model.engine": {"hf_overrides": {"a": {"b": 1}}}}),
        ("input.where=lang = 'en' AND a >= 1", {"input.where": "lang = 'en' AND a >= 1"}),
        ("prompt.user={{ body }}", {"prompt.user": "{{ body }}"}),
        ("prompt.user=Shorten {{ body }}", {"prompt.user": "Shorten {{ body }}"}),
        ("input.limit=", {"input.limit": None}),
        ("output.path=s3://bucket/x=1/y", {"output.path": "s3://bucket/x=1/y"}),
    ],
)
def test_an_override_replaces_or_adds_a_value(
    load: Load, override: str, changes: dict[str, Any]
) -> None:
    """`--set key.path=value` has the same effect as the value in the file, at any depth."""
    assert load(job_data(), override) == job(changes)


def test_the_last_of_two_overrides_counts(load: Load) -> None:
    """Overrides are applied in order."""
    read = load(job_data(), "input.limit=5", "name=other", "input.limit=6")
    assert (read.input.limit, read.name) == (6, "other")


def test_an_override_can_make_a_file_valid(load: Load) -> None:
    """A file that lacks a value is valid with an override that sets it."""
    assert load(job_data({"sampling": {}}), "sampling.max_tokens=4").sampling == {"max_tokens": 4}


def test_an_override_reaches_a_task_by_its_name(load: Load) -> None:
    """The other tasks of the list stay; the error names a task or a key that is missing."""
    tasks = [{"name": "one", "kind": "generate"}, {"name": "two", "kind": "generate"}]
    read = load(job_data({"tasks": tasks}), "tasks.two.sampling.max_tokens=4").tasks
    assert read is not None
    assert [task.sampling for task in read] == [None, {"max_tokens": 4}]
    for override, part in (("tasks.three.complete=true", "three"), ("tasks.two=5", "list")):
        with pytest.raises(UserError, match=rf"--set {override}: .*{part}"):
            load(job_data({"tasks": tasks}), override)


def test_an_override_may_name_a_variable(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable in an override is replaced as in the file."""
    monkeypatch.setenv("DAY", "monday")
    assert load(job_data(), "output.path=out/${DAY}").output.path == "out/monday"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("name", ["name", "key.path=value"]),
        ("=5", ["=5", "key.path=value"]),
        ("", ["--set", "key.path=value"]),
        ("input.path.x=5", ["input.path.x=5", "path is a value"]),
        ("prompt.messages.0.role=x", ["messages", "unknown key", "0"]),
        ("input.lmit=5", ["input.lmit", "did you mean limit?"]),
        ("input.limit=many", ["input.limit"]),
        ("input.keep=[id", ["[id", "not valid YAML"]),
        ("input.keep={a: 1, a: 2}", ["{a: 1, a: 2}"]),
        ("name=!!python/name:os.system", ["python/name", "not valid YAML"]),
        ("name={[a]: b}", ["{[a]: b}", "not valid YAML"]),
    ],
)
def test_an_invalid_override_is_an_error(load: Load, override: str, parts: list[str]) -> None:
    """The error is one line that names the override."""
    message = error_of(load, job_data(), override)
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_an_override_that_yaml_cannot_construct_is_an_error(load: Load) -> None:
    """An invalid number is an error in an override, too."""
    assert "!!int five" in error_of(load, job_data(), "name=!!int five")


def test_a_prompt_has_one_of_three_forms() -> None:
    """System and user, or messages, or plain text; the first two are turns of a chat."""
    user = Message(role="user", content="{{ text }}")
    assert Prompt(user="{{ text }}").turns == (user,)
    both = Prompt(system="Be brief.", user="{{ text }}")
    assert both.turns == (Message(role="system", content="Be brief."), user)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{{ text }}"}]
    turns = Prompt.model_validate({"messages": messages}).turns
    assert [turn.model_dump() for turn in turns] == messages
    assert Prompt(text="{{ text }}").turns == ()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"task": {"kind": "tag", "choices": ["a"]}, "sampling": None}, "only generate accepts"),
        ({"length": {"policy": "truncate", "column": "m"}}, "whole chats cannot be cut"),
        (
            {"task": {"best_of": {"n": 2, "by": "reward", "model": {"source": "fake"}}}},
            "reward needs a prompt of templates",
        ),
        ({"prompt": {"chat": "m", "text": "{{ m }}"}}, "give one of"),
    ],
)
def test_whole_chats_need_a_task_that_accepts_them(changes: dict[str, Any], part: str) -> None:
    """Only generate accepts them, without a length policy and without a reward model."""
    data = {**job_data(), "prompt": {"chat": "m"}, "sampling": {"max_tokens": 4}}
    assert Job.model_validate(data).steps[0].columns == {"m": "prompt.chat"}
    with pytest.raises(ValidationError, match=part):
        Job.model_validate(data | changes)


def test_a_job_without_a_task_generates() -> None:
    """A prompt and sampling are enough: one task without a name, and columns without a prefix."""
    for step in (*job().steps, *job({"task": task()}).steps):
        assert (step.kind.name, step.section.name, step.key_prefix) == ("generate", None, "")
        assert step.prompt == Prompt(user="{{ text }}")
        assert step.sampling.values == {"max_tokens": 16}


def test_tasks_without_their_own_prompt_and_sampling_use_the_jobs() -> None:
    """Each task of a list has its own values, and the job's for the other keys."""
    several = job(
        {
            "tasks": [
                task("both"),
                task("prompt", prompt=OWN_PROMPT),
                task("sampling", sampling=OWN_SAMPLING),
                task("neither", prompt=OWN_PROMPT, sampling=OWN_SAMPLING),
            ]
        }
    )
    user, own = Prompt(user="{{ text }}"), Prompt.model_validate(OWN_PROMPT)
    assert [step.prompt for step in several.steps] == [user, own, user, own]
    assert [params.max_tokens for params in several.params] == [16, 16, 3, 3]
    assert [step.key_prefix for step in several.steps] == [
        "tasks.both.",
        "tasks.prompt.",
        "tasks.sampling.",
        "tasks.neither.",
    ]


def test_a_job_needs_no_prompt_and_sampling_if_its_tasks_have_them(load: Load) -> None:
    """A job without `prompt` and `sampling` is valid if each of its tasks has them."""
    data = job_data({"tasks": [task("a", prompt=OWN_PROMPT, sampling=OWN_SAMPLING)]})
    del data["prompt"], data["sampling"]
    (step,) = load(data).steps
    assert step.sampling.values == OWN_SAMPLING


# Mistakes in tasks, and what the message must contain.
TASK_MISTAKES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("both", {"task": task(), "tasks": [task("a")]}, ["give either task or tasks"]),
    ("no tasks", {"tasks": []}, ["tasks", "at least 1"]),
    ("no name", {"tasks": [task("a"), task()]}, ["tasks", "each task needs a name"]),
    ("name twice", {"tasks": [task("a"), task("b"), task("a")]}, ["tasks", "the same name"]),
    ("bad name", {"tasks": [task("My-Task")]}, ["tasks.0.name"]),
    ("bad name of one", {"task": task("2nd")}, ["task.name"]),
    ("unknown kind", {"task": {"kind": "genrate"}}, ["task", "'generate'"]),
    ("unknown key", {"task": task(promt={})}, ["task.promt", "did you mean prompt?"]),
    (
        "unknown key in a list",
        {"tasks": [task("a"), task("b", smapling={})]},
        ["tasks.1.smapling", "did you mean sampling?"],
    ),
    (
        "unknown key below",
        {"tasks": [task("a", prompt={"usr": "{{ text }}"})]},
        ["tasks.0.prompt.usr", "did you mean user?"],
    ),
    (
        "two prompts",
        {"tasks": [task("a", prompt={"text": "x", "user": "y"})]},
        ["tasks.0.prompt", "give one of"],
    ),
    (
        "no max_tokens",
        {"tasks": [task("a"), task("b", sampling={})]},
        ["tasks.b.sampling.max_tokens is missing"],
    ),
    (
        "no max_tokens in one",
        {"task": task(sampling={"temperature": 0})},
        ["sampling.max_tokens is missing"],
    ),
    (
        "bad max_tokens",
        {"tasks": [task("b", sampling={"max_tokens": 0})]},
        ["tasks.b.sampling.max_tokens must be a whole number, 1 or more"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [case[1:] for case in TASK_MISTAKES],
    ids=[case[0] for case in TASK_MISTAKES],
)
def test_an_error_in_a_task_names_its_key(
    load: Load, changes: dict[str, Any], parts: list[str]
) -> None:
    """Every error is one line with the task and what would be valid."""
    message = error_of(load, job_data(changes))
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["prompt", "sampling"])
def test_the_error_names_the_task_without_a_prompt_or_sampling(load: Load, key: str) -> None:
    """Neither this task nor the job has the key; the other task does."""
    whole = {"prompt": OWN_PROMPT, "sampling": OWN_SAMPLING}
    lacking = {name: value for name, value in whole.items() if name != key}
    data = job_data({"tasks": [task("a", **whole), task("b", **lacking)]})
    del data["prompt"], data["sampling"]
    assert f"tasks.b.{key} is missing" in error_of(load, data)


def test_replicas_are_a_number_or_a_range() -> None:
    """A number of replicas, or a range with a minimum of one by default."""
    assert job({"model.replicas": 4}).model.replicas == 4
    assert job({"model.replicas": {"max": 4}}).model.replicas == ReplicaRange(min=1, max=4)


@pytest.mark.parametrize(
    ("source", "is_hub_id"),
    [
        ("owner/name", True),
        ("fake", False),
        ("bundled:x", False),
        ("s3://bucket/model", False),
        ("/models/x", False),
        ("./owner/name", False),
        ("~/models/x", False),
    ],
)
def test_a_hub_id_is_owner_and_name(source: str, is_hub_id: bool) -> None:
    """A source is a hub id if it is `owner/name` and has no other known form."""
    assert job({"model.source": source}).model.is_hub_id == is_hub_id


# Jobs that differ from `job()` in one key, with other answers.
OTHER_ANSWERS: dict[str, dict[str, Any]] = {
    "user prompt": {"prompt.user": "{{ text }}!"},
    "system prompt": {"prompt.system": "Be brief."},
    "plain prompt": {"prompt": {"text": "{{ text }}"}},
    "role": {"prompt": {"messages": [{"role": "tool", "content": "{{ text }}"}]}},
    "max_tokens": {"sampling.max_tokens": 17},
    "temperature": {"sampling.temperature": 0.5},
    "structured outputs": {"sampling.structured_outputs": {"choice": ["a", "b"]}},
    "model": {"model.source": "owner/name"},
    "revision": {"model": {"source": "owner/name", "revision": "v2"}},
    "context length": {"model.engine": {"max_model_len": 2048}},
    "dtype": {"model.engine": {"dtype": "float32"}},
    "kept columns": {"input.keep": ["id"]},
    "order of kept columns": {"input.keep": ["title", "id"]},
    "filter": {"input.where": "lang = 'en'"},
    "limit": {"input.limit": 5},
    "input path": {"input.path": "other/*.parquet"},
    "named task": {"task": task("topic")},
    "list of one task": {"tasks": [task("topic")]},
    "two tasks": {"tasks": [task("topic"), task("mood", prompt=OWN_PROMPT)]},
    "order of tasks": {"tasks": [task("mood", prompt=OWN_PROMPT), task("topic")]},
    "a task's own sampling": {"tasks": [task("topic", sampling=OWN_SAMPLING)]},
}
SAME_ANSWERS: dict[str, dict[str, Any]] = {
    "name": {"name": "other"},
    "output path": {"output.path": "elsewhere"},
    "output endpoint": {"output.endpoint_url": "http://localhost:1"},
    "input endpoint": {"input.endpoint_url": "http://localhost:1"},
    "bad shards": {"input.on_bad_shard": "skip"},
    "rows a unit": {"units": {"rows": 5}},
    "tokens a unit": {"units": {"tokens": 5}},
    "replicas": {"model.replicas": 3},
    "range of replicas": {"model.replicas": {"max": 3}},
    "GPUs": {"model.gpus_per_replica": 2},
    "batch size": {"model.engine": {"max_num_seqs": 7}},
    "batch tokens": {"model.engine": {"max_num_batched_tokens": 4096}},
    "GPU memory": {"model.engine": {"gpu_memory_utilization": 0.5}},
    "prefix caching": {"model.engine": {"enable_prefix_caching": False}},
    "share of rejects": {"max_reject_rate": 0.5},
    "number of rejects": {"max_rejects": 5},
    "a default written out": {"input.keep": []},
    "the task written out": {"task": task()},
    "the task's own prompt": {"task": task(prompt={"user": "{{ text }}"})},
    "the task's own sampling": {
        "prompt.user": "{{ text }}",
        "task": task(sampling={"max_tokens": 16}),
    },
}


@pytest.mark.parametrize("changes", OTHER_ANSWERS.values(), ids=OTHER_ANSWERS.keys())
def test_the_fingerprint_covers_what_answers_depend_on(changes: dict[str, Any]) -> None:
    """A job with other answers has another fingerprint."""
    assert job(changes).fingerprint != job().fingerprint


def test_no_two_of_these_jobs_share_a_fingerprint() -> None:
    """Different changes result in different fingerprints."""
    fingerprints = {job(changes).fingerprint for changes in OTHER_ANSWERS.values()}
    assert len(fingerprints) == len(OTHER_ANSWERS)


@pytest.mark.parametrize("changes", SAME_ANSWERS.values(), ids=SAME_ANSWERS.keys())
def test_the_fingerprint_does_not_cover_the_rest(changes: dict[str, Any]) -> None:
    """A job that only runs differently, or writes elsewhere, has the same fingerprint."""
    assert job(changes).fingerprint == job().fingerprint


def test_the_order_of_keys_does_not_matter() -> None:
    """Two files with the same keys in another order are the same job."""
    one = job({"sampling": {"max_tokens": 5, "temperature": 0}})
    other = job({"sampling": {"temperature": 0, "max_tokens": 5}})
    assert one.fingerprint == other.fingerprint


def test_differing_fields_are_named() -> None:
    """The keys whose values differ are listed, including keys that one job lacks."""
    other = job({"prompt.user": "x {{ text }}", "sampling.top_p": 0.5, "input.keep": ["id"]})
    names = differing_fields(job().answer_fields, other.answer_fields)
    assert names == ["input.keep", "prompt.user", "sampling.top_p"]
    assert differing_fields(job().answer_fields, job({"name": "other"}).answer_fields) == []


def test_a_task_that_differs_is_named() -> None:
    """In a list of tasks, the key of a difference has the task's name."""
    one = job({"tasks": [task("a"), task("b", prompt=OWN_PROMPT)]})
    other = job({"tasks": [task("a"), task("b", prompt={"text": "{{ text }}"})]})
    swapped = job({"tasks": [task("b", prompt=OWN_PROMPT), task("a")]})
    fields = one.answer_fields
    assert differing_fields(fields, other.answer_fields) == ["tasks.b.prompt.text"]
    assert differing_fields(fields, swapped.answer_fields) == [
        "tasks.a.position",
        "tasks.b.position",
    ]


def test_any_yaml_value_has_a_fingerprint(load: Load) -> None:
    """An engine argument that YAML reads as a date works."""
    read = load(JOB.replace("source: fake", "source: fake\n  engine: {served_name: 2024-01-01}"))
    assert len(read.fingerprint) == 64


YAML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    sampling=st.dictionaries(st.text(min_size=12, max_size=15), YAML_VALUES, max_size=3),
)
@example(prompt="\x00\x85\u2028\ufeff\U0001f600 ${HOME}\n", sampling={"logprobs     ": None})
def test_a_stored_job_is_the_same_job(
    prompt: str, sampling: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The job stored with an output loads as an equal job with the same fingerprint."""
    changes = {"prompt.user": prompt, "input.keep": ["id"], "units": {"rows": 5}}
    written = job(changes | {"sampling": {**sampling, "max_tokens": 5}})
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_bytes(written.to_yaml().encode())
    again = load_job(path)
    assert again == written
    assert again.fingerprint == written.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"task": task("topic", prompt=OWN_PROMPT)},
        {"tasks": [task("a"), task("b", prompt=OWN_PROMPT, sampling=OWN_SAMPLING)]},
        {"tasks": [task("a", sampling={"max_tokens": None, "logprobs": None})]},
    ],
    ids=["one", "several", "nulls"],
)
def test_a_stored_job_has_its_tasks(load: Load, changes: dict[str, Any]) -> None:
    """Tasks and their own keys are stored and loaded again."""
    written = job(changes)
    again = load(written.to_yaml())
    assert again == written
    assert again.fingerprint == written.fingerprint


# Sampling parameters in a job file, in all forms that vLLM takes.
SAMPLINGS = """
n: 1
presence_penalty: 0.5
frequency_penalty: -1
repetition_penalty: 1.1
temperature: 0.7
watermarking: true
top_p: 1
top_k: -1
min_p: 0
seed: 5
stop: ["yes", "1", "\u0085", "1e3", a]
stop_token_ids: [1, 2]
ignore_eos: false
max_tokens: null
min_tokens: 1
logprobs: 0
prompt_logprobs: null
prompt_logprob_token_ids: [[1, 2], [3]]
prompt_logprob_start: 1
logprob_token_ids: [5]
skip_special_tokens: true
spaces_between_special_tokens: true
include_stop_str_in_output: true
stream_interval: 1
structured_outputs: {json: {type: object, properties: {no: {enum: [yes, 1, null]}}}}
logit_bias: {28: 100, 7: -0.5}
allowed_token_ids: [1]
extra_args: {a: {1: [true, null, 1e3]}}
bad_words: [no, on, 010]
skip_reading_prefix_cache: true
thinking_token_budget: 8
repetition_detection: {max_pattern_size: 8, min_count: 3}
routed_experts_prompt_start: 0
trace_decode_token_ids: [1]
"""


def test_every_sampling_parameter_is_stored_as_it_is(load: Load) -> None:
    """The job that actors read has the values and the types of the file."""
    sampling = load_yaml(SAMPLINGS)
    assert sampling.keys() == SAMPLING_NAMES
    inner = "".join(f"\n  {line}" for line in SAMPLINGS.strip().splitlines())
    written = load(JOB.replace("\n  max_tokens: 16", inner))
    again = stored_job(written.to_yaml(), "stored")
    assert again == written
    assert repr(again.sampling) == repr(written.sampling) == repr(sampling)
    assert again.fingerprint == written.fingerprint


def test_nulls_in_sampling_are_stored(load: Load) -> None:
    """A sampling parameter that is null differs from one that is absent."""
    written = job({"sampling.logprobs": None})
    assert load(written.to_yaml()).sampling == {"max_tokens": 16, "logprobs": None}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """The JSON schema that `tokenmill schema` prints."""
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.exit_code == 0
    schema = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_jobs(
    validator: jsonschema.Draft202012Validator, path: Path
) -> None:
    """Every job in `jobs/` conforms to the JSON schema that `tokenmill schema` prints."""
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "changes",
    [
        {"modle": {}},
        {"input.wher": "a = 1"},
        {"input.limit": 0},
        {"prompt.sytem": "x"},
        {"task": {"kind": "genrate"}},
        {"tasks": [{"kind": "generate", "name": "a", "promt": {}}]},
        {"units": {"rows": "many"}},
        {"max_reject_rate": 1.5},
        {"name": "a/b"},
    ],
    ids=str,
)
def test_the_schema_rejects_invalid_jobs(
    validator: jsonschema.Draft202012Validator, changes: dict[str, Any]
) -> None:
    """An editor with the schema marks unknown keys and impossible values."""
    assert validator.is_valid(job_data())
    assert not validator.is_valid(job_data(changes))


def test_a_job_cannot_be_changed() -> None:
    """A job is a value: its fields cannot be set."""
    whole = job()
    with pytest.raises(ValueError, match="frozen"):
        whole.max_reject_rate = math.inf
