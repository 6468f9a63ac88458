"""The other tools' lines are Python, and do the same job."""

import ast

from helpers.command import ROOT
from helpers.documents import blocks

PAGE = ROOT / "docs" / "coming-from.md"


def test_every_tool_does_the_same_job() -> None:
    """Each program is Python, reads the same corpus and asks the same."""
    programs = [block.text for block in blocks(PAGE) if block.language == "python"]
    assert len(programs) == 3
    for program in programs:
        ast.parse(program)
        assert "corpus" in program
        assert "Summarize in one sentence:" in program
