"""Nulls in templates: the word None is never printed by mistake."""

from typing import Any

import pytest
from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt.template import compile_prompt
from tokenmill.reject import Reject, RejectClass

ROW = {
    "text": "x",
    "meta": {"author": None, "year": 1999},
    "nothing": None,
    "tags": ["a", None],
    "people": [{"name": "b"}, {"name": None}],
}


def rendered(template: str) -> list[str] | Reject:
    """A plain prompt of this template, for `ROW`."""
    return compile_prompt(Prompt(text=template + "{% if text %}{% endif %}")).render(ROW)


PRINTED_NULLS = """\
{{ meta.author }}
{{ meta['author'] }}
{{ row['meta'].author }}
{{ tags[1] }}
{{ tags | last }}
{{ 'by ' ~ meta.author }}
{{ 'by ' + meta.author }}
{{ 'by %s' % meta.author }}
{{ '%s by %s' % (text, meta.author) }}
{{ 'by %s' | format(meta.author) }}
{{ 'by {}'.format(meta.author) }}
{{ 'by {name}'.format(name=meta.author) }}
{{ text | replace('x', meta.author) }}
{{ tags | join(', ') }}
{{ people | join(', ', attribute='name') }}
{{ people | map(attribute='name') | join }}
{{ tags | map('upper') | join }}
{{ meta.author | upper }}
{{ meta.author | string | length }}
{{ meta.author | trim }}
{{ meta.author | urlencode }}
{% if meta %}{{ meta.author }}{% endif %}
{% if text %}{{ nothing }}{% endif %}
{% for tag in tags %}{{ tag }}{% endfor %}
{% set name = meta.author %}{{ name }}
{% macro by(name) %}{{ name }}{% endmacro %}{{ by(meta.author) }}
{% filter upper %}{{ meta.author }}{% endfilter %}
{{ nothing.author }}
{{ nothing.author.name }}
{{ nothing.upper() }}
{{ 'by ' ~ nothing.author }}
{{ nothing.tags | join }}
"""


@pytest.mark.parametrize("template", PRINTED_NULLS.splitlines())
def test_a_printed_null_is_a_reject(template: str) -> None:
    """At any depth, and whatever prints it, as for a null column."""
    reject = rendered(template)
    assert isinstance(reject, Reject), reject
    assert reject.reject_class == RejectClass.EMPTY_INPUT


def test_the_reject_names_the_value() -> None:
    """The message has the value as the template writes it, and two ways to allow the null."""
    reject = rendered("{{ text }} {{ meta.author }}")
    assert isinstance(reject, Reject)
    assert "meta.author is null" in reject.message
    assert "{% if meta.author %}" in reject.message
    assert "default(" in reject.message


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ meta.author | default('unknown') }}", "unknown"),
        ("{{ meta.author | d('unknown') | upper }}", "UNKNOWN"),
        ("{{ meta.author | default('unknown', true) }}", "unknown"),
        ("{{ nothing | default('nothing') }}", "nothing"),
        ("{{ nothing.author | default('unknown') }}", "unknown"),
        ("{{ text | default('y') }}{{ meta.year | default(1) }}", "x1999"),
        ("{{ meta.author or 'unknown' }}", "unknown"),
        ("{{ meta.author if meta.author else 'unknown' }}", "unknown"),
        ("{% if meta.author %}{{ meta.author }}{% endif %}.", "."),
        ("{% if nothing.author %}{{ nothing.author }}{% endif %}.", "."),
        ("{% if nothing.author is defined %}yes{% else %}no{% endif %}", "no"),
        ("{% if meta.author is none %}none{% endif %}", "none"),
        ("{{ tags | select | join(', ') }}", "a"),
        ("{{ tags | map('default', '?') | join(', ') }}", "a, ?"),
        ("{% for tag in tags if tag %}{{ tag }}{% endfor %}", "a"),
        ("{{ meta | tojson }}", '{"author": null, "year": 1999}'),
        ("{{ meta.author | int }}", "0"),
        ("{{ tags }}", "['a', None]"),
    ],
)
def test_a_template_can_allow_nulls(template: str, expected: str) -> None:
    """By a condition, a default, or a filter that has an answer to null."""
    assert rendered(template) == [expected]


def test_a_field_that_does_not_exist_is_no_null() -> None:
    """A misspelt field is an error of the template."""
    reject = rendered("{{ meta.autor }}")
    assert isinstance(reject, Reject)
    assert reject.reject_class == RejectClass.TEMPLATE_ERROR


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ self }}", "self"),
        ("{{ self | trim }}", "self"),
        ("{{ 'a' ~ self }}", "self"),
        ("{% for tag in tags %}{{ loop }}{% endfor %}", "loop"),
        ("{% macro m() %}{{ varargs }}{% endmacro %}{{ m() }}", "varargs"),
        ("{% macro m() %}{{ kwargs }}{% endmacro %}{{ m() }}", "kwargs"),
        ("{{ none }}", "none"),
        ("{{ true }}", "true"),
    ],
)
def test_a_name_of_jinja_that_is_printed_is_refused(template: str, name: str) -> None:
    """A column was meant; the error has the way to name one."""
    with pytest.raises(UserError) as refused:
        rendered(template)
    assert f'row["{name}"]' in str(refused.value)
    assert "prompt.text, line 1" in str(refused.value)


@pytest.mark.parametrize("name", ["self", "loop", "caller", "varargs", "none", "context"])
def test_a_column_may_have_a_name_of_jinja(name: str) -> None:
    """Written in quotes; `loop` is a column's name outside of loops too."""
    row: dict[str, Any] = {name: "value"}
    assert compile_prompt(Prompt(text=f"{{{{ row['{name}'] }}}}")).render(row) == ["value"]


def test_the_counter_of_a_loop_is_no_column() -> None:
    """`loop.index` and the arguments of macros can be used."""
    assert rendered("{% for tag in tags %}{{ loop.index }}{% endfor %}") == ["12"]
    template = "{% macro m() %}{% for a in varargs %}{{ a }}{% endfor %}{% endmacro %}{{ m(1, 2) }}"
    assert rendered(template) == ["12"]
