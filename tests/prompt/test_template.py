"""Prompt templates: which columns they use, how they render a row, what they may not do."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt.template import PromptTemplates, compile_prompt
from tokenmill.reject import Reject, RejectClass


def compiled(text: str) -> PromptTemplates:
    """A plain prompt of this template."""
    return compile_prompt(Prompt(text=text))


def error_message(prompt: Mapping[str, Any]) -> str:
    """The error message for this prompt."""
    with pytest.raises(UserError) as raised:
        compile_prompt(Prompt.model_validate(prompt))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "columns", "required"),
    [
        ("{{ a }}", "a", "a"),
        ("{{ a }} and {{ b }}{{ a }}", "a b", "a b"),
        ('{{ row["a"] }}{{ row.b }}', "a b", "a b"),
        ("{{ a | trim | upper }}", "a", "a"),
        ("{{ a | default('x') }}{{ b | trim | d(c) }}", "a b c", ""),
        ("{% if a %}{{ a }}{% endif %}{{ b }}", "a b", "b"),
        ("{% for part in a %}{{ part }}{{ b }}{% endfor %}", "a b", ""),
        ("{{ a if b else c }}{{ d or e }}", "a b c d e", ""),
        ("{{ a[0] }}{{ b.key.key }}{{ c ~ d }}", "a b c d", ""),
        ("{% set x = a %}{{ x }}", "a", ""),
        ("{% set range = a %}{{ range }}", "a", ""),
        ("{% macro m(x) %}{{ x }}{{ b }}{% endmacro %}{{ m(a) }}", "a b", ""),
        ("{% for n in range(3) %}{{ n }}{% endfor %}{{ a }}", "a", "a"),
        ("{# {{ a }} #}{% raw %}{{ b }}{% endraw %}{{ c }}", "c", "c"),
        ("{% set ns = namespace(x=a) %}{{ ns.x }}{{ dict(k=b).k }}", "a b", ""),
    ],
)
def test_the_names_in_a_template_are_columns(text: str, columns: str, required: str) -> None:
    """Names that a template does not define are columns; those printed at top level, required."""
    templates = compiled(text)
    assert set(templates.columns) == set(columns.split())
    assert templates.required == set(required.split())


def test_a_column_may_have_any_name() -> None:
    """A name that is not an identifier, or is a function's or method's, is written in quotes."""
    names = ["my column", "a.b", "range", "row", "items", 'quo"te', "é"]
    templates = compiled("".join(f"{{{{ row['{name}'] }}}}|" for name in names))
    assert set(templates.columns) == set(names)
    row = {name: str(number) for number, name in enumerate(names)}
    assert templates.render(row) == ["0|1|2|3|4|5|6|"]


@pytest.mark.parametrize(
    ("prompt", "roles", "columns"),
    [
        ({"text": "{{ a }}"}, (), {"a": "prompt.text"}),
        ({"user": "{{ a }}"}, ("user",), {"a": "prompt.user"}),
        (
            {"system": "{{ s }}", "user": "{{ a }}{{ s }}"},
            ("system", "user"),
            {"s": "prompt.system", "a": "prompt.user"},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "tool", "content": "{{ a }}"},
                ]
            },
            ("user", "tool"),
            {"a": "prompt.messages.1"},
        ),
    ],
    ids=["text", "user", "system and user", "messages"],
)
def test_a_prompt_has_roles_and_columns(
    prompt: dict[str, Any], roles: tuple[str, ...], columns: dict[str, str]
) -> None:
    """A chat has roles, a text has none; each column has the job key that names it first."""
    templates = compile_prompt(Prompt.model_validate(prompt))
    assert templates.roles == roles
    assert templates.is_chat == bool(roles)
    assert templates.columns == columns
    contents = templates.render(dict.fromkeys(columns, "v"))
    assert isinstance(contents, list)
    assert len(contents) == max(len(roles), 1)


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("{{ a }}\n", {"a": "x"}, "x\n"),
        ("{{ a }}", {"a": "  x "}, "  x "),
        ("{{ a }}", {"a": 0}, "0"),
        ("{{ a }}", {"a": False}, "False"),
        ("{{ a }}", {"a": b"caf\xc3\xa9"}, "café"),
        ("{{ a }}", {"a": "<b> & é \0 \u202e"}, "<b> & é \0 \u202e"),
        ("{{ a.k[1] }}", {"a": {"k": [1, "x"]}}, "x"),
        ("{% for x in a %}{{ loop.index }}{{ x }} {% endfor %}", {"a": ["x", "y"]}, "1x 2y "),
        ("{% if a %}{{ a }}{% endif %}.", {"a": None}, "."),
        ("{% if a %}{{ a }}{% endif %}", {"a": ""}, ""),
        ("{{ a | default('none', true) }}", {"a": None}, "none"),
    ],
)
def test_a_template_prints_a_rows_values(text: str, row: dict[str, Any], expected: str) -> None:
    """Values are printed as they are, without escaping."""
    assert compiled(text).render(row) == [expected]


@pytest.mark.parametrize(
    ("value", "what"), [(None, "null"), ("", "empty"), (" \n\t\u2003", "empty")], ids=repr
)
def test_a_row_without_a_required_value_is_rejected(value: str | None, what: str) -> None:
    """Null or blank in a required column is a reject that names the column and the remedy."""
    reject = compiled("Shorten: {{ a }}{{ b }}").render({"a": "x", "b": value})
    assert isinstance(reject, Reject)
    assert reject.reject_class == RejectClass.EMPTY_INPUT
    assert f"the column b is {what}" in reject.message
    assert "{% if b %}" in reject.message


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("{{ a.key }}", {"k": 1}, "key"),
        ("{{ a['key'] }}", {"k": 1}, "key"),
        ("{{ a + 1 }}", "x", "TypeError"),
        ("{{ 1 / a }}", 0, "ZeroDivisionError"),
        ("{{ a | round }}", "x", "TypeError"),
        ("{% for x in a %}{% endfor %}", 5, "not iterable"),
        ("{{ a() }}", "x", "not callable"),
        ("{{ range(a) }}", 10**9, "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}{{ a }}", "x", "RecursionError"),
    ],
)
def test_a_row_that_breaks_a_template_is_rejected(text: str, value: object, reason: str) -> None:
    """Any error while rendering a row is that row's reject, in one line, with its cause."""
    reject = compiled(text).render({"a": value})
    assert isinstance(reject, Reject)
    assert reject.reject_class == RejectClass.TEMPLATE_ERROR
    assert reason in reject.message
    assert "\n" not in reject.message


ESCAPES = """\
{{ a.__class__ }}
{{ a['__class__'] }}
{{ a | attr('__class__') }}
{{ row['a'].__class__.__mro__ }}
{{ a.__class__.__mro__[1].__subclasses__() }}
{{ a.__init__.__globals__ }}
{{ a.format.__globals__ }}
{{ self.__init__.__globals__ ~ a }}
{{ lipsum().__class__ ~ a }}
{{ range(1).__class__ ~ a }}
{{ namespace(x=a).__init__ }}
{{ '{0.__class__}'.format(a) }}
{{ '{a.__class__}'.format_map({'a': a}) }}
{{ [a] | selectattr('__class__') | list }}
{{ [a] | sum(attribute='__class__') }}
{% set f = a.format %}{{ f.__globals__ }}
{% for x in [a] %}{{ loop.__class__ }}{% endfor %}
{% macro m() %}{% endmacro %}{{ m.__globals__ }}{{ m(a) }}
{% set x = [a] %}{{ x.append(1) }}
{% set x = {'k': a} %}{{ x.update(k=1) }}
{{ l.append(a) }}
{{ l.pop() }}
{{ l.clear() }}
{{ d.update({'k': a}) }}
{{ d.pop('k') }}
{{ d.setdefault('z', a) }}
"""


@pytest.mark.parametrize("text", ESCAPES.splitlines())
def test_no_template_escapes_its_sandbox_or_changes_a_value(text: str) -> None:
    """Python's internal attributes and methods that change a value are refused or undefined."""
    row = {"a": "text", "l": [1, 2], "d": {"k": 1}}
    before = copy.deepcopy(row)
    reject = compiled(text).render(row)
    assert isinstance(reject, Reject), reject
    assert reject.message.startswith(("SecurityError", "UndefinedError"))
    assert row == before


@pytest.mark.parametrize(
    "value", ["{{ 7 * 7 }}", "{{ b }}", "{% for x in y %}", "{# x", "}}", "${HOME}", "<|im_end|>"]
)
def test_a_row_is_never_a_template(value: str) -> None:
    """Template syntax in a row's values is plain text."""
    assert compiled("{{ a }}|{{ a | trim }}").render({"a": value}) == [f"{value}|{value}"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{{ a", ["line 1", "end of print statement"]),
        ("{{ a }}\n{{ a | nope }}", ["line 2", "nope"]),
        ("{{ a }}\n\n{{ a is nope }}", ["line 3", "nope"]),
        ("\n{% if a %}", ["line 2", "endif"]),
        ("{% endif %}{{ a }}", ["line 1", "endif"]),
        ("{{ }}", ["line 1", "Expected an expression"]),
        ("{% nope %}{{ a }}", ["line 1", "nope"]),
        ("{{ a }}\n{% include 'b' %}", ["line 2", "other templates"]),
        ("{{ a }}{% import 'b' as c %}", ["line 1", "other templates"]),
        ("{{ a }}{% from 'b' import c %}", ["line 1", "other templates"]),
        ("{% extends 'b' %}{{ a }}", ["line 1", "other templates"]),
        ("{{ row }}", ['row["column"]']),
        ("{{ row[a] }}", ['row["column"]']),
        ("{{ row.items() }}", ['row["column"]']),
        ("{{ row.get('a') }}", ['row["column"]']),
        ("{{ a }}\n{{ range }}", ["line 2", 'row["range"]']),
        ("{{ a ~ dict }}", ["line 1", 'row["dict"]']),
        ("{{ " + "(" * 3000 + "a" + ")" * 3000 + " }}", ["nested too deeply"]),
        ("{{ 10 ** 5000 }}{{ a }}", ["digits"]),
        ("{{ ''.__class__ ~ a }}", ["__class__", "unsafe"]),
    ],
)
def test_an_invalid_template_is_refused_with_its_key_and_line(text: str, parts: list[str]) -> None:
    """Errors in a template are found before a row is read, and name its job key and line."""
    message = error_message({"text": text})
    assert message.startswith("prompt.text")
    assert all(part in message for part in parts), message


def test_the_template_at_fault_is_named() -> None:
    """Of several messages, the one with the error is named."""
    turns = [{"role": "user", "content": "{{ a }}"}, {"role": "user", "content": "\n{{ a | b }}"}]
    assert error_message({"messages": turns}).startswith("prompt.messages.1, line 2: ")
    assert error_message({"system": "{{", "user": "{{ a }}"}).startswith("prompt.system, line 1: ")


@pytest.mark.parametrize("text", ["", "Hello", "{{ range(3) | list }}", "{% set x = 1 %}{{ x }}"])
def test_a_prompt_without_columns_is_refused(text: str) -> None:
    """A prompt that would be the same for all rows is an error."""
    assert "no template uses a column" in error_message({"user": text})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"text": "{{ a"}, "tasks.topic.prompt.text, line 1: "),
        ({"system": "x", "user": "{{ row }}"}, "tasks.topic.prompt.user: "),
        ({"text": "x"}, "tasks.topic.prompt: no template uses a column"),
    ],
)
def test_a_tasks_own_prompt_is_named_with_its_task(prompt: dict[str, str], message: str) -> None:
    """In a list of tasks, the key of a template begins with its task."""
    with pytest.raises(UserError) as raised:
        compile_prompt(Prompt.model_validate(prompt), "tasks.topic.")
    assert str(raised.value).startswith(message)
    columns = compile_prompt(Prompt(text="{{ a }}"), "tasks.topic.").columns
    assert columns == {"a": "tasks.topic.prompt.text"}
