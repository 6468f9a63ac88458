"""Templates with bounds: what takes too long or makes too much costs its own row, and soon."""

import time

import pytest
from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt import sandbox
from tokenmill.prompt.template import compile_prompt
from tokenmill.reject import Reject, RejectClass


def rendered(text: str) -> list[str] | Reject:
    """A plain prompt of this template over a row of small values."""
    templates = compile_prompt(Prompt(text=text))
    return templates.render({"a": "text", "n": 10**9, "list": ["x", "y"]})


HUGE = """\
{{ a * n }}
{{ n * a }}
{{ [a] * n }}
{{ n ** n }}
{{ 2 ** n }}
{{ '%1000000000d' % n }}
{{ '%.999999999f' % n }}
{{ '%*d' % (n, 1) }}
{{ ('{:>' ~ n ~ '}').format(a) }}
{{ '{:{}}'.format(a, n) }}
{{ a.center(n) }}
{{ a.ljust(n) }}
{{ a.zfill(n) }}
{{ ('x\\ty').expandtabs(n) }}
{{ a | center(n) }}
{{ (a ~ '\\n' ~ a) | indent(n) }}
{{ a | tojson(indent=n) }}
{{ [a] | tojson(n) }}
{{ '%1000000000d' | format(n) }}
{{ lipsum(n) }}
{% set x = a * 1000000 %}{{ x.replace('t', x) }}
{% set x = a * 1000000 %}{{ x | replace('t', x) }}
{% set x = a * 16000000 %}{{ x + x }}
{% set x = a * 16000000 %}{{ x ~ x }}
{% set x = a * 16000000 %}{{ x }}{{ x }}
{% set m = namespace(x=a) %}{% for i in range(60) %}{% set m.x = m.x ~ m.x %}{% endfor %}{{ m.x }}
{% set m = namespace(x=a) %}{% for i in range(60) %}{% set m.x = m.x + m.x %}{% endfor %}{{ m.x }}
{% for i in range(100000) %}{{ a * 10000 }}{% endfor %}
"""


@pytest.mark.parametrize("text", HUGE.splitlines())
def test_what_would_be_huge_is_refused_before_it_is_made(text: str) -> None:
    """A text, list or number without bound is a reject of its row, in a moment."""
    before = time.thread_time()
    found = rendered(text)
    assert isinstance(found, Reject), len(found)
    assert found.reject_class == RejectClass.TEMPLATE_ERROR
    assert found.message.startswith("TemplateLimit: the template makes")
    assert time.thread_time() - before < 2


ENDLESS = """\
{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ a }}
{% for i in range(99999) %}{% for j in range(99999) %}{% set x = j %}{% endfor %}{% endfor %}{{ a }}
{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}{{ a }}
{% macro f(d) %}{% if d %}{{ f(d - 1) }}{{ f(d - 1) }}{% endif %}{% endmacro %}{{ f(60) }}{{ a }}
{% set big = a * 1000 %}{% for i in range(99999) %}{{ big | upper | first }}{% endfor %}\
{% for i in range(99999) %}{{ big | sort | first }}{% endfor %}
"""


@pytest.mark.parametrize("text", ENDLESS.splitlines())
def test_what_does_not_end_is_ended(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops in loops and macros that call themselves are a reject of their row."""
    monkeypatch.setattr(sandbox, "MOST_SECONDS", 0.2)
    before = time.thread_time()
    found = rendered(text)
    assert isinstance(found, Reject)
    assert found.message == "TemplateLimit: the template takes longer than 0.2 s"
    assert time.thread_time() - before < 2


def test_the_time_is_each_rows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row after one that took too long has all of its time."""
    monkeypatch.setattr(sandbox, "MOST_SECONDS", 1)
    text = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ a }}"
    templates = compile_prompt(Prompt(text=text))
    assert isinstance(templates.render({"a": "slow", "n": 99999}), Reject)
    assert templates.render({"a": "quick", "n": 2}) == ["quick"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{{ 'x' * 10 ** 9 }}{{ a }}", "more than"),
        ("{{ 2 ** 3 ** 99999 }}{{ a }}", "bits"),
        ("{{ [1] * 100000000 }}{{ a }}", "more than"),
    ],
)
def test_what_is_huge_in_any_row_is_refused_at_once(text: str, parts: str) -> None:
    """A sum without a column is done before the first row, and its fault is the job's."""
    with pytest.raises(UserError, match=parts):
        compile_prompt(Prompt(text=text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% for x in list %}{{ loop.index }}/{{ loop.length }}{{ x }}{% endfor %}", "1/2x2/2y"),
        ("{% for x in list recursive %}{{ x }}{% endfor %}", "xy"),
        ("{% for x in list if x != 'x' %}{{ x }}{{ loop.last }}{% endfor %}", "yTrue"),
        ("{% for x in [] %}{% else %}none{% endfor %}{{ a[:0] }}", "none"),
        ("{{ a ~ 1 ~ none }}{{ a * 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}", "text1Nonetexttext31024"),
        ("{{ 'It has 7000000000 %s' % a }}", "It has 7000000000 text"),
        ("{{ '{0} of 7000000000 {1:>3}'.format(a, n - n) }}", "text of 7000000000   0"),
        ("{{ a | center(6) }}{{ list | join('-') }}{{ a | replace('t', 'd') }}", " text x-ydexd"),
        ("{{ list | map('upper') | list | tojson }}", '["X", "Y"]'),
        ("{{ a if list else 1 / 0 }}", "text"),
        ("{% if not a %}{{ 1 % 0 }}{% endif %}{{ a }}", "text"),
    ],
)
def test_what_templates_usually_do_they_still_do(text: str, expected: str) -> None:
    """Loops, sums, filters and formats within the bounds are Jinja2's own."""
    assert rendered(text) == [expected]
