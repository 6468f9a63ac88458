"""A unit's rows into requests' token ids: templates, chat template, tokenizer.

A row that cannot be rendered becomes a `Reject` in its place; the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.schema import Reject, RejectClass, error_array
from pipeline.source import ROW_COLUMN
from pipeline.template import PromptTemplates
from pipeline.tokenizer import Tokenizer

#: Beside the kept columns of a rendered unit; null where `ERROR_COLUMN` is not.
TOKENS_COLUMN = "__tokenmill_tokens"
ERROR_COLUMN = "__tokenmill_error"


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders rows for one job: its templates, the model's tokenizer, the columns to keep."""

    templates: PromptTemplates
    tokenizer: Tokenizer
    keep: tuple[str, ...]

    def render(self, rows: pa.Table) -> pa.Table:
        """The kept columns, `ROW_COLUMN`, `TOKENS_COLUMN` (list of int32) and `ERROR_COLUMN`."""
        prompts = self._encode(self._render_rows(rows))
        tokens = [None if isinstance(prompt, Reject) else prompt for prompt in prompts]
        rejects = [prompt if isinstance(prompt, Reject) else None for prompt in prompts]
        kept = rows.select([*self.keep, ROW_COLUMN])
        kept = kept.append_column(TOKENS_COLUMN, pa.array(tokens, pa.list_(pa.int32())))
        return kept.append_column(ERROR_COLUMN, error_array(rejects))

    def _render_rows(self, rows: pa.Table) -> list[list[str] | Reject]:
        names = list(self.templates.columns)
        columns = [_cells(name, rows.column(name)) for name in names]
        return [
            self._render_row(dict(zip(names, values, strict=True)))
            for values in zip(*columns, strict=True)
        ]

    def _render_row(self, row: dict[str, Any]) -> list[str] | Reject:
        for value in row.values():
            if isinstance(value, Reject):
                return value
        contents = self.templates.render(row)
        if isinstance(contents, list):
            for content in contents:
                if not _is_unicode(content):
                    return Reject(RejectClass.BAD_TEXT, "the prompt holds a lone surrogate")
        return contents

    def _encode(self, rendered: Sequence[list[str] | Reject]) -> list[Sequence[int] | Reject]:
        contents = [item for item in rendered if not isinstance(item, Reject)]
        if self.templates.is_chat:
            roles = self.templates.roles
            encoded = self.tokenizer.encode_chats(
                [list(zip(roles, item, strict=True)) for item in contents]
            )
        else:
            encoded = self.tokenizer.encode_texts([text for (text,) in contents])
        answers = iter(encoded)
        return [item if isinstance(item, Reject) else next(answers) for item in rendered]


def _cells(name: str, column: pa.ChunkedArray) -> list[Any]:
    """The column's values; a `Reject` for one that Python cannot hold."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return [_cell(name, cell) for cell in column]


def _cell(name: str, cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return Reject(RejectClass.BAD_TEXT, f"the column {name} holds text that is not UTF-8")
    except (ValueError, OverflowError) as error:
        # A date beyond the year 9999, say.
        reason = " ".join(str(error).split())
        return Reject(
            RejectClass.TEMPLATE_ERROR, f"the column {name} holds an unreadable value: {reason}"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
