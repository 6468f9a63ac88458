"""The prompt's Jinja2 templates: which columns they use, and how they render a row.

Templates come from the job and run in an immutable sandbox. A row's values are data and are never
parsed as templates. A column whose name is not an identifier is written `row["my column"]`.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
from jinja2 import meta, nodes

from tokenmill.config.prompt import Prompt
from tokenmill.errors import UserError
from tokenmill.prompt.nulls import NullValue
from tokenmill.prompt.sandbox import DEFAULT_LIMITS, TemplateLimits, TemplateSandbox
from tokenmill.reject import Reject, RejectClass

_ROW = "row"
# A template that uses one of these handles absent values itself.
_FILTERS_FOR_ABSENT_VALUES = frozenset({"default", "d"})
_CONSTANT_NAMES = {"True": "true", "False": "false", "None": "none"}
_TEMPLATE_NAMES = frozenset({"self", *_CONSTANT_NAMES.values()})
_LOOP_NAMES = frozenset({"loop"})
_MACRO_NAMES = frozenset({"caller", "varargs", "kwargs"})
_OTHER_TEMPLATES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


@dataclass(frozen=True, slots=True)
class PromptTemplates:
    """A job's compiled prompt.

    `columns` maps each column used to the job key that names it. `required` are the columns printed
    outside of any `{% if %}` or `{% for %}`: a row in which one of them is null or blank has no
    input and is rejected. `task_values` are names in templates that refer to values of the task and
    not to columns. `sandbox` is the environment in which `contents` were compiled. `chat` is the
    column with whole chats, if the job has one instead of templates.
    """

    roles: tuple[str, ...]
    contents: tuple[jinja2.Template, ...]
    columns: Mapping[str, str]
    required: frozenset[str]
    task_values: Mapping[str, Any] = field(default_factory=dict)
    sandbox: TemplateSandbox = field(default_factory=TemplateSandbox)
    sources: tuple[str, ...] = ()
    chat: str | None = None

    @property
    def is_chat(self) -> bool:
        """Whether the contents are the messages of a chat; otherwise they are one plain text."""
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
            values = {**row, **self.task_values}
            return [self.sandbox.render(part, {**values, _ROW: row}) for part in self.contents]
        except NullValue as error:
            return Reject(RejectClass.EMPTY_INPUT, str(error))
        except UnicodeDecodeError:
            return Reject(RejectClass.BAD_TEXT, "the prompt would contain bytes that are not UTF-8")
        except Exception as error:  # noqa: BLE001 - a template may call methods of any value
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Reject(RejectClass.TEMPLATE_ERROR, reason)

    def map_literal_text(self, change: Callable[[str], str]) -> "PromptTemplates":
        """The same templates with `change` applied to their literal text, not to printed values."""
        trees = [self.sandbox.parse(source) for source in self.sources]
        literals = [node for tree in trees for node in tree.find_all(nodes.TemplateData)]
        changed = [(node, change(node.data)) for node in literals]
        if all(node.data == data for node, data in changed):
            return self
        for node, data in changed:
            node.data = data
        contents = tuple(self.sandbox.compile_tree(tree) for tree in trees)
        return replace(self, contents=contents, sources=())


def compile_prompt(
    prompt: Prompt,
    key_prefix: str = "",
    task_values: Mapping[str, Any] | None = None,
    limits: TemplateLimits = DEFAULT_LIMITS,
) -> PromptTemplates:
    """Check and compile all templates. Raises `UserError` with the template's key and line.

    `key_prefix` comes before `prompt` in error messages: `tasks.topic.` in a list of tasks.
    `task_values` are the task's own values by name; a column with such a name is written
    `row["name"]`.
    """
    if prompt.chat is not None:
        columns = {prompt.chat: f"{key_prefix}prompt.chat"}
        return PromptTemplates((), (), columns, frozenset(), task_values or {}, chat=prompt.chat)
    sources = {f"{key_prefix}prompt.{name}": source for name, source in prompt.templates.items()}
    roles = tuple(turn.role for turn in prompt.turns)
    templates = compile_templates(sources, roles, task_values, limits)
    if not templates.columns:
        raise UserError(
            f"{key_prefix}prompt: no template uses a column, so all rows would have the same prompt"
        )
    return templates


def compile_templates(
    sources: Mapping[str, str],
    roles: tuple[str, ...] = (),
    task_values: Mapping[str, Any] | None = None,
    limits: TemplateLimits = DEFAULT_LIMITS,
) -> PromptTemplates:
    """Check and compile templates, given by the job keys that hold them. Raises `UserError`."""
    sandbox = TemplateSandbox(limits)
    task_values = task_values or {}
    columns: dict[str, str] = {}
    required: set[str] = set()
    contents = []
    for key, source in sources.items():
        tree = _parse(sandbox, key, source)
        used = _columns(tree, key, task_values.keys())
        _check_functions_are_called(frozenset(sandbox.globals), tree, key)
        _check_reserved_names(tree, key)
        columns |= dict.fromkeys(sorted(used - columns.keys()), key)
        required |= used & set(_unconditionally_printed(tree))
        contents.append(sandbox.compile_tree(tree))
    return PromptTemplates(
        roles,
        tuple(contents),
        columns,
        frozenset(required),
        task_values,
        sandbox,
        tuple(sources.values()),
    )


def compile_text(source: str, key: str, names: AbstractSet[str]) -> jinja2.Template:
    """Compile a template that may use only these names and no columns. Raises `UserError`."""
    sandbox = TemplateSandbox()
    tree = _parse(sandbox, key, source)
    unknown = sorted(_columns(tree, key) - names)
    if unknown:
        available = " and ".join(sorted(names))
        raise UserError(f"{key}: {unknown[0]} is not known here; the template can use {available}")
    return sandbox.compile_tree(tree)


def literal_text_and_names(prompt: Prompt) -> tuple[str, frozenset[str]]:
    """The literal text of a prompt that compiles, and the names that its templates use."""
    trees = [TemplateSandbox().parse(source) for source in prompt.templates.values()]
    literals = [node.data for tree in trees for node in tree.find_all(nodes.TemplateData)]
    names = [name for tree in trees for name in meta.find_undeclared_variables(tree)]
    return "\n".join(literals), frozenset(names)


def _parse(sandbox: TemplateSandbox, key: str, source: str) -> nodes.Template:
    try:
        # Parsing accepts unknown filters; compiling does not.
        sandbox.compile_tree(sandbox.parse(source))
        tree = sandbox.parse(source)
        meta.find_undeclared_variables(tree)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{key}, line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise UserError(f"{key}: the template is nested too deeply; flatten it") from None
    except (jinja2.TemplateError, ValueError) as error:
        # Constant expressions are computed here: `''.__class__`, or a number of 5,000 digits.
        raise UserError(f"{key}: {error}") from error
    for node in tree.find_all(_OTHER_TEMPLATES):
        raise UserError(f"{key}, line {node.lineno}: a prompt cannot load other templates")
    return tree


def _columns(
    tree: nodes.Template, key: str, task_values: AbstractSet[str] = frozenset()
) -> set[str]:
    names = set(meta.find_undeclared_variables(tree)) - task_values
    if _ROW in names:
        names.remove(_ROW)
        subscripts = [_row_column(node) for node in tree.find_all((nodes.Getitem, nodes.Getattr))]
        by_row = [name for name in subscripts if name is not None]
        uses = sum(node.name == _ROW for node in tree.find_all(nodes.Name))
        if len(by_row) != uses:
            raise UserError(f'{key}: write row["column"] with the column\'s name in quotes')
        names |= set(by_row)
    return names


def _check_functions_are_called(functions: frozenset[str], tree: nodes.Template, key: str) -> None:
    """Raise `UserError` for `{{ range }}`: it prints the function, but a column was meant."""
    names = list(tree.find_all(nodes.Name))
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    assigned = {name.name for name in names if name.ctx != "load"}
    for name in names:
        if name.name in functions - assigned and id(name) not in called:
            raise UserError(
                f"{key}, line {name.lineno}: {name.name} is a template function; "
                f'write row["{name.name}"] for a column of that name'
            )


def _check_reserved_names(tree: nodes.Template, key: str) -> None:
    """Raise `UserError` for `{{ self }}` or `{{ true }}`: it prints Jinja2's own value."""
    scopes: list[tuple[nodes.Node, frozenset[str]]] = [(tree, _TEMPLATE_NAMES)]
    scopes += [(loop, _LOOP_NAMES) for loop in tree.find_all(nodes.For)]
    scopes += [(macro, _MACRO_NAMES) for macro in tree.find_all(nodes.Macro)]
    for scope, reserved in scopes:
        printed = [part for output in scope.find_all(nodes.Output) for part in output.nodes]
        printed += [part for text in scope.find_all(nodes.Concat) for part in text.nodes]
        for part in printed:
            name = _printed_name(part)
            if name in reserved:
                raise UserError(
                    f"{key}, line {part.lineno}: {name} has a meaning of its own in templates; "
                    f'write row["{name}"] for a column of that name'
                )


def _printed_name(node: nodes.Node | None) -> str | None:
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Const):
        return _CONSTANT_NAMES.get(repr(node.value))
    return node.name if isinstance(node, nodes.Name) else None


def _row_column(node: nodes.Node) -> str | None:
    """The column of `row["column"]` or `row.column`; None for any other node."""
    if isinstance(node, nodes.Getitem | nodes.Getattr):
        if not (isinstance(node.node, nodes.Name) and node.node.name == _ROW):
            return None
        if isinstance(node, nodes.Getattr):
            # `row.items` is the dictionary's method, even if a column has that name.
            return None if hasattr(dict, node.attr) else node.attr
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return node.arg.value
    return None


def _unconditionally_printed(tree: nodes.Template) -> Iterator[str]:
    """The columns printed at the top level, with or without filters."""
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
