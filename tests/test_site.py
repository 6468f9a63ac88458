"""The documents as a site, and its quick start by its own words."""

import re
import runpy
from pathlib import Path

import pytest
from command import ROOT
from inprocess import invoke
from mkdocs.commands.build import build
from mkdocs.config import load_config

from pipeline.errors import ExitCode

# What starts an engine starts the one without a model.
ASKING = {"validate", "preview", "plan", "run"}


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """Strictly: no page is left out of the navigation, no link and no anchor is broken."""
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
    assert "Quick start" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "infra" / "kubernetes" / "index.html").is_file()


def test_the_quick_start_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the page, one after another, in a new user's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["build.py", "out/corpus"])
    runpy.run_path(str(ROOT / "jobs" / "demo" / "build.py"), run_name="__main__")
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    commands = [
        line.split() for line in re.findall(r"^\$ tokenmill (.*?)(?:\s+#.*)?$", page, re.MULTILINE)
    ]
    assert [command[0] for command in commands] == [
        *("init", "validate", "preview", "plan", "run", "status", "report")
    ]
    for command in commands:
        fake = ["--set", "model.source=fake"] if command[0] in ASKING else []
        done = invoke(*command, *fake)
        assert done.exit_code == ExitCode.FINISHED, (command, done.output)
    assert (tmp_path / "out" / "first.html").is_file()
    assert (tmp_path / "out" / "first" / "_SUCCESS").is_file()
