"""Templates with limits: one that takes too long or produces too much costs only its row."""

import time

import pytest
from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt.sandbox import DEFAULT_LIMITS, TemplateLimits
from tokenmill.prompt.template import compile_prompt
from tokenmill.reject import Reject, RejectClass


def rendered(text: str, limits: TemplateLimits = DEFAULT_LIMITS) -> list[str] | Reject:
    """A plain prompt of this template, rendered for a row of small values."""
    templates = compile_prompt(Prompt(text=text), limits=limits)
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
def test_a_huge_value_is_refused_before_it_is_made(text: str) -> None:
    """A huge text, list or number rejects its row within two seconds."""
    before = time.thread_time()
    reject = rendered(text)
    assert isinstance(reject, Reject), len(reject)
    assert reject.reject_class == RejectClass.TEMPLATE_ERROR
    assert reject.message.startswith("TemplateLimit: the template makes")
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
def test_an_endless_template_is_interrupted(text: str) -> None:
    """Nested loops and recursive macros reject their row."""
    before = time.thread_time()
    reject = rendered(text, TemplateLimits(max_seconds=0.2))
    assert isinstance(reject, Reject)
    assert reject.message == "TemplateLimit: the template takes longer than 0.2 s"
    assert time.thread_time() - before < 2


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("{{ a * 3 }}", TemplateLimits(max_characters=10)),
        ("{{ [a] * 3 }}", TemplateLimits(max_items=2)),
        ("{{ n ** 3 }}", TemplateLimits(max_bits=64)),
    ],
)
def test_every_limit_can_be_set(text: str, limits: TemplateLimits) -> None:
    """What the default limits allow is refused by smaller ones."""
    assert not isinstance(rendered(text), Reject)
    assert isinstance(rendered(text, limits), Reject)


def test_each_row_has_the_whole_time() -> None:
    """The row after one that took too long starts with the full time."""
    text = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ a }}"
    templates = compile_prompt(Prompt(text=text), limits=TemplateLimits(max_seconds=1))
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
def test_a_huge_constant_is_an_error_of_the_job(text: str, parts: str) -> None:
    """An expression without a column is computed before the first row."""
    with pytest.raises(UserError, match=parts):
        compile_prompt(Prompt(text=text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% for x in list %}{{ loop.index }}/{{ loop.length }}{{ x }}{% endfor %}", "1/2x2/2y"),
        ("{% for x in list recursive %}{{ x }}{% endfor %}", "xy"),
        ("{% for x in list if x != 'x' %}{{ x }}{{ loop.last }}{% endfor %}", "yTrue"),
        ("{% for x in [] %}{% else %}none{% endfor %}{{ a[:0] }}", "none"),
        ("{{ a ~ 1 ~ 2.5 }}{{ a * 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}", "text12.5texttext31024"),
        ("{{ 'It has 7000000000 %s' % a }}", "It has 7000000000 text"),
        ("{{ '{0} of 7000000000 {1:>3}'.format(a, n - n) }}", "text of 7000000000   0"),
        ("{{ a | center(6) }}{{ list | join('-') }}{{ a | replace('t', 'd') }}", " text x-ydexd"),
        ("{{ list | map('upper') | list | tojson }}", '["X", "Y"]'),
        ("{{ a if list else 1 / 0 }}", "text"),
        ("{% if not a %}{{ 1 % 0 }}{% endif %}{{ a }}", "text"),
    ],
)
def test_ordinary_templates_are_not_affected(text: str, expected: str) -> None:
    """Loops, operators, filters and formats within the limits behave as in Jinja2."""
    assert rendered(text) == [expected]
