"""The prompt's Jinja2 templates: which columns they use, and one row's messages.

Templates come from the job and run in an immutable sandbox; a row's values are data and are never
parsed as templates. A column whose name is no identifier is written `row["my column"]`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import UserError
from pipeline.schema import Reject, RejectClass
from pipeline.section import Prompt

_ROW = "row"
# With one of these an absent value is the template's own business.
_FILTERS_FOR_ABSENT_VALUES = frozenset({"default", "d"})
_OTHER_TEMPLATES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


@dataclass(frozen=True, slots=True)
class PromptTemplates:
    """A job's compiled prompt.

    `columns` maps each column used to the place that names it. `required` are the columns that
    are printed as they are, outside of any `{% if %}` or `{% for %}`: a row in which one of them is
    null or blank has nothing to ask about and is rejected.
    """

    roles: tuple[str, ...]
    contents: tuple[jinja2.Template, ...]
    columns: Mapping[str, str]
    required: frozenset[str]

    @property
    def is_chat(self) -> bool:
        """Whether the parts are a chat's messages; otherwise there is one plain text."""
        return bool(self.roles)

    def render(self, row: Mapping[str, Any]) -> list[str] | Reject:
        """The contents of the messages, or of the one plain text, for one row."""
        for name in sorted(self.required):
            value = row[name]
            if value is None or (isinstance(value, str) and not value.strip()):
                what = "null" if value is None else "empty"
                return Reject(
                    RejectClass.EMPTY_INPUT,
                    f"the column {name} is {what}; write {{% if {name} %}} around it to allow that",
                )
        try:
            return [template.render(row, row=row) for template in self.contents]
        except Exception as error:  # noqa: BLE001 - a template calls into any type a column holds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Reject(RejectClass.TEMPLATE_ERROR, reason)


def compile_prompt(prompt: Prompt, place: str = "") -> PromptTemplates:
    """Check and compile all templates. Raises `UserError` with the template and its line.

    `place` stands before `prompt` in messages: `tasks.topic.` in a list of tasks.
    """
    sources = {f"{place}prompt.{name}": source for name, source in prompt.templates.items()}
    templates = compile_templates(sources, tuple(turn.role for turn in prompt.turns))
    if not templates.columns:
        raise UserError(
            f"{place}prompt: no template uses a column, so every row would ask the same"
        )
    return templates


def compile_templates(sources: Mapping[str, str], roles: tuple[str, ...] = ()) -> PromptTemplates:
    """Check and compile templates by the places that name them. Raises `UserError`."""
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    columns: dict[str, str] = {}
    required: set[str] = set()
    contents = []
    for name, source in sources.items():
        tree = _parse(environment, name, source)
        used = _columns(tree, name)
        _refuse_uncalled(frozenset(environment.globals), tree, name)
        columns |= dict.fromkeys(sorted(used - columns.keys()), name)
        required |= used & set(_printed_as_they_are(tree))
        contents.append(environment.from_string(source))
    return PromptTemplates(roles, tuple(contents), columns, frozenset(required))


def _parse(environment: ImmutableSandboxedEnvironment, place: str, source: str) -> nodes.Template:
    try:
        # Parsing accepts unknown filters; compiling does not.
        environment.compile(source)
        tree = environment.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{place}, line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise UserError(f"{place}: the template is nested too deeply; flatten it") from None
    except (jinja2.TemplateError, ValueError) as error:
        # What has no column in it is computed already: `''.__class__`, a number of 5,000 digits.
        raise UserError(f"{place}: {error}") from error
    for node in tree.find_all(_OTHER_TEMPLATES):
        raise UserError(f"{place}, line {node.lineno}: a prompt cannot load other templates")
    return tree


def _columns(tree: nodes.Template, place: str) -> set[str]:
    names = set(meta.find_undeclared_variables(tree))
    if _ROW in names:
        names.remove(_ROW)
        subscripts = [_row_column(node) for node in tree.find_all((nodes.Getitem, nodes.Getattr))]
        by_row = [name for name in subscripts if name is not None]
        uses = sum(node.name == _ROW for node in tree.find_all(nodes.Name))
        if len(by_row) != uses:
            raise UserError(f'{place}: write row["column"] with the column\'s name in quotes')
        names |= set(by_row)
    return names


def _refuse_uncalled(functions: frozenset[str], tree: nodes.Template, place: str) -> None:
    """Refuse `{{ range }}`, which would print the function where the column was meant."""
    names = list(tree.find_all(nodes.Name))
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    own = {name.name for name in names if name.ctx != "load"}
    for name in names:
        if name.name in functions - own and id(name) not in called:
            raise UserError(
                f"{place}, line {name.lineno}: {name.name} is a function of templates; "
                f'write row["{name.name}"] for a column of that name'
            )


def _row_column(node: nodes.Node) -> str | None:
    """The column of `row["column"]` or `row.column`; None for every other node."""
    if isinstance(node, nodes.Getitem | nodes.Getattr):
        if not (isinstance(node.node, nodes.Name) and node.node.name == _ROW):
            return None
        if isinstance(node, nodes.Getattr):
            # `row.items` is the method of that name, whatever the columns are called.
            return None if hasattr(dict, node.attr) else node.attr
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return node.arg.value
    return None


def _printed_as_they_are(tree: nodes.Template) -> Iterator[str]:
    for output in (node for node in tree.body if isinstance(node, nodes.Output)):
        for printed in output.nodes:
            inner: nodes.Node | None = printed
            while isinstance(inner, nodes.Filter) and inner.name not in _FILTERS_FOR_ABSENT_VALUES:
                inner = inner.node
            if inner is None:
                continue
            name = inner.name if isinstance(inner, nodes.Name) else _row_column(inner)
            if name is not None:
                yield name
