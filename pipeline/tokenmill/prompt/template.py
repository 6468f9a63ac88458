"""The prompt's Jinja2 templates: which columns they use, and one row's messages.

Templates come from the job and run in an immutable sandbox; a row's values are data and are never
parsed as templates. A column whose name is no identifier is written `row["my column"]`.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
from jinja2 import meta, nodes

from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt.sandbox import CappedSandbox
from tokenmill.reject import Reject, RejectClass

_ROW = "row"
# With one of these an absent value is the template's own business.
_FILTERS_FOR_ABSENT_VALUES = frozenset({"default", "d"})
_OTHER_TEMPLATES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


@dataclass(frozen=True, slots=True)
class PromptTemplates:
    """A job's compiled prompt.

    `columns` maps each column used to the place that names it. `required` are the columns that
    are printed as they are, outside of any `{% if %}` or `{% for %}`: a row in which one of them is
    null or blank has nothing to ask about and is rejected. `given` are the names that stand for the
    task's own values and not for columns. `sandbox` is where the `contents` were compiled. `chat`
    is the column with a row's own messages, where these stand in the place of templates.
    """

    roles: tuple[str, ...]
    contents: tuple[jinja2.Template, ...]
    columns: Mapping[str, str]
    required: frozenset[str]
    given: Mapping[str, Any] = field(default_factory=dict)
    sandbox: CappedSandbox = field(default_factory=CappedSandbox)
    sources: tuple[str, ...] = ()
    chat: str | None = None

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
            values = {**row, **self.given}
            return [self.sandbox.render(each, {**values, _ROW: row}) for each in self.contents]
        except Exception as error:  # noqa: BLE001 - a template calls into any type a column holds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Reject(RejectClass.TEMPLATE_ERROR, reason)

    def with_words(self, change: Callable[[str], str]) -> "PromptTemplates":
        """The same with the templates' own words changed, not those that they print."""
        trees = [self.sandbox.parse(source) for source in self.sources]
        words = [node for tree in trees for node in tree.find_all(nodes.TemplateData)]
        changed = [(node, change(node.data)) for node in words]
        if all(node.data == data for node, data in changed):
            return self
        for node, data in changed:
            node.data = data
        contents = tuple(self.sandbox.compiled(tree) for tree in trees)
        return replace(self, contents=contents, sources=())


def compile_prompt(
    prompt: Prompt, place: str = "", given: Mapping[str, Any] | None = None
) -> PromptTemplates:
    """Check and compile all templates. Raises `UserError` with the template and its line.

    `place` stands before `prompt` in messages: `tasks.topic.` in a list of tasks. `given` are the
    task's own values for templates; a column of such a name is written `row["name"]`.
    """
    if prompt.chat is not None:
        columns = {prompt.chat: f"{place}prompt.chat"}
        return PromptTemplates((), (), columns, frozenset(), given or {}, chat=prompt.chat)
    sources = {f"{place}prompt.{name}": source for name, source in prompt.templates.items()}
    templates = compile_templates(sources, tuple(turn.role for turn in prompt.turns), given)
    if not templates.columns:
        raise UserError(
            f"{place}prompt: no template uses a column, so every row would ask the same"
        )
    return templates


def compile_templates(
    sources: Mapping[str, str],
    roles: tuple[str, ...] = (),
    given: Mapping[str, Any] | None = None,
) -> PromptTemplates:
    """Check and compile templates by the places that name them. Raises `UserError`."""
    sandbox = CappedSandbox()
    given = given or {}
    columns: dict[str, str] = {}
    required: set[str] = set()
    contents = []
    for name, source in sources.items():
        tree = _parse(sandbox, name, source)
        used = _columns(tree, name, given.keys())
        _refuse_uncalled(frozenset(sandbox.globals), tree, name)
        columns |= dict.fromkeys(sorted(used - columns.keys()), name)
        required |= used & set(_printed_as_they_are(tree))
        contents.append(sandbox.compiled(tree))
    return PromptTemplates(
        roles,
        tuple(contents),
        columns,
        frozenset(required),
        given,
        sandbox,
        tuple(sources.values()),
    )


def compile_text(source: str, place: str, names: AbstractSet[str]) -> jinja2.Template:
    """A template over a task's own values alone. Raises `UserError`."""
    sandbox = CappedSandbox()
    tree = _parse(sandbox, place, source)
    unknown = sorted(_columns(tree, place) - names)
    if unknown:
        known = " and ".join(sorted(names))
        raise UserError(f"{place}: {unknown[0]} is not known here; the template has {known}")
    return sandbox.compiled(tree)


def words_and_names(prompt: Prompt) -> tuple[str, frozenset[str]]:
    """What a prompt that compiles says in its own words, and the names that its templates use."""
    trees = [CappedSandbox().parse(source) for source in prompt.templates.values()]
    words = [node.data for tree in trees for node in tree.find_all(nodes.TemplateData)]
    names = [name for tree in trees for name in meta.find_undeclared_variables(tree)]
    return "\n".join(words), frozenset(names)


def _parse(sandbox: CappedSandbox, place: str, source: str) -> nodes.Template:
    try:
        # Parsing accepts unknown filters; compiling does not.
        sandbox.compiled(sandbox.parse(source))
        tree = sandbox.parse(source)
        meta.find_undeclared_variables(tree)
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


def _columns(tree: nodes.Template, place: str, given: AbstractSet[str] = frozenset()) -> set[str]:
    names = set(meta.find_undeclared_variables(tree)) - given
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
