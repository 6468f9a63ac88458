"""The documents as what they hold: blocks of commands, commands in a sentence, parts of jobs."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.command import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("infra/*/*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
#: What a block may need that is not here, as the comment above it says: `<!-- needs: NEED -->`.
NEEDS = {"aws", "bucket", "cluster", "docker", "gpu", "minutes", "slurm", "terminal"}
_SHELLS = {"bash", "console", "sh", "shell"}
_FENCE = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SENTENCE = re.compile(r"`((?:tokenmill|make|python|\.venv/bin/\w+) [^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `comment` is what the comment on the line above it says."""

    language: str
    text: str
    comment: str | None

    @property
    def need(self) -> str | None:
        """What keeps the block from being run here."""
        return self.comment.removeprefix("needs: ") if self.comment else None

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell's block: a prompt begins one where there are any."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found = [shlex.split(line, comments=True) for line in lines]
        return [words for words in found if words]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(each["language"], each["text"], each["comment"]) for each in found]


def shell_blocks(page: Path) -> list[Block]:
    """Those that one pastes into a terminal."""
    return [block for block in blocks(page) if block.language in _SHELLS]


def spoken_commands(page: Path) -> list[list[str]]:
    """The commands in a page's sentences that name options or targets."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [shlex.split(command) for command in _SENTENCE.findall(text)]


def write_games(folder: Path) -> None:
    """Three shards of 22, 22 and 20 rows with the columns of the README's job; half are games.

    One of the games has nothing to ask about.
    """
    folder.mkdir()
    for number, num_rows in enumerate([22, 22, 20]):
        rows = [
            {
                "doc_id": f"{number}-{row}",
                "title": f"Title {row}",
                "text": f"Text {row}." if (number, row) != (2, 5) else "",
                "section": "games" if row % 2 else "news",
                "language": "en",
            }
            for row in range(num_rows)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")
