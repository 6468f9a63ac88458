"""The job that the other tools' lines are held against is a job, and their lines are Python."""

import ast
import re
from pathlib import Path

from command import ROOT

from pipeline.job_file import load_job

PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_job_is_valid(tmp_path: Path) -> None:
    """The page's job loads."""
    (text,) = blocks("yaml")
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    assert load_job(tmp_path / "job.yaml").name == "summaries"


def test_every_tool_does_the_same_job() -> None:
    """Each program is Python, reads the same corpus and asks the same."""
    programs = blocks("python")
    assert len(programs) == 3
    for program in programs:
        ast.parse(program)
        assert "corpus" in program
        assert "Summarize in one sentence:" in program
